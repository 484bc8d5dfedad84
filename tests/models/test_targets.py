"""Pixel target against loops over tokens and channels; loss; reconstruction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kinema.models.pixels import clip_of, patches
from kinema.models.target_rule import ClipInputs, Wanted
from kinema.models.targets import PixelTarget
from kinema.models.vit import ViTConfig

VIT = ViTConfig(image_size=12, patch_size=4, num_frames=4, embed_dim=12, depth=1, num_heads=2)
NORMS = ["per_channel", "joint", "none"]


def random_clip(batch: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, 4, 12, 12, generator=generator, dtype=dtype)


def random_mask(batch: int = 2, hidden: int = 7) -> torch.Tensor:
    mask = torch.zeros(batch, 18, dtype=torch.bool)
    for i, row in enumerate(mask):
        row[torch.randperm(18, generator=torch.Generator().manual_seed(i))[:hidden]] = True
    return mask


def reference(clip: np.ndarray, mask: np.ndarray, norm: str) -> np.ndarray:
    """One number at a time: slot, row, column of the token; frame, row, column, channel in it."""
    rows = []
    for sample, hidden in zip(clip, mask, strict=True):
        for token in np.flatnonzero(hidden):
            slot, row, column = token // 9, token % 9 // 3, token % 3
            values = np.empty((2, 4, 4, 3))
            for t, y, x, c in np.ndindex(2, 4, 4, 3):
                values[t, y, x, c] = sample[c, 2 * slot + t, 4 * row + y, 4 * column + x]
            if norm == "per_channel":
                for c in range(3):
                    channel = values[..., c].copy()
                    values[..., c] = (channel - channel.mean()) / (channel.std(ddof=1) + 1e-6)
            elif norm == "joint":
                values = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            rows.append(values.ravel())
    return np.stack(rows).reshape(len(clip), -1, 96)


def pixels(clip: torch.Tensor, mask: torch.Tensor, norm: str = "per_channel") -> torch.Tensor:
    return PixelTarget(norm=norm).compute(ClipInputs(clip), mask, VIT).values


@pytest.mark.parametrize("norm", NORMS)
def test_agrees_with_the_loop_by_loop_reference(norm) -> None:
    clip, mask = random_clip(), random_mask()
    got = pixels(clip, mask, norm)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), reference(clip.numpy(), mask.numpy(), norm), atol=1e-10)


def test_dim_is_1536_at_videomaes_sizes() -> None:
    assert PixelTarget().dim(ViTConfig()) == 1536
    assert pixels(random_clip(), random_mask()).shape[-1] == PixelTarget().dim(VIT)


def test_each_colour_of_each_token_is_normalised() -> None:
    target = (
        PixelTarget()
        .compute(ClipInputs(random_clip()), random_mask(), VIT)
        .values.unflatten(-1, (32, 3))
    )
    assert torch.allclose(target.mean(-2), torch.zeros(2, 7, 3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(target.std(-2), torch.ones(2, 7, 3, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("norm", ["per_channel", "joint"])
def test_brightness_and_contrast_do_not_matter(norm) -> None:
    clip, mask = random_clip(), random_mask()
    plain = pixels(clip, mask, norm)
    assert torch.allclose(pixels(0.5 * clip + 0.3, mask, norm), plain, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_a_flat_token_gives_finite_numbers(norm) -> None:
    clip = torch.full((1, 3, 4, 12, 12), 0.3)
    target = pixels(clip, random_mask(1), norm)
    assert target.isfinite().all()
    assert target.abs().max() < 0.5


def test_half_precision_clips_are_normalised_in_single() -> None:
    clip = random_clip(dtype=torch.float32)
    target = pixels(clip.half(), random_mask())
    assert target.dtype == torch.float32
    exact = pixels(clip.half().double(), random_mask())
    assert torch.allclose(target.double(), exact, atol=1e-4)


def test_patches_and_clip_of_are_inverse() -> None:
    clip = random_clip()
    assert torch.equal(clip_of(patches(clip, VIT), VIT), clip)


@pytest.mark.parametrize("norm", NORMS)
def test_true_targets_invert_to_the_clip(norm) -> None:
    clip, mask = random_clip(), random_mask()
    target = PixelTarget(norm=norm)
    restored = target.invert(pixels(clip, mask, norm), mask, clip, VIT)
    assert torch.allclose(restored, clip, atol=1e-9)


@pytest.mark.parametrize("statistics", ["hidden", "visible"])
def test_visible_tokens_are_left_alone_and_the_input_untouched(statistics) -> None:
    clip, mask = random_clip(), random_mask()
    kept = clip.clone()
    noise = torch.randn(2, 7, 96, dtype=torch.float64)
    restored = PixelTarget().invert(noise, mask, clip, VIT, statistics)
    changed = (patches(restored, VIT) != patches(clip, VIT)).flatten(2).any(-1)
    assert torch.equal(changed, mask)
    assert torch.equal(clip, kept)


def test_inverting_a_clip_of_a_single_token_leaves_the_input_untouched() -> None:
    single = ViTConfig(image_size=4, patch_size=4, num_frames=2, embed_dim=12, depth=1, num_heads=2)
    clip, mask = torch.rand(1, 3, 2, 4, 4), torch.ones(1, 1, dtype=torch.bool)
    kept = clip.clone()
    restored = PixelTarget(norm="none").invert(torch.zeros(1, 1, 96), mask, clip, single)
    assert not restored.any()
    assert torch.equal(clip, kept)


def test_visible_statistics_use_nothing_hidden() -> None:
    clip, mask = random_clip(), random_mask()
    flat = torch.zeros(2, 7, 96, dtype=torch.float64)
    inverted = PixelTarget().invert(flat, mask, clip, VIT, "visible")
    expected = patches(clip, VIT)[~mask].unflatten(0, (2, 11)).mean(dim=(1, 2))
    got = patches(inverted, VIT)[mask].unflatten(0, (2, 7))
    assert torch.allclose(got, expected[:, None, None].expand_as(got))


def test_loss_is_the_mean_squared_error() -> None:
    prediction, target = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    expected = np.square(prediction.numpy() - target.numpy()).mean()
    assert PixelTarget().loss(prediction, Wanted(target)).item() == pytest.approx(expected)


def test_loss_of_half_precision_predictions_is_single() -> None:
    loss = PixelTarget().loss(torch.full((1, 2, 4), 300.0).half(), Wanted(torch.zeros(1, 2, 4)))
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000  # above what half precision can hold


def test_predicting_zero_costs_about_one() -> None:
    target = pixels(random_clip(), random_mask())
    assert PixelTarget().loss(torch.zeros_like(target), Wanted(target)).item() == pytest.approx(
        1, abs=0.05
    )


def test_unequal_masks_are_refused() -> None:
    mask = random_mask()
    mask[0] = ~mask[0]
    with pytest.raises(ValueError, match="same number of tokens"):
        pixels(random_clip(), mask)


def test_unknown_norm_lists_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="'per_channel', 'joint' or 'none'"):
        PixelTarget(norm="patch")  # type: ignore[arg-type]
