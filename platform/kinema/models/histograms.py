"""Histograms of oriented gradients, of flow, and of motion boundaries (MME, appendix C).

Images are (..., C, H, W). A vector votes with its length for the bin of its direction; a histogram
is the mean of the votes over a square of pixels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Votes = Literal["hard", "linear"]


def sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences of images (..., H, W), each of the same shape.

    3x3 Sobel kernels (weights 1 2 1, no bias, not scaled), mirrored at the border without
    repeating the outermost pixels.
    """
    # Sums of slices: torch convolves and pools single channels several times slower on a CPU. And
    # differences first, so that they are exactly zero where the mirrored border makes them so:
    # rounding noise would choose between the first and the last bin of a histogram.
    padded = F.pad(images.reshape(-1, 1, *images.shape[-2:]), (1, 1, 1, 1), mode="reflect")
    right = padded[..., 2:] - padded[..., :-2]
    below = padded[..., 2:, :] - padded[..., :-2, :]
    across = right[..., :-2, :] + 2 * right[..., 1:-1, :] + right[..., 2:, :]
    down = below[..., :-2] + 2 * below[..., 1:-1] + below[..., 2:]
    return across.reshape(images.shape), down.reshape(images.shape)


def vote(x: Tensor, y: Tensor, bins: int, signed: bool, votes: Votes) -> list[Tensor]:
    """The votes of vectors (x, y), each of any one shape: `bins` tensors of that shape.

    Args:
        x: to the right.
        y: down.
        bins: equal shares of the circle, or of the half circle where opposite directions are one.
        signed: whether opposite directions differ.
        votes: `hard` for the bin that holds the direction, the first from angle 0; `linear` for the
            two bins whose middles are nearest, by nearness.
    """
    length = torch.sqrt(x * x + y * y)
    turn = 2 * math.pi if signed else math.pi
    place = torch.remainder(torch.atan2(y, x), turn) / turn * bins
    if votes == "hard":
        # rounding can make the remainder the whole turn
        chosen = place.floor().long() % bins
        return [torch.where(chosen == b, length, 0.0) for b in range(bins)]
    middle = place - 0.5
    lower = middle.floor()
    share = middle - lower
    first = lower.long() % bins
    second = (first + 1) % bins
    return [
        torch.where(first == b, length * (1 - share), 0.0)
        + torch.where(second == b, length * share, 0.0)
        for b in range(bins)
    ]


def cell_histograms(
    x: Tensor, y: Tensor, cell: int, bins: int, signed: bool, votes: Votes
) -> Tensor:
    """Histograms of whole cells: vectors (..., H, W) -> (..., H / cell, W / cell, bins)."""
    pooled = [
        F.avg_pool2d(votes_for.reshape(-1, 1, *x.shape[-2:]), cell)
        for votes_for in vote(x, y, bins, signed, votes)
    ]
    stacked = torch.cat(pooled, dim=1).movedim(1, -1)
    return stacked.reshape(*x.shape[:-2], *stacked.shape[-3:])


def window_histograms(
    x: Tensor, y: Tensor, points: Tensor, window: int, bins: int, signed: bool, votes: Votes
) -> Tensor:
    """Histograms around points, averaged over channels.

    Windows are centred on pixel corners; between the four corners around a point they are
    interpolated linearly. Pixels beyond the image do not count.

    Args:
        x: (N, C, H, W).
        y: (N, C, H, W).
        points: (N, P, 2) x, y in pixels; those outside take the nearest point inside.
        window: side of the square around a point in pixels, an even number.
        bins: see `vote`.
        signed: see `vote`.
        votes: see `vote`.

    Returns:
        (N, P, bins).
    """
    height, width = x.shape[-2:]
    grid = points / points.new_tensor([width, height]) * 2 - 1
    around = []
    for votes_for in vote(x, y, bins, signed, votes):
        corners = _corner_means(votes_for.mean(dim=1, keepdim=True), window)
        around.append(
            F.grid_sample(corners, grid[:, :, None], padding_mode="border", align_corners=True)
        )
    return torch.cat(around, dim=1)[..., 0].movedim(1, -1)


def _corner_means(images: Tensor, window: int) -> Tensor:
    """Means over squares centred on pixel corners: (..., H, W) -> (..., H + 1, W + 1).

    Pixels beyond the image do not count.
    """
    for dim, pad in ((-1, (window // 2, window // 2)), (-2, (0, 0, window // 2, window // 2))):
        size = images.shape[dim]
        padded = F.pad(images, pad)
        total = padded.narrow(dim, 0, size + 1).clone()
        for shift in range(1, window):
            total += padded.narrow(dim, shift, size + 1)
        corner = torch.arange(size + 1, device=images.device)
        count = (corner + window // 2).clamp_max(size) - (corner - window // 2).clamp_min(0)
        images = total / (count if dim == -1 else count[:, None])
    return images
