"""A frozen network asked about every video of a manifest, over the cluster, each exactly once.

Answers lie under `<root>/readouts/<key>/`, a row per video in parts that are written as they end:
a job that was killed goes on, and asking the same question again reads what is there. A video that
cannot be read has no row; it is named with the reason and tried again the next time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kinema import storage
from kinema.config import Config, fingerprint
from kinema.errors import KinemaError
from kinema.evaluation.readout import READOUT_VERSION, Question, ReadoutConfig, ask, build_network
from kinema.experiment import ComputeConfig
from kinema.motion.annotated import located
from kinema.motion.extractor import MotionConfig
from kinema.motion.store import MotionStore
from kinema.pipelines.cluster import require
from kinema.pipelines.isolation import Packed
from kinema.pipelines.ledger import Parts
from kinema.pipelines.one_video import motion_digest, video_digest
from kinema.pipelines.over_videos import VideoJob, outdated, run_over
from kinema.video.manifest import Entry, Manifest


class ReadingConfig(Config):
    """How a network is asked over the cluster; changes nothing in its answers."""

    num_cpus: PositiveInt | None = Field(None, description="cores to use; all by default")
    gpus_per_worker: NonNegativeFloat | None = Field(
        None,
        description="share of a GPU per core, such as 0.25; 0 = on the CPU;"
        " null = 1 / compute.cpus_per_worker where compute.use_gpu",
    )
    timeout_s: PositiveFloat = Field(600.0, description="limit per video")

    def on(self, compute: ComputeConfig) -> ReadingConfig:
        """With a share of a GPU: as given, else what a core of training has beside it."""
        if self.gpus_per_worker is not None:
            return self
        share = min(1.0, 1 / compute.cpus_per_worker) if compute.use_gpu else 0.0
        return self.model_copy(update={"gpus_per_worker": share})


@dataclass(frozen=True)
class Readout:
    """What a network said.

    Attributes:
        entries: the videos that were read, in the order they were asked for.
        values: (videos, views, ...) float32; tokens float16, as they are kept.
        failures: id -> reason of each video that could not be read.
    """

    entries: list[Entry]
    values: NDArray[np.floating]
    failures: dict[str, str]

    @property
    def ids(self) -> list[str]:
        """Of the videos that were read."""
        return [entry.id for entry in self.entries]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(videos,); -1 where there is none."""
        labels = [-1 if entry.label is None else entry.label for entry in self.entries]
        return np.array(labels, dtype=np.int64)

    def check_any(self, entries: Sequence[Entry]) -> None:
        """Check that at least one of `entries`, all of them asked about, was read.

        Raises:
            KinemaError: none was; says why the first one was not.
        """
        lost = [entry.id for entry in entries if entry.id in self.failures]
        if lost and len(lost) == len(entries):
            raise KinemaError(
                f"none of {len(entries)} videos could be read, first {lost[0]}:"
                f" {self.failures[lost[0]]}"
            )


def readout_key(config: ReadoutConfig, motion: MotionConfig | None, manifest_digest: str) -> str:
    """Names the answers: the network's weights, not where they lie, settings and videos."""
    weights = None if config.weights is None else storage.content_digest(config.weights)
    settings = config.model_dump(mode="json", exclude={"weights"})
    settings["views"].pop("micro_batch_size")
    return fingerprint("readout", READOUT_VERSION, settings, weights, motion, manifest_digest)


def require_reader(reading: ReadingConfig, name: str) -> float:
    """Make sure that the cluster can give an actor what it asks for; returns its share of a GPU.

    Raises:
        ClusterError: it never can.
    """
    share = reading.gpus_per_worker or 0.0
    require([{"CPU": 1.0} | ({"GPU": share} if share else {})], name)
    return share


def read_out(
    name: str,
    manifest_uri: str,
    entries: Sequence[Entry],
    config: ReadoutConfig,
    root: str,
    reading: ReadingConfig,
    motion: MotionConfig | None = None,
) -> Readout:
    """Ask a network about `entries` on the connected cluster.

    Args:
        name: of the work, for the terminal.
        manifest_uri: absolute; what `entries` are rows of.
        entries: the videos.
        config: of the network; its weights an absolute path or URI.
        root: absolute storage root.
        reading: how; `ReadingConfig.on` has settled where.
        motion: whose store the network's head reads; extracted before.

    Raises:
        ClusterError: the cluster can never give an actor what it asks for.
        WeightsError: the weights are of another network.
        KinemaError: an answer is not finite.
    """
    share = require_reader(reading, name)
    manifest = Manifest.read(manifest_uri).digest
    key = readout_key(config, motion, manifest)
    uri = storage.join(root, "readouts", key)
    parts = Parts(uri, _schema(config))
    work = None if motion is None else located(motion, manifest_uri)
    digest = partial(_digest, work=work)
    todo, _ = outdated(entries, parts.digests(), digest)
    if todo:
        build_network(config)  # weights that do not fit are no fault of any video
    parts.drop(entry.id for entry in todo)
    store = None if motion is None else MotionStore(root, motion, manifest)
    question = Question(config, [entry.id for entry in todo], store)
    job = VideoJob(Packed.of(answer, (question, work)), parts.write, reading.timeout_s)
    failed = run_over(name, len(entries), todo, job, reading.num_cpus, num_gpus=share)
    return _assemble(parts, entries, {id: why for id, _, why in failed})


def answer(entry: Entry, asked: tuple[Question, MotionConfig | None]) -> dict[str, Any]:
    """Ask about one video; returns its row.

    Raises:
        VideoError: it cannot be read.
    """
    question, work = asked
    said = ask(entry, question)
    kind = _schema(question.readout).field("values").type.value_type.to_pandas_dtype()
    return {
        "id": entry.id,
        "digest": _digest(entry, work),
        "shape": said.shape,
        "values": said.astype(kind).reshape(-1),
    }


def _schema(config: ReadoutConfig) -> pa.Schema:
    """A row of answers; tokens are many, and kept in half precision."""
    number = pa.float16() if config.output == "tokens" else pa.float32()
    return pa.schema(
        [
            ("id", pa.string()),
            ("digest", pa.string()),
            ("shape", pa.list_(pa.int32())),
            ("values", pa.list_(number)),
        ]
    )


def _digest(entry: Entry, work: MotionConfig | None) -> str:
    return video_digest(entry) if work is None else motion_digest(entry, work)


def _assemble(parts: Parts, entries: Sequence[Entry], failures: dict[str, str]) -> Readout:
    table = parts.read(["id", "shape", "values"])
    place = {id: row for row, id in enumerate(table["id"].to_pylist())}
    read = [entry for entry in entries if entry.id in place and entry.id not in failures]
    lost = [e.id for e in entries if e.id not in place and e.id not in failures]
    assert not lost, f"neither read nor failed: {lost[:3]}"
    if not read:
        return Readout([], np.zeros((0, 0), np.float32), failures)
    rows = [place[entry.id] for entry in read]
    shape = table["shape"][rows[0]].as_py()
    # by parts: one list array of them all would overflow Arrow's 32-bit offsets
    flat = [chunk.flatten().to_numpy() for chunk in table["values"].chunks]
    values = np.concatenate(flat).reshape(len(table), *shape)
    if rows != list(range(len(table))):  # tokens fill much of the memory: no copy without need
        values = values[rows]
    broken = [e.id for e, said in zip(read, values, strict=True) if not np.isfinite(said).all()]
    if broken:
        raise KinemaError(
            f"the network's answers are not finite for {len(broken)} of {len(read)} videos, first"
            f" {broken[0]}: its training has diverged, or its weights are damaged"
        )
    return Readout(read, values, failures)
