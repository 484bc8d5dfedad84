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


def vote(x: Tensor, y: Tensor, bins: int, signed: bool, votes: Votes) -> Tensor:
    """The votes of vectors (x, y), summed over their channels: (N, bins, H, W).

    Args:
        x: (N, C, H, W), to the right.
        y: (N, C, H, W), down.
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
        given = [(place.floor().long() % bins, length)]
    else:
        middle = place - 0.5
        lower = middle.floor()
        share = middle - lower
        first = lower.long() % bins
        given = [(first, length * (1 - share)), ((first + 1) % bins, length * share)]
    found = length.new_zeros(len(x), bins, *x.shape[2:])
    for chosen, lengths in given:
        # channel by channel, so that no two votes meet: sums are the same on every run, on GPUs too
        for channel in range(x.shape[1]):
            index = chosen[:, channel, None]
            found.scatter_(1, index, found.gather(1, index) + lengths[:, channel, None])
    return found


def cell_histograms(
    x: Tensor, y: Tensor, cell: int, bins: int, signed: bool, votes: Votes
) -> Tensor:
    """Histograms of whole cells: vectors (..., H, W) -> (..., H / cell, W / cell, bins)."""
    alone = (-1, 1, *x.shape[-2:])
    found = vote(x.reshape(alone), y.reshape(alone), bins, signed, votes)
    pooled = F.avg_pool2d(found, cell).movedim(1, -1)
    return pooled.reshape(*x.shape[:-2], *pooled.shape[1:])


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
    corners = _corner_means(vote(x, y, bins, signed, votes) / x.shape[1], window)
    around = F.grid_sample(corners, grid[:, :, None], padding_mode="border", align_corners=True)
    return around[..., 0].movedim(1, -1)


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
