"""The same work on every video of a manifest with Ray Data: one actor per core, parts as they end.

An actor takes a batch of entries, runs each in a child process (`isolation`), and stores what came
out as one part, whose name depends on the videos in it alone. So a job that was killed goes on
where its last parts ended, and a batch that Ray repeats replaces its own part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray
import ray.data

from kinema.config import fingerprint
from kinema.errors import KinemaError
from kinema.pipelines.cluster import live_nodes, nodes
from kinema.pipelines.isolation import Isolated, Packed
from kinema.pipelines.progress import Progress
from kinema.video.manifest import Entry
from kinema.wording import counted

Result = TypeVar("Result")

PARTS_PER_ACTOR = 20
LARGEST_PART = 64
"""Videos in one part at most. Fewer lose less when a job is killed, more make fewer files."""
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

Failure = tuple[str, str, str]
"""Id, path and reason."""


@dataclass(frozen=True)
class VideoJob(Generic[Result]):
    """What is done with every video.

    Attributes:
        work: on one video; see `Packed`.
        write: stores the results of a part, whole or not at all, under its name.
        timeout_s: limit per video.
    """

    work: Packed[Result]
    write: Callable[[Sequence[Result], str], object]
    timeout_s: float


class VideoActor:
    """One core's share: a batch of manifest rows in, a part stored and a summary out."""

    def __init__(self, job: VideoJob[Any]) -> None:
        self._isolated = Isolated(job.work, job.timeout_s)
        self._write = job.write
        self._worker = ray.get_runtime_context().get_actor_id()

    def __del__(self) -> None:
        self._isolated.close()  # Ray Data deletes the object when the actor ends

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A batch of `ENTRY_SCHEMA` in, one of `SUMMARY_SCHEMA` out."""
        outcomes = [self._isolated.run(Entry(**row)) for row in batch.to_pylist()]
        done = [outcome.result for outcome in outcomes if outcome.result is not None]
        if done:
            self._write(done, fingerprint([asdict(outcome.entry) for outcome in outcomes]))
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


def run_over(
    name: str,
    total: int,
    todo: Sequence[Entry],
    job: VideoJob[Any],
    num_cpus: int | None,
    num_gpus: float = 0.0,
) -> list[Failure]:
    """Work through `todo`, showing progress; returns what failed, sorted.

    Args:
        name: of the work, for the terminal.
        total: videos of the manifest, done before or not.
        todo: those to do.
        job: what to do with each.
        num_cpus: cores to use; all that the cluster has or can have by default.
        num_gpus: share of a GPU that each core's actor takes beside it.
    """
    num_actors = _num_actors(len(todo), num_cpus, num_gpus)
    print(
        f"{name}: {counted(total, 'video')}, {total - len(todo)} done before, {len(todo)} to do"
        + (f" on {counted(num_actors, 'core')}" if todo else ""),
        flush=True,
    )
    failures: list[Failure] = []
    paths = {entry.id: entry.path for entry in todo}
    with Progress(name, len(todo)) as progress:
        for summary in stream(todo, job, num_actors, num_gpus):
            why = summary["why"]
            if why is not None:
                failures.append((summary["id"], paths[summary["id"]], why))
            progress.advance(failed=why is not None)
    return sorted(failures)


def stream(
    entries: Sequence[Entry],
    job: VideoJob[Any],
    num_actors: int,
    num_gpus: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Work through `entries`; yields a `SUMMARY_SCHEMA` row per video as parts end.

    The manifest's rows go in as ready blocks: a reading task would need a core of its own, which a
    small cluster full of actors does not have, and `from_arrow` starts processes to count the rows.
    """
    if not entries:
        return
    size = min(LARGEST_PART, math.ceil(len(entries) / (num_actors * PARTS_PER_ACTOR)))
    blocks = [
        pa.Table.from_pylist([asdict(e) for e in entries[at : at + size]], schema=ENTRY_SCHEMA)
        for at in range(0, len(entries), size)
    ]
    with _quiet():
        summaries = ray.data.from_blocks(blocks).map_batches(
            VideoActor,
            fn_constructor_args=(job,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=num_actors,
                initial_size=num_actors,
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=1,
            num_gpus=num_gpus or None,
        )
        for batch in summaries.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(batch, pa.Table)
            yield from batch.to_pylist()


def digests(
    entries: Sequence[Entry], digest: Callable[[Entry], str | None]
) -> dict[str, str | None]:
    """Digest by id, made all over the cluster; None for a video that cannot be read any more."""

    def some(chunk: Sequence[Entry]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for entry in chunk:
            try:
                found[entry.id] = digest(entry)
            except KinemaError:
                found[entry.id] = None  # the work itself will say why
        return found

    task = ray.remote(num_cpus=1)(some)
    chunks = [
        list(entries[at : at + DIGESTS_PER_TASK]) for at in range(0, len(entries), DIGESTS_PER_TASK)
    ]
    found: dict[str, str | None] = {}
    for part in ray.get([task.remote(chunk) for chunk in chunks]):
        found |= part
    return found


def outdated(
    entries: Sequence[Entry],
    existing: Mapping[str, str],
    digest: Callable[[Entry], str | None],
) -> tuple[list[Entry], set[str]]:
    """Entries without a row of the right digest, and the ids of those with a wrong one."""
    stored = [entry for entry in entries if entry.id in existing]
    current = digests(stored, digest)
    changed = {entry.id for entry in stored if current[entry.id] != existing[entry.id]}
    return [e for e in entries if e.id not in existing or e.id in changed], changed


def judge(
    name: str,
    failures: Sequence[Failure],
    total: int,
    allowed: float,
    listed_in: str,
    key: str = "max_failure_ratio",
) -> None:
    """Fail when too much failed.

    Raises:
        KinemaError: more than `allowed` of `total`; names some, and where all are listed.
    """
    if len(failures) <= allowed * total:
        return
    some = "\n".join(f"  - {path}: {why}" for _, path, why in failures[:SHOWN_FAILURES])
    rest = len(failures) - SHOWN_FAILURES
    raise KinemaError(
        f"{name}: {len(failures)} of {counted(total, 'video')} failed, more than "
        f"max_failure_ratio {allowed:g} allows:\n{some}"
        + (f"\n  and {rest} more" if rest > 0 else "")
        + f"\nAll are listed in {listed_in}; the others are stored. Repair them "
        f"or take them out of the manifest, then run again; or raise {key}."
    )


def _num_actors(num_videos: int, num_cpus: int | None, num_gpus: float) -> int:
    """One per core, or per share of a GPU. Work without a GPU starts no node that has one."""
    present = live_nodes()
    startable = nodes()[len(present) :]
    counted = [*present, *(n for n in startable if num_gpus or not n.get("GPU"))]
    places = sum(int(node.get("CPU", 0)) for node in counted)
    if num_gpus:
        places = sum(
            min(int(node.get("CPU", 0)), int(node.get("GPU", 0) / num_gpus)) for node in counted
        )
    return max(1, min(places, num_cpus or places, num_videos))


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
