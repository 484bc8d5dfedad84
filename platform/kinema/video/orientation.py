"""Which way up the pictures of a file are to be shown, and how to turn them and their vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame

from kinema.errors import VideoError


@dataclass(frozen=True)
class Orientation:
    """Exchange rows and columns if `transpose`, then mirror x and y as told."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, frame: VideoFrame, uri: str) -> Orientation:
        """Read from a frame's display matrix (ISO 14496-12); upright without one.

        Raises:
            VideoError: the matrix turns by something else than quarters of a turn.
        """
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        matrix = np.frombuffer(bytes(cast(SideData, data)), dtype=np.int32).reshape(3, 3)
        # Row vectors: (x, y) is shown at (a x + c y, b x + d y).
        (a, b), (c, d) = matrix[:2, :2]
        if (b, c) == (0, 0) and a != 0 and d != 0:
            return cls(False, bool(a < 0), bool(d < 0))
        if (a, d) == (0, 0) and b != 0 and c != 0:
            return cls(True, bool(c < 0), bool(b < 0))
        raise VideoError(uri, "is to be shown at a slanting angle; re-encode it upright")

    @property
    def rotation(self) -> int:
        """Clockwise degrees, 0, 90, 180 or 270, after mirroring where the file asks for that."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as shown."""
        return (width, height) if self.transpose else (height, width)

    def turn(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A frame (H, W, 3) as shown."""
        if self == Orientation():
            return frame
        if self.transpose:
            frame = frame.swapaxes(0, 1)
        return np.ascontiguousarray(frame[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])

    def turn_vectors(self, vectors: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
        """FFmpeg's motion vectors of a stored frame of `height` x `width`, as shown."""
        if self == Orientation():
            return vectors
        turned = vectors.copy()
        if self.transpose:
            height, width = width, height
            for x, y in (("w", "h"), ("src_x", "src_y"), ("dst_x", "dst_y"), _MOTION):
                turned[x], turned[y] = vectors[y], vectors[x]
        for flip, axis, length in ((self.flip_x, "x", width), (self.flip_y, "y", height)):
            if flip:
                for name in (f"src_{axis}", f"dst_{axis}"):
                    turned[name] = length - turned[name]
                turned[f"motion_{axis}"] = -turned[f"motion_{axis}"]
        return turned


_MOTION = ("motion_x", "motion_y")
