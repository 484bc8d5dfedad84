"""What only a GPU can show: bf16 steps at real size, DeepSpeed stages, agreement with the CPU."""

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
from kinema.training.engine import Engine, EngineConfig
from kinema.training.optim import OptimConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SMALL = ViTConfig(
    size="custom", embed_dim=64, depth=2, num_heads=2, image_size=32, num_frames=4, patch_size=8
)


def masks(vit: ViTConfig, count: int) -> Tensor:
    size = (vit.image_size, vit.image_size)
    drawn = [TubeMask().sample(vit.grid, None, size, keyed_rng(0, i)) for i in range(count)]
    return torch.stack([torch.from_numpy(mask.reshape(-1)) for mask in drawn])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gpu_agrees_with_cpu(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(
        SMALL, DecoderConfig(size="custom", embed_dim=32, depth=1, num_heads=2), [10]
    )
    clip, mask = torch.rand(2, 3, 4, 32, 32), masks(SMALL, 2)
    expected = model(clip, mask)
    actual = model.cuda().to(precision)(clip.cuda().to(precision), mask.cuda()).float().cpu()
    tolerance = 1e-4 if precision == torch.float32 else 5e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_vit_b_learns_under_deepspeed(stage: int) -> None:
    pytest.importorskip("deepspeed")
    vit, target = ViTConfig(), PixelTarget()
    torch.manual_seed(0)
    model = MaskedAutoencoder(vit, DecoderConfig(), target.dims(vit))
    config = EngineConfig(
        global_batch_size=4, micro_batch_size=4, zero_stage=stage, precision="bf16"
    )
    engine = Engine(model, vit.depth, config, OptimConfig())
    clip = torch.randint(0, 256, (4, 3, 16, 224, 224), dtype=torch.uint8)
    batch = Batch(("x",) * 4, clip, torch.zeros(4), masks(vit, 4), None, {}).to(engine.device)

    def loss_fn(module: nn.Module, batch: Batch) -> Tensor:
        assert batch.mask is not None
        unit = unit_range(batch.clip)
        predicted = module(normalise(unit).to(engine.dtype), batch.mask)
        return target.loss(predicted.float(), target.compute(ClipInputs(unit), batch.mask, vit))

    losses = [engine.step([batch], loss_fn, 1e-4)[0] for _ in range(5)]
    assert losses[-1] < losses[0]


def test_vit_b_mca_step() -> None:
    vit = ViTConfig()
    model = Classifier(vit, MCAHead(), 174).cuda().to(torch.bfloat16)
    inner = torch.zeros(2, vit.grid.tokens, dtype=torch.bool, device="cuda")
    inner[:, ::5] = True
    clip = torch.rand(2, 3, 16, 224, 224, device="cuda", dtype=torch.bfloat16)
    model(clip, inner).float().logsumexp(1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
