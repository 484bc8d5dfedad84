"""A row of a manifest: its columns, and the object made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from kinema.errors import ManifestError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("split", pa.string()),
        ("label", pa.int32()),
        ("label_name", pa.string()),
        ("group", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),
        ("codec", pa.string()),
        ("digest", pa.string()),
    ]
)
"""Columns of a manifest; more are allowed. `digest` is the SHA-256 of the video's bytes."""

CLASSES_KEY = b"kinema.classes"
"""In the metadata of a manifest's schema: JSON list of the names of all defined classes."""

FAILURE_SCHEMA = pa.schema(
    [("id", pa.string()), ("path", pa.string()), ("split", pa.string()), ("why", pa.string())]
)

_EDGE = 1e-6
"""Frames; a time this close to a frame's edge is on it, whatever the floats say."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a manifest. Frame numbers count the whole file; times are in seconds."""

    id: str
    path: str
    split: str
    label: int | None
    group: str | None
    start_s: float | None
    end_s: float | None
    width: int
    height: int
    num_frames: int
    fps: float

    def frame_range(self) -> range:
        """Frames of the file that belong to the entry: all that are shown from start to end."""
        return trimmed(self.num_frames, self.fps, self.start_s, self.end_s)


def trimmed(num_frames: int, fps: float, start_s: float | None, end_s: float | None) -> range:
    """Frames of a file of `num_frames` that are shown between two times; may be empty."""
    first = 0 if start_s is None else math.floor(start_s * fps + _EDGE)
    stop = num_frames if end_s is None else math.ceil(end_s * fps - _EDGE)
    return range(max(first, 0), min(stop, num_frames))


def read_classes(table: pa.Table) -> tuple[str, ...] | None:
    """Names of the classes that a manifest's table defines, by label; None = it defines none.

    Raises:
        ManifestError: what is there is not a list of names.
    """
    text = (table.schema.metadata or {}).get(CLASSES_KEY)
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ManifestError(f"metadata {CLASSES_KEY.decode()} is not a JSON list of names")
    return tuple(names)


def with_classes(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The same with defined classes."""
    text = json.dumps(list(names), ensure_ascii=False).encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), CLASSES_KEY: text})
