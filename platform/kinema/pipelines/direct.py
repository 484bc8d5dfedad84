"""A finetuned classifier tested on other videos as it is: no clip of theirs is ever trained on.

MGM (Table 3) tests so: the target's classes are some of the source's (partial domain adaptation),
and an answer with a class that the target does not have is wrong.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from kinema import storage, trial
from kinema.config import fingerprint
from kinema.errors import ConfigError
from kinema.evaluation.multiview import judge_probabilities
from kinema.evaluation.readout import ReadoutConfig
from kinema.experiment import Experiment
from kinema.pipelines.evaluate import logits_config
from kinema.pipelines.readout import ReadingConfig, read_out, readout_key
from kinema.training.finetune import BEST_FILE
from kinema.video.manifest import Entry, Manifest

DIRECT_VERSION = 2
"""Part of every key; raise it when what a direct test computes changes."""


@dataclass(frozen=True)
class DirectTest:
    """A source's finished run and the videos that its classifier is tested on.

    Attributes:
        source: the run's experiment, resolved, and `source_manifest`, what it was finetuned on.
        manifest_uri: absolute, of the target, and `manifest`, its content.
    """

    source: Experiment
    source_manifest: Manifest
    manifest_uri: str
    manifest: Manifest
    reading: ReadingConfig

    @property
    def readout(self) -> ReadoutConfig:
        """What is asked of the classifier."""
        run = trial.run_uri(self.source, self.source_manifest.digest)
        checkpoint = storage.join(run, BEST_FILE)
        return logits_config(self.source, checkpoint, self.source_manifest.num_classes)

    @cached_property
    def key(self) -> str:
        """Names the result."""
        motion = self.source.motion if "boxes" in self.source.head.needs else None
        said = readout_key(self.readout, motion, self.manifest.digest)
        classes = sorted(class_labels(self.source_manifest, "source").items())
        return fingerprint("direct", DIRECT_VERSION, said, classes)

    @property
    def folder(self) -> str:
        """Where everything it leaves behind lies."""
        return storage.join(self.source.root, "probes", self.key)

    def result(self) -> dict[str, Any] | None:
        """The result of the test, comparable or not, or None."""
        return trial.result_in(self.folder)


def class_labels(manifest: Manifest, what: str) -> dict[str, int]:
    """Label of each class name.

    Raises:
        ConfigError: a labelled video has no class name, or a name has several labels.
    """
    found: dict[str, int] = {}
    for row in manifest.table.select(["id", "label", "label_name"]).to_pylist():
        if row["label"] is None:
            continue
        if row["label_name"] is None:
            raise ConfigError(
                [
                    f"transfer: classes are matched by name, and video {row['id']} of the {what}"
                    " has none: index it with class names (jobs/index_videos.py, classes=...)"
                ]
            )
        if found.setdefault(row["label_name"], row["label"]) != row["label"]:
            raise ConfigError([f"transfer: class '{row['label_name']}' has two labels ({what})"])
    return found


def source_labels(source: Manifest, target: Manifest) -> NDArray[np.int64]:
    """Label of the source by label of the target, matched by class name.

    Raises:
        ConfigError: the target has a class that the source's classifier cannot answer.
    """
    known, asked = class_labels(source, "source"), class_labels(target, "target")
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise ConfigError(
            [
                f"transfer: the source has no class {', '.join(unknown[:5])}; a classifier can be"
                " tested only on classes that it knows (it knows "
                f"{', '.join(sorted(known)[:5])} ...)"
            ]
        )
    mapped = np.full(max(asked.values()) + 1, -1, dtype=np.int64)
    for name, label in asked.items():
        mapped[label] = known[name]
    return mapped


def run_direct(test: DirectTest) -> dict[str, Any]:
    """Test on the connected cluster; returns the result and leaves it in `test.folder`.

    A comparable result is final; another one lacks videos, and those are tried again.

    Raises:
        ConfigError: classes do not match, or the target has nothing to test on.
        KinemaError: not one video could be read.
    """
    done = test.result()
    if done is not None and done["comparable"]:
        return done
    started = time.time()
    labels = source_labels(test.source_manifest, test.manifest)
    split, entries = tested_split(test.manifest)
    motion = test.source.motion if "boxes" in test.source.head.needs else None
    readout = read_out(
        "direct test",
        test.manifest_uri,
        entries,
        test.readout,
        test.source.root,
        test.reading,
        motion,
    )
    readout.check_any(entries)
    evaluation = judge_probabilities(
        readout.ids,
        labels[readout.labels],
        softmax(readout.values, axis=-1).mean(axis=1),
        readout.failures,
        readout.values,
    )
    predictions = storage.join(test.folder, trial.PREDICTIONS_FILE)
    storage.write_table(predictions, evaluation.predictions)
    outcome = {
        "probe": "direct",
        "encoder": test.readout.weights,
        "tested_on": split,
        "num_tested": len(evaluation.predictions),
        "chance": 1 / test.source_manifest.num_classes,
        "comparable": evaluation.comparable,
        "failures": evaluation.failures,
        "predictions": predictions,
        "metrics": evaluation.metrics("test"),
        "seconds": time.time() - started,
    }
    storage.write_json(storage.join(test.folder, trial.RESULT_FILE), outcome)
    return outcome


def tested_split(manifest: Manifest) -> tuple[str, list[Entry]]:
    """The split that is tested, test before validation, and its labelled videos.

    Raises:
        ConfigError: it has neither a test nor a validation split.
    """
    for split in ("test", "validation"):
        entries = [e for e in manifest.select(split).rows() if e.label is not None]
        if entries:
            return split, entries
    raise ConfigError(
        [
            "the manifest has no labelled video in split 'test' or 'validation': index the videos"
            " again with test_share=0.2, or with a list or folder for one of the two"
        ]
    )
