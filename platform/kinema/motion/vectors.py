"""Codec motion vectors as a field on a coarse grid (MGM 3.1).

A decoder exports one row per block with its position, size and displacement to a reference frame.
Here the rows of one frame become a dense field of cells of `grid` pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

VECTOR_FIELDS = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
"""The columns read from FFmpeg's `AVMotionVector`; `dst_x`, `dst_y` are the block's centre."""


def rasterise_vectors(
    array: npt.NDArray[Any], height: int, width: int, grid: int = 8
) -> npt.NDArray[np.float32]:
    """The displacement of every cell from the frame before, in pixels per frame.

    FFmpeg points from the block to its reference, so a reference in the past (`source` < 0) is
    turned round and one in the future kept. Cells under several blocks hold their mean; cells under
    none (intra blocks) are zero. References are taken to be one frame away.

    Args:
        array: structured, one row per block, with `VECTOR_FIELDS`; may be empty.
        height: of the frame, pixels.
        width: of the frame, pixels.
        grid: side of a cell, pixels.

    Returns:
        (ceil(height / grid), ceil(width / grid), 2) float32, x then y.
    """
    rows, columns = -(-height // grid), -(-width // grid)
    total = np.zeros((rows, columns, 2), dtype=np.float64)
    count = np.zeros((rows, columns, 1), dtype=np.float64)
    if len(array) == 0:
        return total.astype(np.float32)
    column = {name: np.asarray(array[name], dtype=np.int64) for name in VECTOR_FIELDS}
    motion = np.stack([column["motion_x"], column["motion_y"]], axis=1).astype(np.float64)
    motion *= (np.where(column["source"] < 0, -1, 1) / column["motion_scale"])[:, None]
    for block_width, block_height in np.unique(
        np.stack([column["w"], column["h"]], axis=1), axis=0
    ).tolist():
        chosen = (column["w"] == block_width) & (column["h"] == block_height)
        left = column["dst_x"][chosen] - block_width // 2
        top = column["dst_y"][chosen] - block_height // 2
        for dy in range(0, block_height, min(grid, block_height)):
            for dx in range(0, block_width, min(grid, block_width)):
                y, x = (top + dy) // grid, (left + dx) // grid
                seen = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
                np.add.at(total, (y[seen], x[seen]), motion[chosen][seen])
                np.add.at(count, (y[seen], x[seen]), 1.0)
    return (total / np.maximum(count, 1)).astype(np.float32)
