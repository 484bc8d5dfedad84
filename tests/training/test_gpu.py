"""What only a GPU can show: real sizes, DeepSpeed's stages and precisions, fused AdamW, agreement.

Imports little, so that `benchmarks/gpu_acceptance.sh` can run it on a machine without Ray.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kinema.masking.masks import TubeMask
from kinema.models.classifier import Classifier, MCAHead
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.pixels import normalise, unit_range
from kinema.models.target_rule import ClipInputs
from kinema.models.targets import PixelTarget
from kinema.models.vit import ViTConfig
from kinema.randomness import keyed_rng
from kinema.training.batch import Batch
from kinema.training.engine import META_FILE, Engine, EngineConfig
from kinema.training.optim import OptimConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SMALL = ViTConfig(
    size="custom", embed_dim=64, depth=2, num_heads=2, image_size=32, num_frames=4, patch_size=8
)
SMALL_DECODER = DecoderConfig(size="custom", embed_dim=32, depth=1, num_heads=2)
TARGET = PixelTarget()


def masks(vit: ViTConfig, count: int) -> Tensor:
    size = (vit.image_size, vit.image_size)
    drawn = [TubeMask().sample(vit.grid, None, size, keyed_rng(0, i)) for i in range(count)]
    return torch.stack([torch.from_numpy(mask.reshape(-1)) for mask in drawn])


def batch(vit: ViTConfig, count: int) -> Batch:
    shape = (count, 3, vit.num_frames, vit.image_size, vit.image_size)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator())
    inner = torch.zeros(count, vit.grid.tokens, dtype=torch.bool)
    inner[:, ::5] = True
    labels = torch.arange(count) % 3
    return Batch(("x",) * count, clip, labels, masks(vit, count), inner, {})


def autoencoder(
    vit: ViTConfig, decoder: DecoderConfig, stage: int, precision: str, accumulation: int = 1
) -> Engine:
    torch.manual_seed(0)
    config = EngineConfig(
        global_batch_size=4 * accumulation,
        micro_batch_size=4,
        zero_stage=stage,
        precision=precision,
    )
    model = MaskedAutoencoder(vit, decoder, TARGET.dims(vit))
    return Engine(model, vit.depth, config, OptimConfig())


def take_step(engine: Engine, vit: ViTConfig, micro: Batch, accumulation: int = 1) -> float:
    def loss_fn(module: nn.Module, batch: Batch) -> Tensor:
        assert batch.mask is not None
        unit = unit_range(batch.clip)
        predicted = module(normalise(unit).to(engine.dtype), batch.mask)
        return TARGET.loss(predicted.float(), TARGET.compute(ClipInputs(unit), batch.mask, vit))

    moved = micro.pin_memory().to(engine.device)
    loss, norm = engine.step([moved] * accumulation, loss_fn, 1e-4)
    if engine.config.precision != "fp16":  # whose scale may still be looked for
        assert 0 < norm < float("inf")
    return loss


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gpu_agrees_with_cpu(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    model = MaskedAutoencoder(SMALL, SMALL_DECODER, [10])
    clip, mask = torch.rand(2, 3, 4, 32, 32), masks(SMALL, 2)
    expected = model(clip, mask)
    actual = model.cuda().to(precision)(clip.cuda().to(precision), mask).float().cpu()
    tolerance = 1e-4 if precision == torch.float32 else 5e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_a_batch_moves_but_for_its_mask() -> None:
    pinned = batch(SMALL, 2).pin_memory()
    assert pinned.clip.is_pinned()
    moved = pinned.to(torch.device("cuda"))
    assert moved.mask is not None
    assert (moved.clip.device.type, moved.mask.device.type) == ("cuda", "cpu")
    torch.testing.assert_close(moved.clip.cpu(), pinned.clip)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (0, "bf16"), (1, "bf16"), (1, "fp16"), (2, "bf16"), (3, "bf16")],
)
def test_vit_b_learns_under_deepspeed(stage: int, precision: str) -> None:
    pytest.importorskip("deepspeed")
    vit = ViTConfig()
    engine, micro = autoencoder(vit, DecoderConfig(), stage, precision, 2), batch(vit, 4)
    losses = [take_step(engine, vit, micro, 2) for _ in range(12 if precision == "fp16" else 5)]
    assert losses[-1] < losses[0]


def test_vit_b_recomputes_under_stage_3() -> None:
    pytest.importorskip("deepspeed")
    vit = ViTConfig(activation_checkpointing=True)
    engine, micro = autoencoder(vit, DecoderConfig(), 3, "bf16"), batch(vit, 4)
    assert take_step(engine, vit, micro) > take_step(engine, vit, micro)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same size", "another size"])
@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32"), (3, "bf16")],
)
def test_training_goes_on(stage: int, precision: str, elsewhere: bool, tmp_path: Path) -> None:
    """The counters of the fused AdamW are on the GPU again; also by way of a universal state."""
    pytest.importorskip("deepspeed")
    micro = batch(SMALL, 4)
    straight, resumed = (autoencoder(SMALL, SMALL_DECODER, stage, precision) for _ in range(2))
    for _ in range(2):
        take_step(straight, SMALL, micro)
    straight.save(tmp_path, {})
    if elsewhere:
        meta = json.loads((tmp_path / META_FILE).read_text())
        (tmp_path / META_FILE).write_text(json.dumps(meta | {"world_size": 2}))
    resumed.load(tmp_path)
    for _ in range(2):
        expected = take_step(straight, SMALL, micro)
        assert take_step(resumed, SMALL, micro) == pytest.approx(expected, rel=1e-3)
    weights = straight.full_weights()
    for name, tensor in resumed.full_weights().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_vit_b_mca_learns_under_deepspeed(precision: str) -> None:
    pytest.importorskip("deepspeed")
    vit = ViTConfig(drop_path=0.1)
    torch.manual_seed(0)
    config = EngineConfig(
        global_batch_size=4, micro_batch_size=4, zero_stage=1, precision=precision
    )
    model = Classifier(vit, MCAHead(), 174)
    engine = Engine(model, vit.depth, config, OptimConfig(layer_decay=0.75, clip_grad=1.0))
    moved = batch(vit, 4).to(engine.device)

    def loss_fn(module: nn.Module, batch: Batch) -> Tensor:
        clip = normalise(unit_range(batch.clip)).to(engine.dtype)
        return nn.functional.cross_entropy(module(clip, batch.inner).float(), batch.labels)

    losses = [engine.step([moved], loss_fn, 1e-4)[0] for _ in range(12)]
    assert min(losses[-3:]) < losses[0]
