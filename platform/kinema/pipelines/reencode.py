"""A whole data set re-encoded as `video.encode` does it, with Ray Data, and its new manifest.

Under the output folder lie `videos/<id>.mp4`, `manifest.parquet`, `failures.parquet`, and `done/`
with what was made from what: a video is done when its source's bytes and trimming, the settings
and the encoder's version are those on record, and the file still has the bytes it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from kinema import storage
from kinema.config import fingerprint
from kinema.errors import KinemaError, ManifestError, VideoError
from kinema.pipelines.cluster import require
from kinema.pipelines.isolation import Packed
from kinema.pipelines.ledger import Done, Ledger
from kinema.pipelines.one_video import video_digest
from kinema.pipelines.over_videos import Failure, VideoJob, digests, judge, run_over
from kinema.video.encode import ENCODER_VERSION, EncodeConfig, reencode
from kinema.video.manifest import FAILURE_SCHEMA, Entry, Manifest
from kinema.wording import counted

Measures = dict[str, Any]


def reencode_all(
    manifest_uri: str,
    config: EncodeConfig,
    output: str,
    *,
    num_cpus: int | None = None,
    timeout_s: float = 600.0,
    max_failure_ratio: float = 0.0,
) -> str:
    """Bring the output folder up to date, on the connected cluster; returns its manifest's URI.

    Ids, splits, labels and every further column stay; entries that were parts of a file become
    files of their own.

    Args:
        output: absolute folder or URI.
        num_cpus: cores to use; all that the cluster has or can have by default.
        timeout_s: limit per video.
        max_failure_ratio: share of the manifest's videos that may fail.

    Raises:
        ManifestError: two ids would be one file.
        KinemaError: too many videos failed, after everything that worked was stored.
    """
    manifest = Manifest.read(manifest_uri)
    entries = manifest.rows()
    _check_names(entries)
    require([{"CPU": 1}], "re-encoding")
    ledger = Ledger(storage.join(output, "done"))
    todo = _todo(entries, ledger.read(), output, config)
    ledger.drop(entry.id for entry in todo)
    job = VideoJob(Packed.of(encode_one, (output, config)), ledger.write, timeout_s)
    failures = run_over("re-encoding", len(entries), todo, job, num_cpus)
    kept = {entry.id for entry in entries}
    done = {id: row.result for id, row in ledger.read().items() if id in kept}
    failures_uri = storage.join(output, "failures.parquet")
    storage.write_table(failures_uri, _failure_table(failures, entries))
    judge("re-encoding", failures, len(entries), max_failure_ratio, failures_uri)
    uri = storage.join(output, "manifest.parquet")
    made = Manifest(_table(manifest, done, output))
    made.write(uri)
    print(_summary(list(done.values())))
    print(f"{uri}: {counted(len(made), 'video')}; digest {made.digest}")
    return uri


def encode_one(entry: Entry, into: tuple[str, EncodeConfig]) -> Done:
    """Re-encode one video into the output folder; returns its columns of the new manifest.

    Raises:
        KinemaError: it cannot be read, or is not what the manifest says.
    """
    output, config = into
    span = entry.frame_range()
    digest = _digest(entry, config)
    encoded = reencode(entry.path, entry.fps, config, span.start, span.stop)
    if encoded.num_frames != len(span):
        raise VideoError(
            entry.path,
            f"has {encoded.num_frames} of the {len(span)} frames that its manifest gives it;"
            " index the videos again",
        )
    uri = _video_uri(output, entry.id)
    storage.write_bytes(uri, encoded.data)
    measures = {
        "width": encoded.width,
        "height": encoded.height,
        "num_frames": encoded.num_frames,
        "digest": storage.content_digest(uri),
        "bytes": len(encoded.data),
        "source_seconds": encoded.source_seconds,
        "seconds": encoded.seconds,
    }
    return Done(entry.id, digest, measures)


def _digest(entry: Entry, config: EncodeConfig) -> str:
    return fingerprint(video_digest(entry), config, ENCODER_VERSION)


def _todo(
    entries: Sequence[Entry], existing: Mapping[str, Done], output: str, config: EncodeConfig
) -> list[Entry]:
    """Entries whose file is not there, or not what it should be."""
    listed = [entry for entry in entries if entry.id in existing]
    sources = digests(listed, partial(_digest, config=config))
    made = digests(listed, partial(_content, output=output))
    done = {
        id
        for id, row in existing.items()
        if (sources.get(id), made.get(id)) == (row.digest, row.result["digest"])
    }
    return [entry for entry in entries if entry.id not in done]


def _content(entry: Entry, output: str) -> str | None:
    uri = _video_uri(output, entry.id)
    return storage.content_digest(uri) if storage.exists(uri) else None


def _video_uri(output: str, id: str) -> str:
    name = id if id.lower().endswith(".mp4") else f"{id}.mp4"
    return storage.join(output, "videos", name)


def _check_names(entries: Sequence[Entry]) -> None:
    taken: dict[str, str] = {}
    for entry in entries:
        if entry.id.startswith("/") or ".." in entry.id.split("/"):
            raise ManifestError(f"id {entry.id!r} leads out of the output folder; rename it")
        uri = _video_uri("", entry.id)
        if taken.setdefault(uri, entry.id) != entry.id:
            raise ManifestError(
                f"ids {taken[uri]!r} and {entry.id!r} would both be {uri}; rename one of them"
            )


def _table(manifest: Manifest, done: dict[str, Measures], output: str) -> pa.Table:
    """The manifest's rows that were done, now of the new files."""
    rows = [row for row in manifest.table.to_pylist() if row["id"] in done]
    for row in rows:
        measures = done[row["id"]]
        row |= {key: measures[key] for key in ("width", "height", "num_frames", "digest")}
        row |= {
            "path": _video_uri(output, row["id"]),
            "codec": "h264",
            "start_s": None,
            "end_s": None,
        }
    return pa.Table.from_pylist(rows, schema=manifest.table.schema)


def _failure_table(failures: Sequence[Failure], entries: Sequence[Entry]) -> pa.Table:
    split = {entry.id: entry.split for entry in entries}
    rows = [{"id": id, "path": path, "split": split[id], "why": why} for id, path, why in failures]
    return pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA)


def _summary(done: Sequence[Measures]) -> str:
    """Size and decoding cost of all, in a line."""
    if not done:
        raise KinemaError("no video was re-encoded")
    frames, size, before, after = (
        sum(measures[key] for measures in done)
        for key in ("num_frames", "bytes", "source_seconds", "seconds")
    )
    return (
        f"{frames} frames, {size / 2**20:.1f} MiB; decoding took {1000 * before / frames:.2f} ms"
        f" per frame of the sources and takes {1000 * after / frames:.2f} ms now"
    )
