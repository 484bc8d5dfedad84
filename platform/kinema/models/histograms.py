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
    flat = images.reshape(-1, 1, *images.shape[-2:])
    smooth, slope = flat.new_tensor([1.0, 2.0, 1.0]), flat.new_tensor([-1.0, 0.0, 1.0])
    padded = F.pad(flat, (1, 1, 1, 1), mode="reflect")
    across, down = (
        F.conv2d(padded, kernel[None, None])
        for kernel in (torch.outer(smooth, slope), torch.outer(slope, smooth))
    )
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
        corners = F.avg_pool2d(
            votes_for.mean(dim=1, keepdim=True),
            window,
            stride=1,
            padding=window // 2,
            count_include_pad=False,
        )
        around.append(
            F.grid_sample(corners, grid[:, :, None], padding_mode="border", align_corners=True)
        )
    return torch.cat(around, dim=1)[..., 0].movedim(1, -1)
