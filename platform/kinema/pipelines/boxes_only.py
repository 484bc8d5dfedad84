"""The boxes-only control on an experiment's videos.

Under `<root>/boxes_only/<key>/` lie `predictions.parquet`, a row per tested video, and
`result.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinema import storage, trial
from kinema.config import fingerprint
from kinema.errors import ConfigError
from kinema.evaluation.boxes_only import (
    BoxesOnly,
    BoxesOnlyConfig,
    Features,
    classify_groups,
    classify_split,
    video_features,
)
from kinema.experiment import AnyExperiment, Experiment
from kinema.figures.table import TextTable
from kinema.motion.extractor import EXTRACTOR_VERSION
from kinema.pipelines.prepare import prepare, prepare_manifest, start
from kinema.training.data import ClipSource
from kinema.training.frames import FrameCache
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import Sampling
from kinema.wording import counted

CONTROL_VERSION = 2
"""Part of every result's name; raise it when what is computed changes."""


class BoxesOnlyExperiment(AnyExperiment):
    """An experiment of whose clips the control sees the motion boxes."""

    control: BoxesOnlyConfig = BoxesOnlyConfig()


def classify_boxes(experiment: BoxesOnlyExperiment) -> dict[str, Any]:
    """Extract what is missing, train and test the control, and print it.

    Returns:
        What `result.json` says.

    Raises:
        ConfigError: there are no motion boxes, groups or splits that it needs.
        KinemaError: as `prepare`.
    """
    experiment = experiment.resolved()
    if experiment.motion is None:
        raise ConfigError(["motion: null; there are no motion boxes to classify without it"])
    start(experiment)
    manifest_uri = prepare_manifest(experiment)
    manifest = Manifest.read(manifest_uri)
    if experiment.control.protocol == "leave_one_group_out":
        _groups(manifest.rows())  # says at once what is missing
    prepare([experiment], reads_motion=lambda _: True)
    outcome, found = _test(experiment, manifest)
    output = storage.join(experiment.root, "boxes_only", _key(experiment, manifest))
    predictions = storage.join(output, trial.PREDICTIONS_FILE)
    storage.write_table(predictions, outcome.predictions)
    found |= {
        "num_tested": len(outcome.predictions),
        "chance": outcome.chance,
        "majority": outcome.majority,
        "top1": asdict(outcome.top1),
        "mean_class": outcome.mean_class,
        "predictions": predictions,
        "manifest": manifest_uri,
        "control": experiment.control.model_dump(mode="json"),
    }
    storage.write_json(storage.join(output, trial.RESULT_FILE), found)
    print(text_of(found))
    print(f"everything: {output}")
    return found


def _test(experiment: BoxesOnlyExperiment, manifest: Manifest) -> tuple[BoxesOnly, dict[str, Any]]:
    """The control's outcome, and on what it was trained and tested."""
    labelled = [entry for entry in manifest.rows() if entry.label is not None]
    source = _source(experiment, labelled, manifest.digest)
    control, seed, classes = experiment.control, experiment.seed, manifest.num_classes
    if control.protocol == "leave_one_group_out":
        tested = list(source.entries)
        groups = _groups(tested)
        features, labels = _features(experiment, source, tested)
        ids = [entry.id for entry in tested]
        outcome = classify_groups(features, labels, groups, ids, classes, control, seed)
        about = {"num_groups": len(set(groups)), "tested_on": "all"}
    else:
        splits = trial.split(experiment, manifest)
        usable = {entry.id for entry in source.entries}
        train, tested = (
            [entry for entry in entries if entry.id in usable]
            for entries in (splits.pretrain, splits.test)
        )
        outcome = classify_split(
            _features(experiment, source, train),
            _features(experiment, source, tested),
            [entry.id for entry in tested],
            classes,
            control,
            seed,
        )
        about = {"num_trained": len(train), "tested_on": splits.tested_on}
    return outcome, {"protocol": control.protocol, **about}


def _source(
    experiment: BoxesOnlyExperiment, entries: Sequence[Entry], manifest_digest: str
) -> ClipSource:
    """The clips of those `entries` that have motion boxes, as finetuning would sample them."""
    motion = trial.open_motion(experiment, entries, manifest_digest)
    assert motion is not None
    if motion.failed:
        count = len(motion.failed)
        print(counted(count, "video without motion is", "videos without motion are"), "left out")
    kept = [entry for entry in entries if entry.id not in motion.failed]
    cache = FrameCache(0)
    return ClipSource(
        kept, experiment.model, _sampling(experiment), experiment.data.reduce, motion, cache
    )


def _sampling(experiment: Experiment) -> Sampling:
    stage = experiment.finetune or experiment.pretrain
    assert stage is not None  # an experiment without both is none
    return stage.sampling


def _groups(entries: Sequence[Entry]) -> list[str]:
    without = [entry.id for entry in entries if entry.group is None]
    if without:
        raise ConfigError(
            [
                f"control.protocol: {len(without)} videos have no group, such as {without[0]};"
                " index them with group=..., see jobs/index_videos.py"
            ]
        )
    return [str(entry.group) for entry in entries]


def _features(
    experiment: BoxesOnlyExperiment, source: ClipSource, entries: Sequence[Entry]
) -> tuple[Features, NDArray[np.int64]]:
    """Features (N, views, features) and labels (N,)."""
    if not entries:
        raise ConfigError(["control: no labelled video with motion boxes to train or test on"])
    views, slots = experiment.evaluation.num_clips, experiment.control.num_slots
    features = [video_features(source, entry, views, slots) for entry in entries]
    labels = [entry.label for entry in entries]
    return np.stack(features), np.array(labels, dtype=np.int64)


def _key(experiment: BoxesOnlyExperiment, manifest: Manifest) -> str:
    model = experiment.model
    return fingerprint(
        CONTROL_VERSION,
        EXTRACTOR_VERSION,
        manifest.digest,
        experiment.motion,
        experiment.data.reduce,
        experiment.data.selection,
        [model.num_frames, model.tubelet_size, model.image_size],
        _sampling(experiment),
        experiment.evaluation.num_clips,
        experiment.control,
        experiment.seed,
    )


def text_of(found: dict[str, Any]) -> str:
    """The result for the terminal."""
    top1 = found["top1"]
    rows = [
        ["boxes only", f"{top1['value']:.1%}", f"[{top1['low']:.1%}, {top1['high']:.1%}]"],
        ["most frequent class", f"{found['majority']:.1%}", ""],
        ["chance", f"{found['chance']:.1%}", ""],
    ]
    tested = (
        f"each of {found['num_groups']} groups by the others"
        if found["protocol"] == "leave_one_group_out"
        else f"split {found['tested_on']}, trained on {counted(found['num_trained'], 'video')}"
    )
    classifier = found["control"]["classifier"]["name"]
    lines = [f"{classifier} classifier, {counted(found['num_tested'], 'video')}: {tested}"]
    return "\n".join([*lines, TextTable(["", "top-1", "95 %"], rows, [False, True, True]).text()])
