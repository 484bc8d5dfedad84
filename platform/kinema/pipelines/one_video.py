"""Motion extraction of one video. Knows no Ray."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np

from kinema.config import fingerprint
from kinema.errors import KinemaError
from kinema.motion.annotated import Rows, frame_boxes, read_boxes
from kinema.motion.extractor import (
    FrameBoxes,
    MotionConfig,
    extract_boxes_from_vectors,
    extract_motion,
)
from kinema.motion.fields import StoredFields
from kinema.motion.flow import AnnotatedBoxes, CodecVectors
from kinema.motion.parts import MotionRow
from kinema.motion.vectors import iterate_fields
from kinema.video.decode import content_digest, iterate_frames, iterate_vectors
from kinema.video.manifest import Entry

Moving = TypeVar("Moving", FrameBoxes, StoredFields)


def motion_digest(entry: Entry, config: MotionConfig) -> str:
    """What the motion of an entry is made from: its video, and its annotation where that is used.

    Raises:
        KinemaError: either cannot be read.
    """
    video = video_digest(entry)
    if not isinstance(config.flow, AnnotatedBoxes):
        return video
    rows = _annotation(config.flow.file).get(entry.id)
    return fingerprint(video, [] if rows is None else rows.tolist())


def video_digest(entry: Entry) -> str:
    """What the boxes of an entry are made from: the bytes, and its trimming where it has any.

    Raises:
        KinemaError: it cannot be read.
    """
    if entry.start_s is None and entry.end_s is None:
        return content_digest(entry.path)
    try:
        found = os.stat(entry.path)
    except OSError:  # a URI; or whatever is wrong with it, reading says
        content = content_digest(entry.path)
    else:
        content = _digest_of_many(entry.path, found.st_size, found.st_mtime_ns)
    return fingerprint(content, entry.start_s, entry.end_s)


@lru_cache(maxsize=4096)
def _digest_of_many(path: str, size: int, changed_ns: int) -> str:
    """Of a file that many entries are parts of: it may be hours long, and is read once."""
    return content_digest(path)


def extract_one(entry: Entry, config: MotionConfig) -> MotionRow:
    """Decode one video and find its motion; frame indices are those of the whole file.

    Args:
        entry: the video.
        config: of the motion, `located`.

    Raises:
        KinemaError: the video cannot be read, or has too few frames.
    """
    digest = motion_digest(entry, config)
    span, fields = entry.frame_range(), None
    if isinstance(config.flow, CodecVectors):
        boxes = _from(span.start, _from_vectors(entry, config))
    elif isinstance(config.flow, AnnotatedBoxes):
        boxes = _from_annotation(entry, config.flow.file)
    else:
        found = extract_motion(iterate_frames(entry.path, span.start, span.stop), config)
        boxes = _from(span.start, found.boxes)
        fields = None if found.fields is None else _from(span.start, found.fields)
    return MotionRow(
        id=entry.id,
        video_digest=digest,
        width=entry.width,
        height=entry.height,
        num_frames=entry.num_frames,
        fps=entry.fps,
        boxes=boxes,
        fields=fields,
    )


def _from(start: int, found: Moving) -> Moving:
    """The same with frames counted from the start of the file."""
    return replace(found, frames=(found.frames + start).astype(np.int32))


def _from_annotation(entry: Entry, file: str) -> FrameBoxes:
    rows = _annotation(file).get(entry.id)
    if rows is None:
        raise KinemaError(f"{file} has no box of it; leave the video out of the manifest")
    return frame_boxes(rows, entry.frame_range())


@cache
def _annotation(file: str) -> dict[str, Rows]:
    """All boxes of a file, once per process."""
    return read_boxes(file)


def _from_vectors(entry: Entry, config: MotionConfig) -> FrameBoxes:
    assert isinstance(config.flow, CodecVectors)
    span = entry.frame_range()
    frames = iterate_vectors(entry.path, span.start, span.stop)
    fields = (field for _, field in iterate_fields(frames, config.flow.grid))
    next(fields)  # links the first frame to the one before the range
    return extract_boxes_from_vectors(fields, entry.height, entry.width, config)
