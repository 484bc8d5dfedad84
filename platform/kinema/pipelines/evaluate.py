"""The multi-view test of a finetuned classifier, over the cluster, and everything it leaves behind.

Under `<root>/evaluations/<key>/` lie `predictions.parquet` (a row per video, logits of every view),
`result.json`, `classes.csv` and `confusion.png`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.csv
from pydantic import Field

from kinema import storage, trial
from kinema.config import Config, fingerprint
from kinema.errors import ConfigError, KinemaError
from kinema.evaluation.confusion import confusion_matrix, confusion_table
from kinema.evaluation.epic import action_parts, marginal_accuracies
from kinema.evaluation.multiview import Evaluation, EvaluationConfig, judge
from kinema.evaluation.readout import ReadoutConfig
from kinema.experiment import AnyExperiment, DataConfig, Experiment
from kinema.figures.confusion import confusion_figure
from kinema.models.classifier import Head
from kinema.models.vit import ViTConfig
from kinema.motion.extractor import MotionConfig
from kinema.pipelines.prepare import Prepared, extract_motion, prepare, start
from kinema.pipelines.readout import (
    ReadingConfig,
    Readout,
    read_out,
    readout_key,
    require_reader,
)
from kinema.pipelines.single import unread_lines
from kinema.pipelines.study import begin
from kinema.pipelines.tracker import start_tracker
from kinema.training.finetune import BEST_FILE
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import Sampling
from kinema.wording import counted

CONFUSION_FILE = "confusion.png"
DPI = 150


class EvaluateExperiment(AnyExperiment):
    """An experiment whose classifier is tested: that of its own run, or another one."""

    checkpoint: str | None = Field(
        None, description="best.safetensors of a classifier; null = of the run of these settings"
    )
    split: Literal["train", "validation", "test"] | None = Field(
        None, description="what is tested; null = the split that the run is tested on"
    )
    reading: ReadingConfig = ReadingConfig()

    def resolved(self) -> Self:
        """The same with every path absolute."""
        checkpoint = self.checkpoint and storage.absolute(self.checkpoint)
        return super().resolved().model_copy(update={"checkpoint": checkpoint})


@dataclass(frozen=True)
class Judged:
    """What was tested, and what came out."""

    evaluation: Evaluation
    result: dict[str, Any]
    folder: str


def evaluate(experiment: EvaluateExperiment) -> int:
    """Test a classifier on the cluster and print, keep and track what came out.

    Returns:
        Exit code: 0 when every test video was read, 1 when some were not.

    Raises:
        KinemaError: there is no such classifier, or not one video could be read.
    """
    experiment = experiment.resolved()
    start(experiment)
    prepared = prepare(
        [experiment],
        lambda _, manifest: _check_test(experiment, manifest),
        reads_motion=lambda _: False,
    )
    if experiment.finetuning_reads_motion:
        assert experiment.motion is not None
        _, entries = tested_entries(experiment, prepared.manifest)
        read = {entry.id for entry in entries}
        extract_motion(prepared.manifest_uri, experiment.motion, experiment, only=read)
    tested = evaluate_prepared(experiment, prepared)
    print(text_of(tested))
    return 0 if tested.evaluation.comparable else 1


def evaluate_prepared(experiment: EvaluateExperiment, prepared: Prepared) -> Judged:
    """The test alone: on the connected cluster, of a `resolved` experiment.

    Raises:
        KinemaError: there is no such classifier, or not one video could be read.
    """
    manifest = prepared.manifest
    checkpoint = _classifier_uri(experiment, manifest)
    split, entries = tested_entries(experiment, manifest)
    config = logits_config(experiment, checkpoint, manifest.num_classes)
    motion = experiment.motion if experiment.head.needs else None
    readout = read_out(
        "test",
        prepared.manifest_uri,
        entries,
        config,
        experiment.root,
        experiment.reading.on(experiment.compute),
        motion,
    )
    readout.check_any(entries)
    evaluation = judge(readout.ids, readout.labels, readout.values, readout.failures)
    key = fingerprint("evaluation", readout_key(config, motion, manifest.digest), split)
    folder = storage.join(experiment.root, "evaluations", key)
    result = _result(evaluation, readout, manifest, split)
    result |= {"checkpoint": checkpoint, "manifest": prepared.manifest_uri}
    _keep(evaluation, result, manifest, folder)
    _track(experiment, prepared, key, folder, result)
    return Judged(evaluation, result, folder)


def _check_test(experiment: EvaluateExperiment, manifest: Manifest) -> None:
    """Said before motion is extracted."""
    _classifier_uri(experiment, manifest)
    tested_entries(experiment, manifest)
    require_reader(experiment.reading.on(experiment.compute), "test")


def _classifier_uri(experiment: EvaluateExperiment, manifest: Manifest) -> str:
    checkpoint = experiment.checkpoint or storage.join(
        trial.run_uri(experiment, manifest.digest), BEST_FILE
    )
    if not storage.exists(checkpoint):
        raise KinemaError(
            f"no classifier at {checkpoint}; make it with jobs/finetune.py and the same settings,"
            " or give checkpoint=.../best.safetensors (a run's settings include evaluation.*: to"
            " test it with other views, name its checkpoint)"
        )
    return checkpoint


def tested_entries(experiment: EvaluateExperiment, manifest: Manifest) -> tuple[str, list[Entry]]:
    """Name and labelled videos of the split that is tested.

    Raises:
        ConfigError: it has no videos, or some without a label.
    """
    if experiment.split is None:
        splits = trial.split(experiment, manifest)
        split, entries = splits.tested_on, splits.test
    else:
        split, entries = experiment.split, manifest.select(experiment.split).rows()
    unlabelled = [entry.id for entry in entries if entry.label is None]
    if not entries or unlabelled:
        why = f"without a label: {unlabelled[0]}" if unlabelled else "the manifest has none"
        raise ConfigError([f"split {split}: cannot be tested on, {why}"])
    return split, entries


def logits_config(experiment: Experiment, checkpoint: str, num_classes: int) -> ReadoutConfig:
    """What a classifier of `experiment` is asked."""
    if experiment.finetune is None:
        raise ConfigError(["finetune: null; the test samples clips as finetuning does"])
    return ReadoutConfig(
        output="logits",
        weights=checkpoint,
        model=experiment.model,
        head=experiment.head,
        num_classes=num_classes,
        sampling=experiment.finetune.sampling,
        reduce=experiment.data.reduce,
        views=experiment.evaluation,
    )


def text_of(tested: Judged) -> str:
    """What a reader should know, coverage first where it is not complete."""
    evaluation, result = tested.evaluation, tested.result
    videos = counted(result["num_tested"], "video")
    lines = [
        *unread_lines(result),
        f"top-1       {_percent(result, 'test/top1')} on {videos} of split"
        f" {result['tested_on']}; chance {result['chance']:.1%}",
        f"top-5       {result['metrics']['test/top5']:.1%}",
        f"mean class  {result['metrics']['test/mean_class']:.1%}",
        f"coverage    {evaluation.coverage:.3f}",
    ]
    lines += [
        f"{name:11s} {_percent(result, f'test/{name}')} (marginalised)"
        for name in ("verb", "noun")
        if f"test/{name}" in result["metrics"]
    ]
    lines += [
        f"confusion   {storage.join(tested.folder, CONFUSION_FILE)}",
        f"everything  {tested.folder}",
    ]
    return "\n".join(lines)


def _percent(result: dict[str, Any], name: str) -> str:
    value, low, high = (result["metrics"][name + end] for end in ("", "_low", "_high"))
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


def _result(
    evaluation: Evaluation, readout: Readout, manifest: Manifest, split: str
) -> dict[str, Any]:
    metrics = evaluation.metrics("test")
    parts = action_parts(manifest.table)
    if parts is not None:
        for name, accuracy in marginal_accuracies(evaluation.predictions, parts).items():
            metrics |= {
                f"test/{name}": accuracy.value,
                f"test/{name}_low": accuracy.low,
                f"test/{name}_high": accuracy.high,
            }
    return {
        "tested_on": split,
        "num_tested": len(readout.entries),
        "num_videos": len(readout.entries) + len(readout.failures),
        "chance": 1 / manifest.num_classes,
        "comparable": evaluation.comparable,
        "failures": evaluation.failures,
        "metrics": metrics,
    }


def _keep(evaluation: Evaluation, result: dict[str, Any], manifest: Manifest, folder: str) -> None:
    table = evaluation.predictions
    storage.write_table(storage.join(folder, trial.PREDICTIONS_FILE), table)
    names = manifest.class_names
    matrix = confusion_matrix(table["label"], table["predicted"], len(names))
    content = io.BytesIO()
    pa.csv.write_csv(confusion_table(matrix, names), content)
    storage.write_bytes(storage.join(folder, "classes.csv"), content.getvalue())
    title = (
        f"top-1 {result['metrics']['test/top1']:.1%} of {counted(result['num_tested'], 'video')}"
    )
    title += "" if evaluation.comparable else ", not comparable"
    picture = io.BytesIO()
    confusion_figure(matrix, names, title).savefig(picture, dpi=DPI, format="png")
    storage.write_bytes(storage.join(folder, CONFUSION_FILE), picture.getvalue())
    storage.write_json(storage.join(folder, trial.RESULT_FILE), result)


class GivenClassifier(Config):
    """What is known of the test of a given checkpoint; what it was trained with is not."""

    checkpoint: str
    split: str | None
    data: DataConfig
    motion: MotionConfig | None
    model: ViTConfig
    head: Head = Field(discriminator="name")
    sampling: Sampling
    evaluation: EvaluationConfig


def _test_settings(experiment: EvaluateExperiment) -> GivenClassifier:
    assert experiment.checkpoint is not None
    assert experiment.finetune is not None
    return GivenClassifier(
        checkpoint=experiment.checkpoint,
        split=experiment.split,
        data=experiment.data,
        motion=experiment.motion if experiment.head.needs else None,
        model=experiment.model,
        head=experiment.head,
        sampling=experiment.finetune.sampling,
        evaluation=experiment.evaluation,
    )


def _track(
    experiment: EvaluateExperiment,
    prepared: Prepared,
    key: str,
    folder: str,
    result: dict[str, Any],
) -> None:
    tracker = start_tracker(experiment.root, experiment.name)
    if experiment.checkpoint is None:
        run = begin(tracker, experiment, key, f"test {experiment.label}", prepared)
    else:
        folder_name = storage.absolute(experiment.checkpoint).rsplit("/", 2)[-2]
        # The experiment's method, mask and recipe are not those that it was trained with.
        plain = experiment.model_copy(update={"method": "custom", "paper": None})
        settings = _test_settings(experiment)
        run = begin(tracker, plain, key, f"test {folder_name}", prepared, settings=settings)
    run.summary(result["metrics"])
    for name in ("predictions.parquet", "result.json", "classes.csv", CONFUSION_FILE):
        run.content(storage.read_bytes(storage.join(folder, name)), f"test/{name}")
    run.finish("FINISHED")
