"""Boxes, and the one spatial transform that frames, boxes, points and displacements share.

Coordinates are continuous pixels: pixel i covers [i, i + 1), its centre is i + 0.5. Boxes are
(..., 4) float64 `x0, y0, x1, y1`, half-open; a row of NaN means "no box". Sizes are
(height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.integer | np.floating]
Size = tuple[int, int]

FRAME_FILL = (124.0, 116.0, 104.0)
"""RGB where a rotated or shifted frame has no source: ImageNet's mean, zero after normalisation."""

_EXACT = 1e-6
"""Pixels; matrices closer than this to an integer crop are taken as one."""


def area(boxes: npt.ArrayLike) -> Floats:
    """Area (...) in square pixels of boxes (..., 4); 0 for "no box" and for inverted boxes."""
    boxes = np.asarray(boxes, dtype=np.float64)
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return np.asarray(np.nan_to_num(sides[..., 0] * sides[..., 1]), dtype=np.float64)


def intersect(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """What boxes (..., 4) have in common, element by element; NaN where that is nothing."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    return _without_empty(np.concatenate([low, high], axis=-1))


def iou(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Intersection over union (...) in [0, 1] of boxes (..., 4), element by element.

    0 where either is "no box".
    """
    common = area(intersect(a, b))
    total = area(a) + area(b) - common
    return np.asarray(common / np.where(total > 0, total, 1.0), dtype=np.float64)


def union(boxes: npt.ArrayLike) -> Floats:
    """The smallest box (4,) around boxes (N, 4); NaN rows are ignored, NaN when none is left."""
    boxes = np.asarray(boxes, dtype=np.float64)
    present = boxes[~np.isnan(boxes).any(axis=-1)]
    if len(present) == 0:
        return np.full(4, np.nan)
    return np.concatenate([present[:, :2].min(axis=0), present[:, 2:].max(axis=0)])


def clip_boxes(boxes: npt.ArrayLike, height: float, width: float) -> Floats:
    """Boxes (..., 4) cut to a frame of `height` x `width` pixels; NaN where nothing is left."""
    return intersect(boxes, np.array([0.0, 0.0, width, height]))


def _without_empty(boxes: Floats) -> Floats:
    """NaN rows for boxes without area."""
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(axis=-1, keepdims=True)
    return np.where(has_area, boxes, np.nan)


@dataclass(frozen=True, eq=False)
class Transform:
    """An affine map from source pixels to output pixels; each method returns one with a step more.

    Attributes:
        matrix: (3, 3) float64, homogeneous column vectors (x, y, 1), source -> output.
        source_size: (H, W) of the frames it reads.
        size: (h, w) of the frames it makes.
    """

    matrix: Floats
    source_size: Size
    size: Size

    @classmethod
    def identity(cls, size: Size) -> Transform:
        """Frames of `size` as they are."""
        size = (int(size[0]), int(size[1]))
        return cls(np.eye(3), size, size)

    def then(self, other: Transform) -> Transform:
        """First this, then `other`, which must read what this one makes."""
        if other.source_size != self.size:
            raise ValueError(f"a transform of {other.source_size} cannot follow one to {self.size}")
        return Transform(other.matrix @ self.matrix, self.source_size, other.size)

    def crop(self, box: npt.ArrayLike) -> Transform:
        """Keep `box` (x0, y0, x1, y1), whole pixels inside the current output.

        Raises:
            ValueError: the box is empty, not in whole pixels, or reaches outside.
        """
        x0, y0, x1, y1 = (float(edge) for edge in np.asarray(box, dtype=np.float64))
        height, width = self.size
        if not all(edge.is_integer() for edge in (x0, y0, x1, y1)):
            raise ValueError(f"crop {(x0, y0, x1, y1)} is not in whole pixels")
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"crop {(x0, y0, x1, y1)} does not fit a frame of {height}x{width}")
        return self._add(_affine(dx=-x0, dy=-y0), (int(y1 - y0), int(x1 - x0)))

    def resize(self, size: Size) -> Transform:
        """Stretch to `size` (h, w)."""
        height, width = self.size
        new_height, new_width = int(size[0]), int(size[1])
        if min(new_height, new_width) < 1:
            raise ValueError(f"cannot resize to {new_height}x{new_width}")
        return self._add(
            _affine(xx=new_width / width, yy=new_height / height), (new_height, new_width)
        )

    def hflip(self) -> Transform:
        """Mirror left and right."""
        return self._add(_affine(xx=-1.0, dx=float(self.size[1])), self.size)

    def rotate(self, degrees: float) -> Transform:
        """Turn counter-clockwise, as seen, about the centre; the size stays."""
        height, width = self.size
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = _affine(xx=cos, xy=sin, yx=-sin, yy=cos)
        centre = np.array([width / 2, height / 2])
        turn[:2, 2] = centre - turn[:2, :2] @ centre
        return self._add(turn, self.size)

    def shear(self, x: float = 0.0, y: float = 0.0) -> Transform:
        """Move (px, py) to (px + x py, py + y px), about the top left corner as in AutoAugment."""
        return self._add(_affine(xy=x, yx=y), self.size)

    def translate(self, dx: float, dy: float) -> Transform:
        """Shift by pixels, right and down; the size stays."""
        return self._add(_affine(dx=dx, dy=dy), self.size)

    def frames(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Frames (T, H, W, 3) uint8 of `source_size` -> (T, h, w, 3) uint8.

        Shrinking averages over the covered area, enlarging interpolates linearly. What lies outside
        the source becomes `FRAME_FILL`.
        """
        if frames.ndim != 4 or frames.shape[1:3] != self.source_size:
            raise ValueError(f"frames {frames.shape} are not (T, {self.source_size}, 3)")
        out = np.empty((len(frames), *self.size, frames.shape[3]), dtype=np.uint8)
        resample = _resampler(self.source_size, self.matrix, self.size, FRAME_FILL)
        for target, frame in zip(out, frames, strict=True):
            target[...] = resample(frame)
        return out

    def boxes(self, boxes: npt.ArrayLike) -> Floats:
        """Boxes (..., 4) around the moved corners, cut to the output; NaN when nothing is left."""
        boxes = np.asarray(boxes, dtype=np.float64)
        corners = self.points(boxes[..., [0, 1, 2, 1, 0, 3, 2, 3]].reshape(*boxes.shape[:-1], 4, 2))
        moved = np.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1)
        # An inverted box is none; a flip must not turn it into one.
        moved = np.where(np.isnan(_without_empty(boxes)), np.nan, moved)
        return clip_boxes(moved, *self.size)

    def points(self, points: npt.ArrayLike) -> Floats:
        """Points (..., 2) x, y; those that leave the output are not cut."""
        return self.displacements(points) + self.matrix[:2, 2]

    def displacements(self, displacements: npt.ArrayLike) -> Floats:
        """Displacements (..., 2) in pixels: scaled, turned and mirrored, but not shifted."""
        linear = self.matrix[:2, :2]
        return np.asarray(np.asarray(displacements, dtype=np.float64) @ linear.T, dtype=np.float64)

    def field(
        self, field: npt.NDArray[np.floating], cell: float | None = None
    ) -> npt.NDArray[np.float32]:
        """A displacement field given on a grid over the source frame, as seen in the output.

        Args:
            field: (T, H', W', 2) x, y displacements in source pixels.
            cell: side of a grid cell in source pixels, counted from the top left corner (a codec's
                blocks may reach past the frame); None stretches the grid over the whole frame.

        Returns:
            (T, h, w, 2) float32 displacements in output pixels; zero outside the source.
        """
        if field.ndim != 4 or field.shape[3] != 2:
            raise ValueError(f"a displacement field is (T, H, W, 2), not {field.shape}")
        rows, columns = field.shape[1:3]
        height, width = (rows * cell, columns * cell) if cell is not None else self.source_size
        grid_to_output = self.matrix @ _affine(xx=width / columns, yy=height / rows)
        out = np.empty((len(field), *self.size, 2), dtype=np.float32)
        resample = _resampler((rows, columns), grid_to_output, self.size, (0.0, 0.0))
        for target, values in zip(out, field.astype(np.float32), strict=True):
            target[...] = self.displacements(resample(values))
        return out

    def _add(self, matrix: Floats, size: Size) -> Transform:
        return Transform(matrix @ self.matrix, self.source_size, size)


def _affine(
    *,
    xx: float = 1.0,
    xy: float = 0.0,
    yx: float = 0.0,
    yy: float = 1.0,
    dx: float = 0.0,
    dy: float = 0.0,
) -> Floats:
    return np.array([[xx, xy, dx], [yx, yy, dy], [0.0, 0.0, 1.0]])


def _resampler(
    shape: Size, matrix: Floats, size: Size, fill: tuple[float, ...]
) -> Callable[[Image], Image]:
    """Takes images (H, W, C) of `shape` through `matrix` (their pixels -> the output's) to `size`.

    What depends on the shape alone is worked out once: a clip has many frames.
    """
    window = _whole_pixel_window(shape, matrix, size)
    if window is None:
        return partial(_warp, matrix=matrix, size=size, fill=fill)
    x0, y0, x1, y1 = window
    flip_x, flip_y = -1 if matrix[0, 0] < 0 else 1, -1 if matrix[1, 1] < 0 else 1

    def cut(image: Image) -> Image:
        part = image[y0:y1, x0:x1][::flip_y, ::flip_x]
        return _resize(np.ascontiguousarray(part), size)

    return cut


def _warp(image: Image, matrix: Floats, size: Size, fill: tuple[float, ...]) -> Image:
    image, matrix = _shrunk_first(image, matrix)
    # OpenCV counts from pixel centres, this module from pixel corners: half a pixel on both sides.
    linear, shift = matrix[:2, :2], matrix[:2, 2]
    centred = np.column_stack([linear, shift + linear @ np.array([0.5, 0.5]) - 0.5])
    return np.asarray(
        cv2.warpAffine(
            image,
            centred,
            (size[1], size[0]),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
    )


def _whole_pixel_window(
    shape: tuple[int, ...], matrix: Floats, size: Size
) -> tuple[int, int, int, int] | None:
    """The source window (x0, y0, x1, y1) of a transform that only crops, resizes and mirrors."""
    if matrix[0, 1] != 0 or matrix[1, 0] != 0:
        return None
    scale, shift = matrix[[0, 1], [0, 1]], matrix[:2, 2]
    edges = (np.array([[0.0, 0.0], [size[1], size[0]]]) - shift) / scale
    low, high = edges.min(axis=0), edges.max(axis=0)
    rounded = np.rint(np.concatenate([low, high]))
    inside = (rounded[:2] >= 0).all() and (rounded[2:] <= np.array(shape[1::-1])).all()
    if not inside or np.abs(rounded - np.concatenate([low, high])).max() > _EXACT:
        return None
    x0, y0, x1, y1 = (int(edge) for edge in rounded)
    return x0, y0, x1, y1


def _resize(image: Image, size: Size) -> Image:
    """Shrink by area, then enlarge linearly: OpenCV's area mode is right only for shrinking."""
    height, width = image.shape[:2]
    smaller = (min(size[0], height), min(size[1], width))
    if smaller != (height, width):
        image = np.asarray(cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA))
    if smaller != size:
        image = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR))
    return image


def _shrunk_first(image: Image, matrix: Floats) -> tuple[Image, Floats]:
    """Take what shrinks out of `matrix` by area averaging: linear sampling alone would alias."""
    height, width = image.shape[:2]
    scale_x, scale_y = np.minimum(np.linalg.norm(matrix[:2, :2], axis=0), 1.0)
    smaller = (max(round(height * scale_y), 1), max(round(width * scale_x), 1))
    if smaller == (height, width):
        return image, matrix
    back = _affine(xx=width / smaller[1], yy=height / smaller[0])
    return _resize(image, smaller), matrix @ back
