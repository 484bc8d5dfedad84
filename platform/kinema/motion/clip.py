"""Where one clip moves, in the pixels the network sees: boxes (MOFO 3.1 to 3.3), fields (MGM 3.3).

Time is cut alike for both: a slot owns the motion from its first sampled frame to the next slot's,
at the video's own rate, and the last slot that to the clip's end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from kinema import geometry
from kinema.motion.extractor import FrameBoxes

Boxes = npt.NDArray[np.float64]
Reduce = Literal["clip", "video", "median"]


class BoxSource(Protocol):
    """Whatever knows the boxes of a video: the store of automatic boxes, or annotated ones."""

    def boxes(self, video_id: str) -> FrameBoxes:
        """The boxes of one video, in source pixels."""
        ...


@dataclass(frozen=True)
class ClipBoxes:
    """The motion boxes of a clip.

    Attributes:
        box: (4,) float64 xyxy in network-input pixels, never NaN.
        boxes: (slots, 4) float64, one per slot; a slot in which nothing moves holds `box`.
        fallback: nothing moves in view, so `box` is the centred box of half the side.
    """

    box: Boxes
    boxes: Boxes
    fallback: bool


@dataclass(frozen=True)
class SlotField:
    """How much every part of a clip moves in every slot.

    Attributes:
        points: (M, 2) float64 x, y in network-input pixels, the centres of the cells in view.
        magnitude: (slots, M) float64, length of the cell's motion, summed over the slot's raw
            frames, in network-input pixels.
    """

    points: npt.NDArray[np.float64]
    magnitude: npt.NDArray[np.float64]

    @property
    def still(self) -> bool:
        """Whether nothing in view moves."""
        return not self.magnitude.any()


@dataclass(frozen=True)
class ClipMotion:
    """What is known about the motion of a clip; the parts that nobody asked for are None."""

    boxes: ClipBoxes | None = None
    field: SlotField | None = None


def clip_boxes(
    frame_boxes: FrameBoxes,
    indices: npt.NDArray[np.int64],
    transform: geometry.Transform,
    tubelet_size: int,
    reduce: Reduce = "clip",
) -> ClipBoxes:
    """The boxes of a clip after its crop, resize and flip.

    Every frame's box goes through the transform before they are joined, so that motion outside the
    crop counts for nothing.

    Args:
        frame_boxes: of the whole video, in source pixels.
        indices: (T,) the clip's frames, not descending; T is a multiple of `tubelet_size`.
        transform: source frame -> network input.
        tubelet_size: sampled frames per slot.
        reduce: `clip` joins the boxes of the frames the clip spans, `video` those of the whole
            video, `median` takes the median of each coordinate over the clip.
    """
    if len(indices) == 0 or len(indices) % tubelet_size:
        raise ValueError(f"{len(indices)} frames do not fill slots of {tubelet_size}")
    boxes = np.asarray(transform.boxes(frame_boxes.boxes.astype(np.float64)))
    span = _pairs(frame_boxes.frames, int(indices[0]), int(indices[-1]))
    spanned = boxes[span]
    if reduce == "video":
        box = geometry.union(boxes)
    elif reduce == "clip":
        box = geometry.union(spanned)
    else:
        box = _median(spanned)
    fallback = bool(np.isnan(box).any())
    if fallback:
        box = centred_box(transform.size)
    slots = _slot_boxes(boxes, frame_boxes.frames, indices[::tubelet_size], span)
    slots = np.where(np.isnan(slots), box, slots)
    return ClipBoxes(box=np.asarray(box, dtype=np.float64), boxes=slots, fallback=fallback)


def slot_field(
    frames: npt.NDArray[np.int64],
    fields: npt.NDArray[np.float32],
    cell: tuple[float, float],
    indices: npt.NDArray[np.int64],
    transform: geometry.Transform,
    tubelet_size: int,
) -> SlotField:
    """The motion of a clip's slots after its crop, resize and flip.

    Args:
        frames: (F,) ascending frames of the video to which `fields` belong: a field says how its
            frame came from the one before.
        fields: (F, rows, columns, 2) float32 x, y in source pixels per frame.
        cell: width and height of a field's cell in source pixels, counted from the top left corner.
        indices: (T,) the clip's frames, not descending; T is a multiple of `tubelet_size`.
        transform: source frame -> network input.
        tubelet_size: sampled frames per slot.

    Returns:
        The cells whose centres the clip shows. A slot without time of its own, as in a clip that
        repeats the last frame, takes the field of its frame.
    """
    rows, columns = fields.shape[1:3]
    x, y = np.meshgrid((np.arange(columns) + 0.5) * cell[0], (np.arange(rows) + 0.5) * cell[1])
    points = transform.points(np.stack([x, y], axis=-1).reshape(-1, 2))
    height, width = transform.size
    seen = ((points >= 0) & (points < [width, height])).all(axis=1)
    source_height, source_width = transform.source_size
    seen &= (x.reshape(-1) < source_width) & (y.reshape(-1) < source_height)
    starts = indices[::tubelet_size]
    stops = np.append(starts[1:], indices[-1])
    magnitude = []
    for start, stop in zip(starts, stops, strict=True):
        first = int(np.searchsorted(frames, start, side="right" if stop > start else "left"))
        end = int(np.searchsorted(frames, stop, side="right"))
        first = min(first, len(frames) - 1)
        span = fields[first : max(end, first + 1)].reshape(-1, rows * columns, 2)[:, seen]
        magnitude.append(np.linalg.norm(transform.displacements(span), axis=-1).sum(axis=0))
    return SlotField(points[seen], np.stack(magnitude))


def centred_box(size: tuple[int, int]) -> Boxes:
    """The centred box of half the side, (4,) xyxy, of an image (height, width)."""
    height, width = size
    return np.array([width / 4, height / 4, 3 * width / 4, 3 * height / 4])


def slot_boxes(
    frame_boxes: FrameBoxes,
    indices: npt.NDArray[np.int64],
    transform: geometry.Transform,
    tubelet_size: int,
) -> Boxes:
    """The box of what moves in each slot of a clip, (slots, 4); NaN where nothing does.

    The arguments are those of `clip_boxes`.
    """
    boxes = np.asarray(transform.boxes(frame_boxes.boxes.astype(np.float64)))
    span = _pairs(frame_boxes.frames, int(indices[0]), int(indices[-1]))
    return _slot_boxes(boxes, frame_boxes.frames, indices[::tubelet_size], span)


def _slot_boxes(
    boxes: Boxes, frames: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], span: slice
) -> Boxes:
    """Each slot takes the pairs from its first sampled frame to the next slot's.

    The last slot ends with the clip; where that leaves no time at all, it takes the last pair.
    """
    edges = np.searchsorted(frames, starts, side="right") - 1
    firsts = np.clip(edges, span.start, span.stop - 1)
    ends = np.append(np.searchsorted(frames, starts[1:], side="left"), span.stop)
    return np.stack(
        [
            geometry.union(boxes[first : max(end, first + 1)])
            for first, end in zip(firsts, ends, strict=True)
        ]
    )


def _pairs(frames: npt.NDArray[np.int32], start: int, stop: int) -> slice:
    """The pairs of frames that overlap the time from frame `start` to frame `stop`; at least one.

    Pair i covers the time from `frames[i]` to `frames[i + 1]`. A clip of one repeated frame takes
    the pair it lies in, and the last one after the end.
    """
    first = max(int(np.searchsorted(frames, start, side="right")) - 1, 0)
    end = int(np.searchsorted(frames, stop, side="left"))
    return slice(first, max(end, first + 1))


def _median(boxes: Boxes) -> Boxes:
    """Median of each coordinate over the rows that are boxes; NaN when there is none."""
    present = boxes[~np.isnan(boxes).any(axis=1)]
    if len(present) == 0:
        return np.full(4, np.nan)
    return np.asarray(np.median(present, axis=0), dtype=np.float64)
