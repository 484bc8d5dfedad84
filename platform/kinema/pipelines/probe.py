"""Probes of a frozen encoder: features of every video, once, and a classifier fitted to them.

Under `<root>/probes/<key>/` lie `predictions.parquet`, as a test leaves them, and `result.json`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from ray.exceptions import RayTaskError

from kinema import storage, trial
from kinema.config import fingerprint
from kinema.errors import ConfigError
from kinema.evaluation.attentive_probe import AttentiveProbe
from kinema.evaluation.features import Features, features_of
from kinema.evaluation.linear_probe import LinearProbe
from kinema.evaluation.multiview import judge_probabilities
from kinema.evaluation.probes import Answer, Probe, leave_one_group_out, official
from kinema.evaluation.readout import ReadoutConfig
from kinema.experiment import AnyExperiment, Experiment
from kinema.models.weights import saw_labels
from kinema.pipelines.cluster import require
from kinema.pipelines.direct import tested_split
from kinema.pipelines.prepare import Prepared, check_encoders, prepare_manifest, start
from kinema.pipelines.readout import ReadingConfig, read_out, readout_key
from kinema.pipelines.single import accuracy_line, complete, encoder_line, unread_lines
from kinema.pipelines.study import begin, close, encoder_note, give_up
from kinema.pipelines.tracker import start_tracker
from kinema.pipelines.train import bundles
from kinema.training.pretrain import ENCODER_FILE, keep_clips
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import Sampling

PROBE_VERSION = 2
"""Part of every key; raise it when what a probe computes changes."""

UNSEEN, SEEN, UNKNOWN = "not seen in pretraining", "seen in pretraining", "perhaps seen"


class ProbeExperiment(AnyExperiment):
    """An experiment whose encoder is asked and not changed.

    The encoder is `encoder`, or what `pretrain` gives (made first where it is missing), or with
    both null one with random weights: the control without any pretraining.
    """

    probe: Probe = Field(default=LinearProbe(), discriminator="name")
    protocol: Literal["official", "leave_one_group_out"] = Field(
        "official",
        description="train and test split, or every group (such as a subject) by a probe that is"
        " fitted to all other groups",
    )
    sampling: Sampling | None = Field(
        None, description="of the clips that are asked about; null = that of finetune"
    )
    reading: ReadingConfig = ReadingConfig()

    @property
    def has_work(self) -> bool:
        """There is a probe."""
        return True

    @property
    def clips(self) -> Sampling:
        """How the clips that are asked about are sampled."""
        if self.sampling is not None:
            return self.sampling
        assert self.finetune is not None
        return self.finetune.sampling

    @model_validator(mode="after")
    def _can_be_asked(self) -> ProbeExperiment:
        if self.sampling is None and self.finetune is None:
            raise ValueError("sampling and finetune are both null: give sampling={name: ...}")
        try:
            self.probe.check(self.model)
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from error
        return self

    def pretraining(self) -> Experiment | None:
        """The run that gives the encoder; None where nothing is to be pretrained."""
        if self.pretrain is None:
            return None
        return self.plain().pretraining_only()

    def readout(self, weights: str | None) -> ReadoutConfig:
        """What is asked of the encoder."""
        attentive = isinstance(self.probe, AttentiveProbe)
        return ReadoutConfig(
            output=self.probe.reads,
            weights=weights,
            seed=self.seed if weights is None else 0,
            model=self.model,
            sampling=self.clips,
            views=self.evaluation,
            side=self.probe.side if attentive else None,  # type: ignore[union-attr]
        )


@dataclass(frozen=True)
class Asked:
    """A probe on a manifest with a known encoder: what its key is made of."""

    experiment: ProbeExperiment
    manifest_uri: str
    manifest: Manifest
    weights: str | None

    @cached_property
    def key(self) -> str:
        """Names the result: encoder, clips, probe and protocol; not where anything lies."""
        config = self.experiment.readout(self.weights)
        said = readout_key(config, None, self.manifest.digest)
        chosen = (self.experiment.probe, self.experiment.protocol, self.experiment.seed)
        return fingerprint("probe", PROBE_VERSION, said, *chosen)

    @property
    def folder(self) -> str:
        """Where everything it leaves behind lies."""
        return storage.join(self.experiment.root, "probes", self.key)

    def result(self) -> dict[str, Any] | None:
        """The result of the probe, comparable or not, or None."""
        return trial.result_in(self.folder)


def probe_experiment(experiment: ProbeExperiment) -> int:
    """Probe an encoder, or find that done, as a tracked run, and print what was found.

    Returns:
        Exit code: 0, or 1 when some videos, to fit to or to test on, could not be read.

    Raises:
        KinemaError: settings, data or cluster make it impossible.
    """
    experiment = experiment.resolved()
    check_encoders([experiment], frozen=True)
    start(experiment)
    asked = prepare_probe(experiment)
    prepared = Prepared(asked.manifest_uri, asked.manifest)
    tracker = start_tracker(experiment.root, experiment.name)
    name = f"{experiment.probe.name} probe {experiment.label}"
    note = encoder_note(experiment)
    run = begin(tracker, experiment, asked.key, name, prepared, extra=note)
    done = asked.result()
    if done is not None and trial.is_complete(done):
        print(f"{name}: found done, not repeated", flush=True)
    try:
        outcome = probe(asked)
    except BaseException as error:
        give_up(run, error)
        raise
    close(run, outcome, None)
    print(encoder_line(outcome, asked.weights or f"random weights, seed {experiment.seed}"))
    print(*unread_lines(outcome), accuracy_line(outcome, "probe"), sep="\n")
    for group, found in outcome["groups"].items():
        print(f"            {group}: {found['top1']:.1%} ({found['encoder']})")
    print(f"everything  {asked.folder}")
    return 0 if trial.is_complete(outcome) else 1


def prepare_probe(experiment: ProbeExperiment) -> Asked:
    """Make what a resolved experiment probes: its manifest, and its encoder if it is missing."""
    uri = prepare_manifest(experiment)
    manifest = Manifest.read(uri)
    pretraining = experiment.pretraining()
    if pretraining is None:
        return Asked(experiment, uri, manifest, experiment.encoder)
    if not trial.is_pretrained(pretraining, manifest.digest):
        complete(pretraining, experiment.label)
    folder = trial.pretrained_uri(pretraining, manifest.digest)
    return Asked(experiment, uri, manifest, storage.join(folder, ENCODER_FILE))


def probe(asked: Asked) -> dict[str, Any]:
    """Probe on the connected cluster; returns the result and leaves it in `asked.folder`.

    A comparable result is final. Another one lacks videos to fit to or to test on, and those are
    tried again; what was read of the others is not read again.

    Raises:
        ConfigError: no labels, no test split, or one group only.
        KinemaError: not one video to fit to, or to test on, could be read.
    """
    done = asked.result()
    if done is not None and done["comparable"]:
        return done
    started = time.time()
    experiment, manifest = asked.experiment, asked.manifest
    by_group = experiment.protocol == "leave_one_group_out"
    split, tested = ("each group", manifest.rows()) if by_group else tested_split(manifest)
    tested = [entry for entry in tested if entry.label is not None]
    alone = [entry.id for entry in tested if entry.group is None]
    if by_group and alone:
        raise ConfigError(
            [
                f"protocol=leave_one_group_out: {len(alone)} videos have no group, such as"
                f" {alone[0]}; index them with jobs/index_videos.py group=..."
            ]
        )
    if by_group:
        _warn_of_lone_classes(tested)
    trained = manifest.select("train").rows()
    fitted = [] if by_group else [entry for entry in trained if entry.label is not None]
    entries = [*fitted, *tested]
    _announce(experiment, len(entries))
    config = experiment.readout(asked.weights)
    readout = read_out(
        "features",
        asked.manifest_uri,
        entries,
        config,
        experiment.root,
        experiment.reading.on(experiment.compute),
    )
    readout.check_any(fitted)
    readout.check_any(tested)
    values = dict(zip(readout.ids, readout.values, strict=True))
    train = None if by_group else features_of(fitted, values)
    test = features_of(tested, values)
    answer = _fit_on_cluster(experiment, train, test, manifest.num_classes)
    test_ids = {entry.id for entry in tested}
    evaluation = judge_probabilities(
        answer.about.ids,
        answer.about.labels,
        answer.probabilities,
        {id: why for id, why in readout.failures.items() if id in test_ids},
    )
    predictions = storage.join(asked.folder, trial.PREDICTIONS_FILE)
    storage.write_table(predictions, evaluation.predictions)
    outcome = {
        "probe": experiment.probe.name,
        "protocol": experiment.protocol,
        "encoder": asked.weights,
        "encoder_saw_labels": asked.weights is not None and saw_labels(asked.weights),
        "manifest": asked.manifest_uri,
        "tested_on": split,
        "num_tested": len(evaluation.predictions),
        "num_fitted": None if train is None else len(train),
        "chance": 1 / manifest.num_classes,
        # fitted to fewer videos it is another probe, however many it is tested on
        "comparable": not readout.failures,
        "failures": readout.failures,
        "settings": dict(answer.settings),
        "groups": _groups(experiment, trained, answer) if by_group else {},
        "predictions": predictions,
        "metrics": evaluation.metrics("probe"),
        "seconds": time.time() - started,
    }
    storage.write_json(storage.join(asked.folder, trial.RESULT_FILE), outcome)
    return outcome


def _warn_of_lone_classes(tested: Sequence[Entry]) -> None:
    """Say which classes a probe fitted to the other groups cannot know."""
    groups: dict[int | None, set[str | None]] = {}
    for entry in tested:
        groups.setdefault(entry.label, set()).add(entry.group)
    lone = {label for label, found in groups.items() if len(found) == 1}
    if lone:
        count = sum(entry.label in lone for entry in tested)
        print(
            f"{len(lone)} of {len(groups)} classes are in one group alone: their {count} videos"
            " cannot be got right",
            flush=True,
        )


def _announce(experiment: ProbeExperiment, num_videos: int) -> None:
    """Say how large the kept tokens become, before they are made."""
    if isinstance(experiment.probe, AttentiveProbe):
        views = experiment.evaluation.num_clips * experiment.evaluation.num_crops
        size = experiment.probe.cache_bytes(experiment.model, num_videos, views)
        tokens = experiment.probe.tokens(experiment.model)
        print(
            f"features: {tokens} tokens of {num_videos} x {views} views take"
            f" {size / 2**30:.2f} GiB; probe.side averages them",
            flush=True,
        )


def _fit_on_cluster(
    experiment: ProbeExperiment, train: Features | None, test: Features, num_classes: int
) -> Answer:
    """Fit where the cluster has what a training worker asks for."""
    bundle = bundles(experiment)[0]
    require([bundle], "the probe")
    task = ray.remote(_fit).options(
        num_cpus=bundle["CPU"], num_gpus=1 if experiment.compute.use_gpu else 0
    )
    settings = experiment.model_dump(mode="json")
    try:
        answer: Answer = ray.get(task.remote(settings, train, test, num_classes))
    except RayTaskError as error:
        raise error.cause from error
    return answer


def _fit(
    settings: Mapping[str, Any], train: Features | None, test: Features, num_classes: int
) -> Answer:
    experiment = ProbeExperiment.model_validate(settings)
    torch.set_num_threads(max(1, int(experiment.compute.cpus_per_worker)))
    device = torch.device("cuda" if experiment.compute.use_gpu else "cpu")
    if train is None:
        return leave_one_group_out(experiment.probe, test, num_classes, experiment.seed, device)
    return official(experiment.probe, train, test, num_classes, experiment.seed, device)


def _groups(
    experiment: ProbeExperiment, trained: Sequence[Entry], answer: Answer
) -> dict[str, dict[str, Any]]:
    """Accuracy of each group, and whether the encoder was pretrained on clips of it."""
    seen: set[str] = set()
    if experiment.pretrain is not None:
        used = keep_clips(trained, experiment.pretrain.clip_share, experiment.seed)
        seen = {entry.group or entry.id for entry in used}
    unseen = UNKNOWN if experiment.encoder is not None else UNSEEN
    groups: NDArray[np.str_] = np.array(answer.about.groups)
    return {
        name: {
            "top1": top1,
            "num_tested": int((groups == name).sum()),
            "encoder": SEEN if name in seen else unseen,
        }
        for name, top1 in answer.accuracy_by_group().items()
    }
