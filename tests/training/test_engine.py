"""One DeepSpeed step against plain PyTorch; saving, loading, damaged states, non-finite losses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from two_ranks import in_two_ranks

from kinema.errors import CheckpointError, ClusterError
from kinema.models.classifier import Classifier, MCAHead
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.vit import ViTConfig
from kinema.training.batch import Batch
from kinema.training.engine import Engine, EngineConfig, read_meta
from kinema.training.optim import OptimConfig

OPTIM = OptimConfig(weight_decay=0.1, betas=(0.9, 0.95))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))


def batches(count: int, size: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            ("x",) * size,
            torch.randn(size, 4, generator=generator),
            torch.zeros(size),
            None,
            None,
            {},
        )
        for _ in range(count)
    ]


def loss_fn(module: nn.Module, batch: Batch) -> Tensor:
    return (module(batch.clip).float() - 1).pow(2).mean()


def engine(stage: int = 0, accumulation: int = 2, precision: str = "fp32") -> Engine:
    config = EngineConfig(
        global_batch_size=2 * accumulation,
        micro_batch_size=2,
        zero_stage=stage,
        precision=precision,
    )
    return Engine(model(), 0, config, OPTIM)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_step_equals_plain_adamw(stage: int) -> None:
    plain = model()
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.1},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-2, betas=OPTIM.betas)
    ours = engine(stage)
    for step in range(3):
        micro = batches(2)
        adam.zero_grad()
        losses = [loss_fn(plain, batch) for batch in micro]
        torch.stack(losses).mean().backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in plain.parameters() if p.grad is not None]
        )
        adam.step()
        loss, our_norm = ours.step(micro, loss_fn, 1e-2)
        assert loss == pytest.approx(sum(part.item() for part in losses) / 2, rel=1e-5), step
        assert our_norm == pytest.approx(float(norm), rel=1e-4), step
    for name, tensor in ours.full_weights().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 1])
def test_saved_and_loaded_training_goes_on_exactly(stage: int, tmp_path: Path) -> None:
    straight, broken = engine(stage), engine(stage)
    micro = batches(2)
    for _ in range(2):
        straight.step(micro, loss_fn, 1e-2)
        broken.step(micro, loss_fn, 1e-2)
    broken.save(tmp_path, {"step": 2})
    resumed = engine(stage)
    resumed.load(tmp_path)
    assert read_meta(tmp_path)["step"] == 2
    assert resumed.step(micro, loss_fn, 1e-2) == straight.step(micro, loss_fn, 1e-2)
    for name, tensor in resumed.full_weights().items():
        torch.testing.assert_close(tensor, straight.full_weights()[name], rtol=0, atol=0)


def test_another_zero_stage_is_refused(tmp_path: Path) -> None:
    engine(0).save(tmp_path, {})
    with pytest.raises(CheckpointError, match="saved with zero_stage 0, now 1"):
        engine(1).load(tmp_path)


def test_damaged_state_is_named(tmp_path: Path) -> None:
    engine().save(tmp_path, {})
    for file in tmp_path.rglob("*_model_states.pt"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="damaged training state"):
        engine().load(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"meta\.json: unreadable"):
        engine().load(tmp_path)


def test_non_finite_loss_changes_nothing() -> None:
    ours = engine(accumulation=1)
    before = ours.full_weights()
    bad = batches(1)
    bad[0].clip[0, 0] = float("inf")
    loss, _ = ours.step(bad, loss_fn, 1e-2)
    assert loss != loss
    for name, tensor in ours.full_weights().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_non_finite_gradient_changes_nothing(stage: int, precision: str) -> None:
    """The loss is 0, its gradient is not: the root of 0 has none."""

    def steep(module: nn.Module, batch: Batch) -> Tensor:
        return (module(batch.clip.to(ours.dtype)).float() * 0).abs().sqrt().sum()

    ours = engine(stage, accumulation=1, precision=precision)
    before = ours.full_weights()
    loss, norm = ours.step(batches(1), steep, 1e-2)
    assert loss != loss
    assert norm != norm
    for name, tensor in ours.full_weights().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_sums_gradients_and_keeps_weights_in_float32(stage: int) -> None:
    """In bf16, 1 + 1/512 is 1: the 63 small gradients would vanish beside the first one."""

    def weighted(module: nn.Module, batch: Batch) -> Tensor:
        clip = batch.clip.to(next(module.parameters()).dtype)
        return (module(clip).float()[:, 0] * batch.labels).mean()

    first, *others = [batches(1)[0]] * 64
    small = [replace(batch, labels=torch.full((2,), 1 / 512)) for batch in others]
    micro = [replace(first, labels=torch.ones(2)), *small]
    rounded, exact = engine(stage, 64, "bf16"), engine(stage, 64)
    before = rounded.full_weights()
    _, norm = rounded.step(micro, weighted, 1e-6)
    assert norm == pytest.approx(exact.step(micro, weighted, 1e-6)[1], rel=0.02)
    for name, tensor in rounded.full_weights().items():
        # the step of AdamW, far below what bf16 can tell apart
        moved = (tensor - before[name]).abs()
        assert 0 < moved.max() < 2e-6, name


JOINT = ViTConfig(
    size="custom", embed_dim=192, depth=2, num_heads=3, image_size=32, num_frames=4, patch_size=8
)
DIVIDED = JOINT.model_copy(update={"attention": "divided"})
POOLING = ViTConfig(
    attention="pooling", embed_dim=192, depth=3, num_heads=4, stages=(1, 2), image_size=32,
    num_frames=4, patch_size=4, size="custom",
)  # fmt: skip
DECODER = DecoderConfig(size="custom", embed_dim=32, depth=1, num_heads=2)
"""ZeRO stage 3 keeps tensors of less than 100,000 numbers whole; these networks have larger."""


def half_hidden(vit: ViTConfig) -> Tensor:
    mask = torch.zeros(2, vit.grid.tokens, dtype=torch.bool)
    mask[:, ::2] = True
    return mask


@pytest.mark.parametrize(("stage", "recompute"), [(1, False), (3, True)])
@pytest.mark.parametrize(
    ("vit", "head"),
    [(JOINT, None), (JOINT, MCAHead(heads=1, depth=1)), (DIVIDED, None), (POOLING, None)],
    ids=["joint", "mca", "divided", "pooling"],
)
def test_every_network_learns_in_bf16(
    vit: ViTConfig, head: MCAHead | None, stage: int, recompute: bool
) -> None:
    vit = vit.model_copy(update={"activation_checkpointing": recompute})
    clip = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(("x", "y"), clip, torch.zeros(2), half_hidden(vit), half_hidden(vit), {})
    config = EngineConfig(
        global_batch_size=4, micro_batch_size=2, zero_stage=stage, precision="bf16"
    )
    pretrained = head is None
    network = MaskedAutoencoder(vit, DECODER, [10]) if pretrained else Classifier(vit, head, 3)
    ours = Engine(network, vit.depth, config, OPTIM)

    def square(module: nn.Module, batch: Batch) -> Tensor:
        second = batch.mask if pretrained else batch.inner
        return (module(batch.clip.to(ours.dtype), second).float() - 1).square().mean()

    losses = [ours.step([batch, batch], square, 1e-4)[0] for _ in range(3)]
    assert losses[-1] < losses[0]


AT_TWO_SIZES = EngineConfig(global_batch_size=8, micro_batch_size=2)


def micro_batches(step: int) -> list[Batch]:
    return batches(8)[4 * (step % 2) :][:4]


def train_as_rank(rank: int, folder: Path) -> None:
    """The first two steps in every stage, each rank on every other micro-batch."""
    for stage in range(4):
        config = AT_TWO_SIZES.model_copy(update={"zero_stage": stage})
        ours = Engine(model(), 0, config, OPTIM)
        for step in range(2):
            ours.step(micro_batches(step)[rank::2], loss_fn, 1e-2)
        ours.save(folder / str(stage), {"step": 2})


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks leave after two steps, by stage."""
    folder = tmp_path_factory.mktemp("states")
    in_two_ranks(train_as_rank, folder)
    return folder


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_goes_on_at_another_world_size(stage: int, states: Path) -> None:
    config = AT_TWO_SIZES.model_copy(update={"zero_stage": stage})
    straight, resumed = (Engine(model(), 0, config, OPTIM) for _ in range(2))
    resumed.load(states / str(stage))
    for step in range(4):
        straight.step(micro_batches(step), loss_fn, 1e-2)
    for step in range(2, 4):
        resumed.step(micro_batches(step), loss_fn, 1e-2)
    for name, tensor in resumed.full_weights().items():
        torch.testing.assert_close(tensor, straight.full_weights()[name], rtol=1e-5, atol=1e-6)


def test_per_rank() -> None:
    config = EngineConfig(global_batch_size=64, micro_batch_size=8)
    assert config.per_rank(1) == (8, 8)
    assert config.per_rank(4) == (8, 2)
    assert config.per_rank(16) == (4, 1)
    with pytest.raises(ClusterError, match="global_batch_size 64 does not divide"):
        config.per_rank(3)


def test_batch_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(
        ValueError, match="global_batch_size 10 is not a multiple of micro_batch_size 4"
    ):
        EngineConfig(global_batch_size=10, micro_batch_size=4)
