"""Everything a step computes stays on the GPU, with masks on the CPU. No GPU is needed to see it.

Tensors here have shapes and devices and no numbers; an operation that mixes devices is an error.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_motion_targets import VIT, every_target, inputs_for
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kinema.models import classifier, mae, target_rule, vit
from kinema.models.classifier import BoxMeanHead, Classifier, Head, MCAHead, PlainHead
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.target_rule import ClipInputs, TargetRule
from kinema.models.vit import ViTConfig

JOINT = ViTConfig(
    size="custom", embed_dim=64, depth=2, num_heads=2, image_size=32, num_frames=4, patch_size=8
)
NETWORKS = {
    "joint": JOINT,
    "divided": JOINT.model_copy(update={"attention": "divided"}),
    "pooling": ViTConfig(
        size="custom", attention="pooling", embed_dim=64, depth=3, num_heads=4, stages=(1, 2),
        image_size=32, num_frames=4, patch_size=4,
    ),
}  # fmt: skip
HEADS: list[Head] = [PlainHead(), MCAHead(heads=1, depth=1), BoxMeanHead(outer_weight=0.5)]


def half(keep: Tensor) -> Tensor:
    """Stands for `token_indices`, which looks at numbers."""
    return torch.arange(keep.shape[1] // 2, device="cpu").expand(len(keep), -1)


@pytest.fixture
def no_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (vit, mae, target_rule, classifier):
        monkeypatch.setattr(module, "token_indices", half)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def on_cpu(config: ViTConfig) -> Tensor:
    return torch.zeros(2, config.grid.tokens, dtype=torch.bool)


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_networks(config: ViTConfig) -> None:
    clip = torch.empty(2, 3, 4, 32, 32, device="cuda")
    inner = on_cpu(config).cuda()
    with torch.device("cuda"):
        decoder = DecoderConfig(size="custom", embed_dim=32, depth=1, num_heads=2)
        autoencoder = MaskedAutoencoder(config, decoder, [10])
        classifiers = [Classifier(config, head, 3) for head in HEADS]
    assert autoencoder(clip, on_cpu(config)).is_cuda
    for network in classifiers:
        assert network(clip, inner).is_cuda
        if config.attention == "joint":
            assert network(clip, inner, on_cpu(config)).is_cuda


@pytest.mark.usefixtures("no_numbers")
@every_target
def test_targets(target: TargetRule) -> None:
    with torch.device("cpu"):
        made = inputs_for(target)
    inputs = ClipInputs(
        made.clip.cuda(), {name: value.cuda() for name, value in made.motion.items()}
    )
    wanted = target.compute(inputs, on_cpu(VIT), VIT)
    assert wanted.values.is_cuda
    guess = torch.empty(wanted.values.shape, device="cuda", requires_grad=True)
    assert target.loss(guess, wanted).is_cuda
