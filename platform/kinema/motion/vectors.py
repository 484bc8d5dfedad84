"""Codec motion vectors as fields on a coarse grid (MGM 3.1).

A decoder exports one row per block with its position, size and displacement to a reference frame.
Here the rows of a run of frames become dense fields of cells of `grid` pixels, in pixels per frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

VECTOR_FIELDS = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
"""The columns read from FFmpeg's `AVMotionVector`; `dst_x`, `dst_y` are the block's centre."""

GRID = 8
"""Side of a cell in pixels: MGM's grid; H.264's blocks are multiples of 4."""


class CodecFrame(Protocol):
    """One decoded frame: its place, its picture type (`I`, `P` or `B`) and its blocks."""

    @property
    def index(self) -> int:
        """Of the frame in its video."""
        ...

    @property
    def picture(self) -> str:
        """`I`, `P` or `B`."""
        ...

    @property
    def rows(self) -> npt.NDArray[Any]:
        """Structured, one row per block, with `VECTOR_FIELDS`."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...

    @property
    def width(self) -> int:
        """Pixels."""
        ...


Field = npt.NDArray[np.float32]


def iterate_fields(frames: Iterable[CodecFrame], grid: int = GRID) -> Iterator[tuple[int, Field]]:
    """The displacement of every cell from the frame before, for consecutive frames of a video.

    A displacement is divided by the distance to its reference. FFmpeg tells only on which side that
    lies, so it is taken to be the nearest frame there that is no B-frame. That is exact for codecs
    before H.264 and for streams with one reference and no B-frames. A frame coded by itself repeats
    the field before it, or the one after it at the start.

    Args:
        frames: consecutive, in order; those that others refer to should be among them. A reference
            that is not is taken to be next to its frame.
        grid: side of a cell, pixels.

    Yields:
        Index of the frame, and (ceil(height / grid), ceil(width / grid), 2) float32, x then y, in
        pixels per frame. Memory holds the frames between two that are no B-frames.
    """
    intra: list[CodecFrame] = []  # at the start, before there is a field to repeat
    past: int | None = None
    last: Field | None = None
    for frame, future in _with_future(frames):
        if frame.picture != "I":
            distances = (
                1 if past is None else frame.index - past,
                1 if future is None else future - frame.index,
            )
            last = rasterise_vectors(frame.rows, frame.height, frame.width, grid, distances)
        if frame.picture != "B":
            past = frame.index
        if last is None:
            intra.append(frame)
            continue
        yield from ((early.index, last) for early in intra)
        intra.clear()
        yield frame.index, last
    for frame in intra:
        yield frame.index, rasterise_vectors(frame.rows, frame.height, frame.width, grid)


def vector_fields(
    frames: Iterable[CodecFrame], grid: int = GRID
) -> tuple[npt.NDArray[np.int64], Field]:
    """All of `iterate_fields`: indices (F,) int64 and fields (F, rows, columns, 2) float32."""
    pairs = list(iterate_fields(frames, grid))
    return np.array([index for index, _ in pairs], dtype=np.int64), np.stack([f for _, f in pairs])


def _with_future(frames: Iterable[CodecFrame]) -> Iterator[tuple[CodecFrame, int | None]]:
    """Each frame with the index of the next one that is no B-frame, where it may refer to it."""
    waiting: list[CodecFrame] = []
    for frame in frames:
        if frame.picture == "B":
            waiting.append(frame)
            continue
        yield from ((earlier, frame.index) for earlier in waiting)
        waiting.clear()
        yield frame, None
    yield from ((earlier, None) for earlier in waiting)


def rasterise_vectors(
    array: npt.NDArray[Any],
    height: int,
    width: int,
    grid: int = GRID,
    distances: tuple[int, int] = (1, 1),
) -> npt.NDArray[np.float32]:
    """The displacement of every cell from the frame before, in pixels per frame.

    FFmpeg points from the block to its reference, so a reference in the past (`source` < 0) is
    turned round and one in the future kept. Cells under several blocks hold their mean; cells under
    none (intra blocks) are zero.

    Args:
        array: structured, one row per block, with `VECTOR_FIELDS`; may be empty.
        height: of the frame, pixels.
        width: of the frame, pixels.
        grid: side of a cell, pixels.
        distances: frames to the reference in the past, and to the one in the future.

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
    per_frame = np.where(column["source"] < 0, -1 / distances[0], 1 / distances[1])
    motion *= (per_frame / column["motion_scale"])[:, None]
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
