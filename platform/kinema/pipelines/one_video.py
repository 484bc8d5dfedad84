"""Motion extraction of one video. Knows no Ray."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from kinema.config import fingerprint
from kinema.motion.extractor import (
    Extraction,
    FrameBoxes,
    MotionConfig,
    extract_boxes_from_vectors,
    extract_motion,
)
from kinema.motion.fields import StoredFields
from kinema.motion.flow import CodecVectors
from kinema.motion.store import MotionRow
from kinema.motion.vectors import iterate_fields
from kinema.video.decode import content_digest, iterate_frames, iterate_vectors
from kinema.video.manifest import Entry

Moving = TypeVar("Moving", FrameBoxes, StoredFields)


def video_digest(entry: Entry) -> str:
    """What the boxes of an entry are made from: the bytes, and its trimming where it has any.

    Raises:
        KinemaError: it cannot be read.
    """
    content = content_digest(entry.path)
    if entry.start_s is None and entry.end_s is None:
        return content
    return fingerprint(content, entry.start_s, entry.end_s)


def extract_one(entry: Entry, config: MotionConfig) -> MotionRow:
    """Decode one video and find its motion; frame indices are those of the whole file.

    Raises:
        KinemaError: the video cannot be read, or has too few frames.
    """
    digest = video_digest(entry)
    span = entry.frame_range()
    if isinstance(config.flow, CodecVectors):
        found = Extraction(_from_vectors(entry, config))
    else:
        found = extract_motion(iterate_frames(entry.path, span.start, span.stop), config)
    return MotionRow(
        id=entry.id,
        video_digest=digest,
        width=entry.width,
        height=entry.height,
        num_frames=entry.num_frames,
        fps=entry.fps,
        boxes=_from(span.start, found.boxes),
        fields=None if found.fields is None else _from(span.start, found.fields),
    )


def _from(start: int, found: Moving) -> Moving:
    """The same with frames counted from the start of the file."""
    return replace(found, frames=(found.frames + start).astype(np.int32))


def _from_vectors(entry: Entry, config: MotionConfig) -> FrameBoxes:
    assert isinstance(config.flow, CodecVectors)
    span = entry.frame_range()
    frames = iterate_vectors(entry.path, span.start, span.stop)
    fields = (field for _, field in iterate_fields(frames, config.flow.grid))
    next(fields)  # links the first frame to the one before the range
    return extract_boxes_from_vectors(fields, entry.height, entry.width, config)
