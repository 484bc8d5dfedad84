"""How well motion boxes agree with annotated ones.

IoU alone flatters big boxes, so three baselines stand beside it: the whole frame, a centred box of
the same area and the frame's shape, and the boxes found in the other videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kinema import geometry
from kinema.randomness import keyed_rng

Boxes = npt.NDArray[np.float64]
FOUND_COLOUR, TRUE_COLOUR = (255, 210, 0), (0, 220, 255)
HEADING = 28
"""Height of a contact sheet's title, pixels."""


@dataclass(frozen=True)
class VideoBoxes:
    """Found and annotated boxes of one video, frame by frame.

    Attributes:
        name: of the video.
        size: (height, width) of its frames.
        found: (F, 4) xyxy in source pixels, NaN where nothing was found.
        annotated: (F, 4) likewise, NaN where there is no annotation.
    """

    name: str
    size: tuple[int, int]
    found: Boxes
    annotated: Boxes


@dataclass(frozen=True)
class Agreement:
    """Mean per-frame IoU of one video with its annotation, and what it is worth.

    Attributes:
        video: name, or `mean` (every video counts the same).
        num_frames: annotated frames that were compared.
        motion: the found boxes.
        whole_frame: one box around everything.
        equal_area: centred, each with the area of the box found in that frame.
        shuffled: the boxes of each other video at the same share of its length, stretched to this
            frame size; the mean over those videos. NaN for a single video.
        without_box: share of frames in which nothing was found; they count as IoU 0.
        union: IoU of the box around all found boxes with the one around all annotated ones.
        union_whole_frame: that of the whole frame.
    """

    video: str
    num_frames: int
    motion: float
    whole_frame: float
    equal_area: float
    shuffled: float
    without_box: float
    union: float
    union_whole_frame: float


def mean_iou(boxes: Boxes, annotated: Boxes) -> float:
    """Mean IoU (F, 4) against (F, 4) over annotated frames; a missing box counts 0."""
    present = ~np.isnan(annotated).any(axis=1)
    if not present.any():
        return math.nan
    return float(np.mean(geometry.iou(boxes[present], annotated[present])))


def compare(videos: Sequence[VideoBoxes], num_lenders: int | None = None) -> list[Agreement]:
    """One row per video, then their mean.

    Args:
        videos: each with an annotated frame at least.
        num_lenders: of how many others, drawn at random, a video takes boxes in `shuffled`; all by
            default, which takes the square of the number of videos in time.
    """
    rows = [
        _compare_one(video, _lenders(videos, at, num_lenders)) for at, video in enumerate(videos)
    ]
    return [*rows, _mean_row(rows)]


def _lenders(videos: Sequence[VideoBoxes], at: int, number: int | None) -> list[VideoBoxes]:
    others = len(videos) - 1
    if number is None or number >= others:
        return [video for video in videos if video is not videos[at]]
    drawn = keyed_rng(0, "lenders", videos[at].name).choice(others, number, replace=False)
    return [videos[index + (index >= at)] for index in drawn]


def _compare_one(video: VideoBoxes, others: Sequence[VideoBoxes]) -> Agreement:
    height, width = video.size
    whole = np.tile([0.0, 0.0, width, height], (len(video.found), 1))
    shuffled = [mean_iou(borrowed_boxes(other, video), video.annotated) for other in others]
    return Agreement(
        video=video.name,
        num_frames=int((~np.isnan(video.annotated).any(axis=1)).sum()),
        motion=mean_iou(video.found, video.annotated),
        whole_frame=mean_iou(whole, video.annotated),
        equal_area=mean_iou(centred_boxes(video.found, video.size), video.annotated),
        shuffled=float(np.mean(shuffled)) if shuffled else math.nan,
        without_box=float(np.isnan(video.found).any(axis=1).mean()),
        union=_union_iou(video.found, video.annotated),
        union_whole_frame=_union_iou(whole, video.annotated),
    )


def _union_iou(boxes: Boxes, annotated: Boxes) -> float:
    return float(geometry.iou(geometry.union(boxes), geometry.union(annotated)))


def _mean_row(rows: Sequence[Agreement]) -> Agreement:
    scores = np.array([astuple(row)[2:] for row in rows], dtype=np.float64)
    means = [float(mean) for mean in scores.mean(axis=0)]
    return Agreement("mean", sum(row.num_frames for row in rows), *means)


def centred_boxes(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """Centred boxes of the frame's shape with the areas of `boxes` (F, 4); empty for no box."""
    height, width = size
    share = np.sqrt(geometry.area(boxes) / (height * width))[:, None]
    half = share * np.array([width / 2, height / 2])
    centre = np.array([width / 2, height / 2])
    return np.concatenate([centre - half, centre + half], axis=1)


def borrowed_boxes(lender: VideoBoxes, borrower: VideoBoxes) -> Boxes:
    """The lender's boxes in the borrower's length and frame size."""
    count = len(borrower.found)
    rows = np.rint(np.linspace(0, len(lender.found) - 1, count)).astype(np.int64)
    height, width = borrower.size
    lender_height, lender_width = lender.size
    scale = np.array([width / lender_width, height / lender_height] * 2)
    return np.asarray(lender.found[rows] * scale)


def format_table(rows: Sequence[Agreement]) -> str:
    """The rows as aligned plain text."""
    names = [field.name for field in fields(Agreement)]
    lines = [names, *([_cell(value) for value in astuple(row)] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def contact_sheet(
    frames: npt.NDArray[np.uint8],
    found: Boxes,
    annotated: Boxes,
    num_columns: int = 4,
    num_shown: int = 12,
    title: str | None = None,
) -> bytes:
    """Frames in reading order with found (yellow) and annotated (cyan) boxes, as PNG bytes.

    Args:
        frames: (F, H, W, 3) uint8 RGB.
        found: (F, 4) source pixels, NaN = not drawn.
        annotated: (F, 4) likewise.
        num_columns: frames per row.
        num_shown: frames shown, spread evenly over the video.
        title: written above, in a line that explains the colours, too.
    """
    rows = np.unique(np.rint(np.linspace(0, len(frames) - 1, num_shown)).astype(np.int64))
    tiles = [draw_boxes(frames[row], found[row], annotated[row]) for row in rows]
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % num_columns)
    lines = [
        np.concatenate(tiles[start : start + num_columns], axis=1)
        for start in range(0, len(tiles), num_columns)
    ]
    if title is not None:
        lines.insert(0, _heading(title, lines[0].shape[1]))
    sheet = cv2.cvtColor(np.concatenate(lines, axis=0), cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(".png", sheet)
    if not written:
        raise ValueError(f"OpenCV could not write a PNG of shape {sheet.shape}")
    return data.tobytes()


def _heading(title: str, width: int) -> npt.NDArray[np.uint8]:
    """A dark line (HEADING, width, 3) with the title and what the colours mean."""
    line = np.full((HEADING, width, 3), 24, dtype=np.uint8)
    left = HEADING // 4
    for text, colour in (
        ("found", FOUND_COLOUR),
        ("annotated", TRUE_COLOUR),
        (title, (235, 235, 235)),
    ):
        (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        place = (left, (HEADING + high) // 2)
        cv2.putText(line, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
        left += wide + HEADING // 2
    return line


def draw_boxes(
    frame: npt.NDArray[np.uint8], found: Boxes, annotated: Boxes
) -> npt.NDArray[np.uint8]:
    """A copy of one frame (H, W, 3) with the two boxes (4,) on it."""
    canvas = frame.copy()
    for box, colour in ((annotated, TRUE_COLOUR), (found, FOUND_COLOUR)):
        if not np.isnan(box).any():
            left, top, right, bottom = (round(float(edge)) for edge in box)
            corners = (left, top), (right - 1, bottom - 1)  # half-open to the last pixel inside
            cv2.rectangle(canvas, *corners, colour, thickness=max(1, min(frame.shape[:2]) // 120))
    return canvas
