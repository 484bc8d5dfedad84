"""What must exist before training: storage, a cluster, the manifest, and the motion it reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow.compute as pc
import torch
from torch import nn

from kinema import storage
from kinema.config import fingerprint
from kinema.errors import ConfigError
from kinema.experiment import DataConfig, Experiment
from kinema.models.backbones import build_encoder
from kinema.models.classifier import Classifier, PlainHead
from kinema.models.weights import MIN_SHARE, check_encoder_weights, saw_labels
from kinema.motion.extractor import MotionConfig
from kinema.pipelines.cluster import connect
from kinema.pipelines.extract import extract
from kinema.video.manifest import Manifest
from kinema.video.synthetic import MANIFEST_FILE, SYNTHETIC_VERSION, make

MANY_PARTS = 4
"""Clips per file from which on cutting them out first is worth its while."""


@dataclass(frozen=True)
class Prepared:
    """Data that all runs of a job share. Every path is absolute."""

    manifest_uri: str
    manifest: Manifest


class HasRoot(Protocol):
    """A config that says where durable files go."""

    @property
    def root(self) -> str:
        """Absolute storage root."""
        ...


def start(config: HasRoot, output: str | None = None) -> None:
    """Make sure that results can be written, then connect to the cluster: what a job does first.

    Args:
        config: of the job.
        output: folder or URI beside the storage root to which it writes.

    Raises:
        StorageError: one of the two cannot be written, or Ray cannot open the root.
        ClusterError: as `connect`.
    """
    storage.check_native(config.root, "storage root")
    storage.check_writable(
        config.root, "storage root", "set KINEMA_STORAGE or storage= to another one"
    )
    if output is not None:
        storage.check_writable(output, "output", "give another one")
    connect()


def check_encoders(experiments: Iterable[Experiment], frozen: bool = False) -> None:
    """Make sure, before anything starts, that given encoders fit, and say what they are.

    Args:
        experiments: resolved.
        frozen: the encoder alone is used, not a classifier built on it.

    Raises:
        WeightsError: one has another architecture, or lacks too much.
        StorageError: one is missing.
    """
    given: dict[tuple[str, str, float], Experiment] = {}
    for experiment in experiments:
        if experiment.encoder is not None:
            tuned = None if frozen else experiment.finetune
            least = MIN_SHARE if tuned is None else tuned.min_matched_share
            given[experiment.encoder, fingerprint(experiment.model), least] = experiment
    for (path, _, least), experiment in given.items():
        with torch.device("meta"):  # shapes alone
            network: nn.Module = (
                build_encoder(experiment.model)
                if frozen or experiment.finetune is None
                else Classifier(experiment.model, PlainHead(), num_classes=2)
            )
        share = check_encoder_weights(network, path, least)
        print(f"{path}: {share:.1%} of the encoder's tensors matched", flush=True)
        if saw_labels(path):
            print(
                "  it is part of a classifier and was trained with labels: what it reaches is no"
                " measure of pretraining without them",
                flush=True,
            )


def prepare(
    experiments: Sequence[Experiment],
    check: Callable[[Experiment, Manifest], object] | None = None,
    reads_motion: Callable[[Experiment], bool] = lambda experiment: experiment.reads_motion,
) -> Prepared:
    """Make or read the manifest and extract, once, every kind of motion that `experiments` read.

    Args:
        experiments: all on the same videos.
        check: called with each experiment and the manifest before the extraction; raises
            KinemaError when the videos do not suit it.
        reads_motion: which of them read the motion that they name; those that train or test with it
            by default.

    Raises:
        ConfigError: the experiments disagree about the data.
        KinemaError: the manifest is malformed, or too many videos failed.
    """
    for experiment in experiments[1:]:
        if experiment.data.manifest != experiments[0].data.manifest or (
            experiment.data.synthetic != experiments[0].data.synthetic
        ):
            raise ConfigError(["data: all trials of a sweep must use the same videos"])
    uri = prepare_manifest(experiments[0])
    manifest = Manifest.read(uri)
    _warn_of_parts(manifest)
    if check is not None:
        for experiment in experiments:
            check(experiment, manifest)
    for config, experiment in _distinct_motion(e for e in experiments if reads_motion(e)):
        extract_motion(uri, config, experiment)
    return Prepared(uri, manifest)


def extract_motion(
    manifest_uri: str,
    config: MotionConfig,
    experiment: Experiment,
    only: Collection[str] | None = None,
) -> None:
    """Extract a kind of motion as the experiment's settings say; see `extract`."""
    run = experiment.extraction
    extract(
        manifest_uri,
        config,
        experiment.root,
        only=only,
        num_cpus=run.num_cpus,
        timeout_s=run.timeout_s,
        max_failure_ratio=run.max_failure_ratio,
    )


class HasData(HasRoot, Protocol):
    """A config that names videos and where durable files go."""

    @property
    def data(self) -> DataConfig:
        """Which videos."""
        ...


def prepare_manifest(experiment: HasData) -> str:
    """URI of the manifest; the embedded known-answer set is made when none is named.

    Raises:
        ConfigError: neither is named.
    """
    if experiment.data.manifest is not None:
        return storage.absolute(experiment.data.manifest)
    experiment.data.require_videos()
    assert experiment.data.synthetic is not None
    return make(experiment.data.synthetic, _synthetic_root(experiment))


def known_manifest(experiment: HasData) -> Manifest | None:
    """The manifest, or None where it is that of a known-answer set which is not made yet."""
    if experiment.data.manifest is not None:
        return Manifest.read(storage.absolute(experiment.data.manifest))
    uri = storage.join(_synthetic_root(experiment), MANIFEST_FILE)
    return Manifest.read(uri) if storage.exists(uri) else None


def _synthetic_root(experiment: HasData) -> str:
    settings = fingerprint(experiment.data.synthetic, SYNTHETIC_VERSION)
    return storage.join(experiment.root, "synthetic", settings)


def _distinct_motion(experiments: Iterable[Experiment]) -> list[tuple[MotionConfig, Experiment]]:
    found: dict[str, tuple[MotionConfig, Experiment]] = {}
    for experiment in experiments:
        if experiment.motion is not None:
            found.setdefault(fingerprint(experiment.motion), (experiment.motion, experiment))
    return list(found.values())


def _warn_of_parts(manifest: Manifest) -> None:
    """Say when clips are cut anew from long files at every reading."""
    table = manifest.table
    cut = pc.or_(pc.is_valid(table["start_s"]), pc.is_valid(table["end_s"]))
    paths = table.filter(cut)["path"]
    if len(paths) > MANY_PARTS * len(paths.unique()):
        print(
            f"{len(paths)} clips are parts of {len(paths.unique())} files, and each reading goes"
            " through the whole file: jobs/prepare_videos.py cuts them out once",
            flush=True,
        )
