"""Measure videos: every source becomes a row of a manifest, or a row of the failures table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from kinema.errors import KinemaError, VideoError
from kinema.video import decode
from kinema.video.rows import FAILURE_SCHEMA, SCHEMA, trimmed
from kinema.video.sources import Source


@dataclass(frozen=True, slots=True)
class _File:
    """A file that can be used."""

    info: decode.VideoInfo
    digest: str


def measure(
    sources: Sequence[Source], num_threads: int | None, decode_all: bool
) -> tuple[pa.Table, pa.Table]:
    """A table of `SCHEMA` and extra columns, and one of `FAILURE_SCHEMA`, in order of `sources`.

    A file that several sources are parts of is measured once.

    Args:
        sources: the videos.
        num_threads: files at once; None = the number of cores.
        decode_all: decode every frame, see `decode.probe`.
    """
    paths = list(dict.fromkeys(source.path for source in sources))
    # Threads suffice: FFmpeg and hashing leave the interpreter's lock.
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        measured = pool.map(partial(_measure_file, decode_all=decode_all), paths)
        files = dict(zip(paths, measured, strict=True))
    used, rows, failures = [], [], []
    for source in sources:
        row = _row(source, files[source.path])
        if "why" in row:
            failures.append(row)
        else:
            used.append(source)
            rows.append(row)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for name in sources[0].extra if sources else ():
        table = table.append_column(name, pa.array([source.extra[name] for source in used]))
    return table, pa.Table.from_pylist(failures, schema=FAILURE_SCHEMA)


def _measure_file(path: str, decode_all: bool) -> _File | str:
    """What a file is, or why it cannot be used."""
    try:
        return _File(decode.probe(path, decode_all), decode.content_digest(path))
    except VideoError as error:
        return error.why
    except KinemaError as error:
        return str(error)


def _row(source: Source, file: _File | str) -> Mapping[str, Any]:
    """A row of `SCHEMA`, or one of `FAILURE_SCHEMA`."""
    given = {
        "id": source.id,
        "path": source.path,
        "split": source.split,
        "label": source.label,
        "label_name": source.label_name,
        "group": source.group,
        "start_s": source.start_s,
        "end_s": source.end_s,
    }
    if isinstance(file, str):
        return given | {"why": file}
    info = file.info
    span = trimmed(info.num_frames, info.fps, source.start_s, source.end_s)
    if len(span) < 2:
        asked = f"{source.start_s or 0:g} to {source.end_s or info.duration_s:g} s"
        return given | {"why": f"{asked} is {len(span)} frames of {info.duration_s:.2f} s"}
    return given | {
        "width": info.width,
        "height": info.height,
        "num_frames": info.num_frames,
        "fps": info.fps,
        "codec": info.codec,
        "digest": file.digest,
    }
