"""The loss on held-out clips: a number of the clips, however they are cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kinema.models.targets import PixelTarget
from kinema.models.vit import ViTConfig
from kinema.training.batch import Batch, Sample, collate
from kinema.training.held_out import held_out_loss

VIT = ViTConfig(embed_dim=16, depth=1, num_heads=2, image_size=32, num_frames=4, patch_size=8)


class Zero(nn.Module):
    """Predicts nothing."""

    def forward(self, clip: Tensor, mask: Tensor) -> Tensor:
        return torch.zeros(len(clip), int(mask[0].sum()), PixelTarget().dim(VIT))


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    mask = np.arange(32) % 2 == 0
    found = []
    for index in range(5):
        # the last clip is still and even, so that its loss is unlike that of the others
        high = 255 if index < 4 else 1
        clip = rng.integers(0, high, (3, 4, 32, 32), dtype=np.uint8)
        found.append(Sample(f"clip{index}", 0, clip, mask))
    return found


@pytest.mark.parametrize("sizes", [(4, 1), (3, 2), (1, 1, 1, 1, 1)])
def test_every_clip_counts_the_same(sizes: tuple[int, ...]) -> None:
    def loss(sizes: tuple[int, ...]) -> dict[str, float]:
        parts = np.split(np.arange(5), np.cumsum(sizes)[:-1])
        batches: list[Batch] = [collate([samples()[i] for i in part]) for part in parts]
        return held_out_loss(Zero(), lambda: iter(batches), PixelTarget(), VIT, torch.device("cpu"))

    assert loss(sizes) == pytest.approx(loss((5,)), rel=1e-5)
