"""Measure videos: every source becomes a row of a manifest, or a row of the failures table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from typing import Any

import pyarrow as pa

from kinema.errors import KinemaError, VideoError
from kinema.video import decode
from kinema.video.rows import FAILURE_SCHEMA, SCHEMA, trimmed
from kinema.video.sources import Source


def measure(
    sources: Sequence[Source], num_threads: int | None, decode_all: bool
) -> tuple[pa.Table, pa.Table]:
    """A table of `SCHEMA` and one of `FAILURE_SCHEMA`, both in the order of `sources`.

    Args:
        sources: the videos.
        num_threads: files at once; None = the number of cores.
        decode_all: decode every frame, see `decode.probe`.
    """
    # Threads suffice: FFmpeg and hashing leave the interpreter's lock.
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        measured = list(pool.map(partial(_measure_one, decode_all=decode_all), sources))
    rows = [row for row in measured if "why" not in row]
    failures = [row for row in measured if "why" in row]
    return (
        pa.Table.from_pylist(rows, schema=SCHEMA),
        pa.Table.from_pylist(failures, schema=FAILURE_SCHEMA),
    )


def _measure_one(source: Source, decode_all: bool) -> Mapping[str, Any]:
    """A row of `SCHEMA`, or one of `FAILURE_SCHEMA`."""
    given = {field.name: getattr(source, field.name) for field in fields(Source)}
    try:
        info = decode.probe(source.path, decode_all)
        span = trimmed(info.num_frames, info.fps, source.start_s, source.end_s)
        if len(span) < 2:
            asked = f"{source.start_s or 0:g} to {source.end_s or info.duration_s:g} s"
            raise VideoError(
                source.path, f"{asked} is {len(span)} frames of {info.duration_s:.2f} s"
            )
        digest = decode.content_digest(source.path)
    except VideoError as error:
        return given | {"why": error.why}
    except KinemaError as error:
        return given | {"why": str(error)}
    return given | {
        "width": info.width,
        "height": info.height,
        "num_frames": info.num_frames,
        "fps": info.fps,
        "codec": info.codec,
        "digest": digest,
    }
