"""The token grid of a clip, and which of its positions a box covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Overlap = Literal["overlap", "centre"]


@dataclass(frozen=True)
class Grid:
    """Tokens of a clip: `slots` temporal indices, each with `height` x `width` positions.

    Tokens are numbered slot by slot and row by row: token = (slot * height + row) * width + column.
    """

    slots: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """Tokens per slot."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens per clip."""
        return self.slots * self.positions

    def __str__(self) -> str:
        return f"{self.slots} x {self.height} x {self.width}"


def inside_positions(
    grid: Grid,
    box: npt.ArrayLike,
    image_size: tuple[int, int],
    overlap: Overlap = "overlap",
) -> npt.NDArray[np.bool_]:
    """Positions of a slot that lie inside a box (MOFO, section 3.2).

    Args:
        grid: the token grid; only its height and width matter here.
        box: float (..., 4), half-open xyxy in pixels of the network input. A row of NaN, or a box
            without area, holds no position. One box per slot gives one row per slot.
        image_size: (height, width) of the network input in pixels.
        overlap: `overlap` counts a position that shares any area with the box; `centre` one whose
            centre the box contains.

    Returns:
        bool (..., positions), row by row.
    """
    x1, y1, x2, y2 = np.moveaxis(np.asarray(box, dtype=np.float64), -1, 0)[..., None]
    rows = _covered(y1, y2, grid.height, image_size[0], overlap)
    columns = _covered(x1, x2, grid.width, image_size[1], overlap)
    inside: npt.NDArray[np.bool_] = rows[..., :, None] & columns[..., None, :]
    return inside.reshape(*inside.shape[:-2], grid.positions)


def _covered(
    start: npt.NDArray[np.float64],
    stop: npt.NDArray[np.float64],
    num_cells: int,
    length: int,
    overlap: Overlap,
) -> npt.NDArray[np.bool_]:
    """Cells of one axis that [start, stop) covers: two arrays (..., 1) -> (..., num_cells)."""
    edges = np.arange(num_cells + 1) * (length / num_cells)
    if overlap == "centre":
        centres = (edges[:-1] + edges[1:]) / 2
        return (start <= centres) & (centres < stop)
    return (start < edges[1:]) & (edges[:-1] < stop) & (start < stop)
