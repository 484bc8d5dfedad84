"""Decoded videos, kept in memory where there is room."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kinema.errors import VideoError
from kinema.motion.vectors import vector_fields
from kinema.video.decode import read_frames, read_frames_and_vectors
from kinema.video.manifest import Entry

HELD_BYTES = 512 * 2**20
"""A video smaller than this when decoded is decoded once for all of its views in a test."""


class Decoded(NamedTuple):
    """Frames (T, H, W, 3) uint8, and codec vectors where asked for: (F,) int64 indices and
    (F, rows, columns, 2) float32 fields as `motion.vectors` makes them."""

    frames: NDArray[np.uint8]
    vectors: tuple[NDArray[np.int64], NDArray[np.float32]] | None

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.frames.nbytes + (0 if self.vectors is None else self.vectors[1].nbytes)


class FrameCache:
    """Decoded videos, least recently used first out, up to a number of bytes."""

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes, self._bytes = max_bytes, 0
        self._videos: OrderedDict[str, Decoded] = OrderedDict()

    def read(self, entry: Entry, indices: NDArray[np.int64], with_vectors: bool) -> Decoded:
        """Frames of the entry's video at `indices`, and vectors of at least the time they span.

        Raises:
            VideoError: it cannot be read, lacks one of the frames, or its codec gives no vectors.
        """
        size = entry.num_frames * entry.height * entry.width * 3
        if size > self.max_bytes:
            return _decode(entry.path, indices.tolist(), with_vectors)
        held = self._videos.get(entry.path)
        if held is None or (with_vectors and held.vectors is None):
            held = _decode(entry.path, None, with_vectors)  # may raise: nothing has changed yet
            without = self._videos.pop(entry.path, None)  # the new one goes last, not in its place
            self._bytes += held.nbytes - (0 if without is None else without.nbytes)
            self._videos[entry.path] = held
            while self._bytes > self.max_bytes and len(self._videos) > 1:
                self._bytes -= self._videos.popitem(last=False)[1].nbytes
        self._videos.move_to_end(entry.path)
        count, last = len(held.frames), int(indices.max())
        if last >= count:  # the file is shorter than its manifest says
            raise VideoError(entry.path, f"has {count} frames; frame {last} was asked for")
        return held._replace(frames=held.frames[indices])


def _decode(path: str, indices: list[int] | None, with_vectors: bool) -> Decoded:
    if not with_vectors:
        return Decoded(read_frames(path, indices), None)
    frames, vectors = read_frames_and_vectors(path, indices)
    return Decoded(frames, vector_fields(vectors))
