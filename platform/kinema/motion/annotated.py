"""Annotated boxes, of the objects that matter, as a table: in place of motion, or to score it by.

A file of them is Parquet with the columns `BOX_COLUMNS`; a frame may have several rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kinema import storage
from kinema.errors import KinemaError
from kinema.motion.extractor import FrameBoxes, MotionConfig
from kinema.motion.flow import AnnotatedBoxes

BOX_COLUMNS = ("id", "frame", "left", "top", "right", "bottom")
"""Of the video, of the frame in its file from 0 on, and the edges in pixels, half-open."""

Rows = npt.NDArray[np.float64]
"""(n, 5): frame and edges of every annotated box of a video, by frame."""


def located(config: MotionConfig, manifest_uri: str) -> MotionConfig:
    """The same with a file of annotated boxes found beside the manifest that names it so."""
    if not isinstance(config.flow, AnnotatedBoxes):
        return config
    folder = storage.absolute(manifest_uri).rpartition("/")[0]
    name = config.flow.file
    file = name if "://" in name or name.startswith("/") else storage.join(folder, name)
    return config.model_copy(update={"flow": AnnotatedBoxes(file=file)})


def read_boxes(uri: str) -> dict[str, Rows]:
    """The annotated boxes by video.

    Raises:
        KinemaError: a column is missing, or a box is empty.
    """
    table = storage.read_table(uri)
    missing = [name for name in BOX_COLUMNS if name not in table.column_names]
    if missing:
        raise KinemaError(f"{uri} has no column {missing[0]!r}; it needs {', '.join(BOX_COLUMNS)}")
    table = table.sort_by([("id", "ascending"), ("frame", "ascending")])
    columns = [table[name].to_numpy().astype(np.float64) for name in BOX_COLUMNS[1:]]
    rows = np.stack(columns, axis=1)
    empty = (rows[:, 1] >= rows[:, 3]) | (rows[:, 2] >= rows[:, 4])
    if empty.any() or np.isnan(rows).any():
        first = int(np.flatnonzero(empty | np.isnan(rows).any(axis=1))[0])
        of = table["id"][first].as_py()
        raise KinemaError(f"{uri}: the box of {of}, {rows[first].tolist()}, is empty")
    # A published annotation has millions of boxes: their ids are compared as numbers.
    ids = table["id"].combine_chunks().dictionary_encode()
    starts = np.flatnonzero(np.diff(ids.indices.to_numpy(), prepend=-1))
    found = ids.take(pa.array(starts)).to_pylist()
    return dict(zip(found, np.split(rows, starts)[1:], strict=True))


def boxes_by_frame(rows: Rows) -> dict[int, list[tuple[float, float, float, float]]]:
    """Left, top, right, bottom of all boxes of every annotated frame."""
    found: dict[int, list[tuple[float, float, float, float]]] = {}
    for frame, left, top, right, bottom in rows.tolist():
        found.setdefault(int(frame), []).append((left, top, right, bottom))
    return found


def frame_boxes(rows: Rows, span: Sequence[int]) -> FrameBoxes:
    """One box around all that are annotated, for every frame of `span`; NaN where none is."""
    boxes = np.full((len(span), 4), np.nan, dtype=np.float32)
    place = {frame: index for index, frame in enumerate(span)}
    for frame, found in boxes_by_frame(rows).items():
        if frame in place:
            edges = np.array(found)
            boxes[place[frame]] = [*edges[:, :2].min(axis=0), *edges[:, 2:].max(axis=0)]
    peaks = np.isfinite(boxes[:, 0]).astype(np.float32)
    return FrameBoxes(np.array(span, dtype=np.int32), boxes, peaks)
