"""Motion extraction of a whole manifest with Ray Data into the motion store.

The driver decides what is to do: a video whose row carries the digest of its bytes, the parameters
and the extractor's version is done. Actors, one per core, extract the rest in batches and write
each batch as one part file, whose name depends on the videos in it alone. So a job that was killed
goes on where its last parts ended, and a batch that Ray repeats replaces its own part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
import ray.data

from kinema.config import fingerprint
from kinema.errors import KinemaError
from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import CodecVectors
from kinema.motion.store import MotionStore, row_digest
from kinema.pipelines.cluster import max_resources, require, resources
from kinema.pipelines.isolation import IsolatedExtractor, video_digest
from kinema.pipelines.progress import Progress
from kinema.storage import absolute
from kinema.video.manifest import Entry, Manifest

PARTS_PER_ACTOR = 20
LARGEST_PART = 64
"""Videos in one part file at most. Fewer lose less when a job is killed, more make fewer files."""
DIGESTS_PER_TASK = 256
SHOWN_FAILURES = 5
_QUIETED = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # it warns that its bars are off
}

ENTRY_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("path", pa.string()),
        pa.field("split", pa.string()),
        pa.field("label", pa.int32()),
        pa.field("group", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("num_frames", pa.int32()),
        pa.field("fps", pa.float64()),
    ]
)
SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("why", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("finished_at", pa.float64()),
        pa.field("worker", pa.string()),
    ]
)
"""What an actor says of each video; `why` is null for one that is stored."""


def extract(
    manifest_uri: str,
    motion_config: MotionConfig,
    storage_root: str,
    *,
    num_cpus: int | None = None,
    timeout_s: float = 600.0,
    max_failure_ratio: float = 0.0,
) -> MotionStore:
    """Bring the motion store up to date with a manifest, on the connected cluster.

    A row of a video whose bytes changed is dropped and made again. Videos that fail are listed in
    the store's `failures.parquet`, and tried again the next time.

    Args:
        num_cpus: cores to use; all that the cluster has or can have by default.
        timeout_s: limit per video.
        max_failure_ratio: share of the manifest's videos that may fail.

    Raises:
        KinemaError: more failed, after everything that worked was stored.
        ClusterError: the cluster has no core.
    """
    if not isinstance(motion_config.flow, CodecVectors):
        motion_config.flow.estimator()  # an OpenCV without it says so here, not once per video
    require([{"CPU": 1}], "motion extraction")
    entries = Manifest.read(manifest_uri).rows()
    storage_root = absolute(storage_root)
    store = MotionStore(storage_root, motion_config)
    todo = _outdated(entries, store)
    num_actors = _num_actors(len(todo), num_cpus)
    print(
        f"motion: {len(entries)} videos, {len(entries) - len(todo)} done before, {len(todo)} to do"
        + (f" on {num_actors} core{'s' if num_actors != 1 else ''}" if todo else ""),
        flush=True,
    )
    failures: list[tuple[str, str, str]] = []
    paths = {entry.id: entry.path for entry in todo}
    with Progress("motion", len(todo)) as progress:
        for summary in stream(todo, motion_config, storage_root, num_actors, timeout_s):
            why = summary["why"]
            if why is not None:
                failures.append((summary["id"], paths[summary["id"]], why))
            progress.advance(failed=why is not None)
    if todo or failures:
        store.write_failures(sorted(failures))
    _judge(failures, len(entries), max_failure_ratio, store)
    return store


def stream(
    entries: Sequence[Entry],
    config: MotionConfig,
    storage_root: str,
    num_actors: int,
    timeout_s: float,
) -> Iterator[dict[str, Any]]:
    """Extract `entries` into the store; yields a `SUMMARY_SCHEMA` row per video of each part.

    The manifest's rows go in as ready blocks: a reading task would need a core of its own, which a
    small cluster full of extractors does not have.
    """
    if not entries:
        return
    size = min(LARGEST_PART, math.ceil(len(entries) / (num_actors * PARTS_PER_ACTOR)))
    blocks = [
        pa.Table.from_pylist([asdict(e) for e in entries[at : at + size]], schema=ENTRY_SCHEMA)
        for at in range(0, len(entries), size)
    ]
    with _quiet():
        summaries = ray.data.from_arrow(blocks).map_batches(
            _Extractor,
            fn_constructor_args=(storage_root, config, timeout_s),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=num_actors,
                initial_size=num_actors,
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=1,
        )
        for batch in summaries.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(batch, pa.Table)
            yield from batch.to_pylist()


class _Extractor:
    """One core's work: a batch of manifest rows in, a part file and a summary out."""

    def __init__(self, storage_root: str, config: MotionConfig, timeout_s: float) -> None:
        self._store = MotionStore(storage_root, config)
        self._extractor = IsolatedExtractor(config, timeout_s)
        self._worker = ray.get_runtime_context().get_actor_id()

    def __del__(self) -> None:
        self._extractor.close()  # Ray Data deletes the object when the actor ends

    def __call__(self, batch: pa.Table) -> pa.Table:
        outcomes = [self._extractor.extract(Entry(**row)) for row in batch.to_pylist()]
        rows = [outcome.row for outcome in outcomes if outcome.row is not None]
        if rows:
            self._store.write_part(rows, fingerprint([outcome.entry.id for outcome in outcomes]))
        summaries = [
            {
                "id": outcome.entry.id,
                "why": outcome.why,
                "seconds": outcome.seconds,
                "finished_at": outcome.finished_at,
                "worker": self._worker,
            }
            for outcome in outcomes
        ]
        return pa.Table.from_pylist(summaries, schema=SUMMARY_SCHEMA)


def _outdated(entries: Sequence[Entry], store: MotionStore) -> list[Entry]:
    """Entries without a row of the right digest; rows of another digest are dropped."""
    existing = store.existing()
    stored = [entry for entry in entries if entry.id in existing]
    current = _digests(stored, store.cfg)
    changed = {entry.id for entry in stored if current[entry.id] != existing[entry.id]}
    store.drop(changed)
    return [entry for entry in entries if entry.id not in existing or entry.id in changed]


def _digests(entries: Sequence[Entry], config: MotionConfig) -> dict[str, str | None]:
    """Row digest by id from the videos' bytes as they are now, hashed all over the cluster."""
    digest = ray.remote(num_cpus=1)(_row_digests)
    chunks = [
        list(entries[at : at + DIGESTS_PER_TASK]) for at in range(0, len(entries), DIGESTS_PER_TASK)
    ]
    found: dict[str, str | None] = {}
    for part in ray.get([digest.remote(chunk, config) for chunk in chunks]):
        found |= part
    return found


def _row_digests(entries: Sequence[Entry], config: MotionConfig) -> dict[str, str | None]:
    """None for a video that cannot be read any more: its extraction will say why."""
    found: dict[str, str | None] = {}
    for entry in entries:
        try:
            found[entry.id] = row_digest(video_digest(entry), config)
        except KinemaError:
            found[entry.id] = None
    return found


def _num_actors(num_videos: int, num_cpus: int | None) -> int:
    cores = int((max_resources() or resources())["CPU"])
    return max(1, min(cores, num_cpus or cores, num_videos))


def _judge(
    failures: Sequence[tuple[str, str, str]], total: int, allowed: float, store: MotionStore
) -> None:
    if len(failures) <= allowed * total:
        return
    some = "\n".join(f"  - {path}: {why}" for _, path, why in failures[:SHOWN_FAILURES])
    rest = len(failures) - SHOWN_FAILURES
    raise KinemaError(
        f"motion extraction: {len(failures)} of {total} videos failed, more than "
        f"max_failure_ratio {allowed:g} allows:\n{some}"
        + (f"\n  and {rest} more" if rest > 0 else "")
        + f"\nAll are listed in {store.uri}/failures.parquet; the others are stored. Repair them "
        "or take them out of the manifest, then run again; or raise extraction.max_failure_ratio."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's own bars and notes: the progress here has rate and time left."""
    context = ray.data.DataContext.get_current()
    bars = context.enable_progress_bars
    levels = {name: logging.getLogger(name).level for name in _QUIETED}
    context.enable_progress_bars = False
    for name, level in _QUIETED.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
