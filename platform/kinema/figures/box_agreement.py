"""Agreement of motion boxes with annotated ones, for the terminal and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kinema.figures.table import TextTable
from kinema.geometry import Transform
from kinema.motion.agreement import VideoBoxes, contact_sheet
from kinema.wording import counted

SCORES = {
    "motion": "motion boxes",
    "whole_frame": "whole frame",
    "equal_area": "centred, equal area",
    "shuffled": "boxes of other videos",
    "union": "motion boxes, union over the video",
    "union_whole_frame": "whole frame, union over the video",
}
"""What is compared with the annotation: fields of `Agreement` as people read them."""

MOST_CLASSES = 24
"""Longer tables are shortened on the terminal."""
NUM_TILES, TILE_WIDTH, GAP = 12, 320, 2
"""Frames of a contact sheet, the width of each in pixels, and of the black border around it."""


def text_of(found: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> str:
    """The result for the terminal."""
    rows = [
        [title, "-", "-"]
        if (score := found["iou"][name]) is None
        else [title, f"{score['value']:.3f}", f"[{score['low']:.3f}, {score['high']:.3f}]"]
        for name, title in SCORES.items()
    ]
    overall = TextTable(["against annotated boxes", "mean IoU", "95 %"], rows, [False, True, True])
    lines = [
        f"{found['videos']} of {counted(found['listed'], 'video')} annotated,"
        f" {counted(found['frames'], 'frame')};"
        f" nothing found in {found['without_box']:.1%} of frames"
        + (f"; {counted(len(found['failed']), 'video')} failed" if found["failed"] else ""),
        overall.text(),
    ]
    if len(classes) > 1:
        header = ["class", "videos", "motion", "95 %", "whole", "equal area", "shuffled"]
        lines += ["", TextTable(header, _class_cells(classes), [False] + [True] * 6).text()]
    return "\n".join(lines)


def _class_cells(classes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    shown = [
        [
            row["class"],
            str(row["videos"]),
            f"{row['motion']:.3f}",
            f"[{row['motion_low']:.3f}, {row['motion_high']:.3f}]",
            *(f"{row[name]:.3f}" for name in ("whole_frame", "equal_area", "shuffled")),
        ]
        for row in classes
    ]
    if len(shown) <= MOST_CLASSES:
        return shown
    left_out = len(shown) - MOST_CLASSES
    gap = [f"... {left_out} more in classes.csv", *[""] * 6]
    return [*shown[: MOST_CLASSES // 2], gap, *shown[-(MOST_CLASSES // 2) :]]


def tile_rows(boxes: VideoBoxes) -> npt.NDArray[np.int64]:
    """Which of a video's frames its sheet shows: annotated ones, evenly spread."""
    annotated = np.flatnonzero(np.isfinite(boxes.annotated[:, 0]))
    places = np.linspace(0, len(annotated) - 1, min(NUM_TILES, len(annotated)))
    return np.asarray(annotated[np.rint(places).astype(np.int64)], dtype=np.int64)


def sheet(frames: npt.NDArray[np.uint8], boxes: VideoBoxes, title: str) -> bytes:
    """A contact sheet, as PNG bytes.

    Args:
        frames: (T, H, W, 3) uint8 RGB, those of `tile_rows`.
        boxes: of the whole video.
        title: written above.
    """
    height, width = boxes.size
    transform = Transform.identity(boxes.size).resize(
        (round(height * TILE_WIDTH / width), TILE_WIDTH)
    )
    border = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    rows = tile_rows(boxes)
    return contact_sheet(
        np.pad(transform.frames(frames), border),
        transform.boxes(boxes.found[rows]) + GAP,
        transform.boxes(boxes.annotated[rows]) + GAP,
        num_shown=len(rows),
        title=title,
    )
