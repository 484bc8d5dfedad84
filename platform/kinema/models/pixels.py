"""Pixels on the device: range, normalisation, and cutting clips into tubelets."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from kinema.models.vit import ViTConfig

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""ImageNet channel means that all four papers normalise with."""
PIXEL_STD = (0.229, 0.224, 0.225)


def unit_range(clip: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return clip.float() / 255


def normalise(pixels: Tensor, channels: int = 1) -> Tensor:
    """Pixels in [0, 1] -> ImageNet-normalised.

    Args:
        pixels: clips (B, 3, T, H, W), or anything else with three colours.
        channels: the dimension that holds them.
    """
    shape = [1] * pixels.ndim
    shape[channels] = 3
    return (pixels - pixels.new_tensor(PIXEL_MEAN).view(shape)) / pixels.new_tensor(PIXEL_STD).view(
        shape
    )


def patches(clip: Tensor, vit: ViTConfig) -> Tensor:
    """Cut clips (B, 3, T, H, W) into tubelets (B, N, pixels, 3).

    Pixels run frame by frame, row by row; pixels = tubelet_size * patch_size ** 2.
    """
    return rearrange(
        clip,
        "b c (s t) (h p) (w q) -> b (s h w) (t p q) c",
        t=vit.tubelet_size,
        p=vit.patch_size,
        q=vit.patch_size,
    )


def clip_of(tubelets: Tensor, vit: ViTConfig) -> Tensor:
    """Put tubelets (B, N, pixels, 3) back together: (B, 3, T, H, W), the inverse of `patches`."""
    return rearrange(
        tubelets,
        "b (s h w) (t p q) c -> b c (s t) (h p) (w q)",
        s=vit.grid.slots,
        h=vit.grid.height,
        t=vit.tubelet_size,
        p=vit.patch_size,
    )
