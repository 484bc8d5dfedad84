"""One run from start to end in the calling process group: pretrain, finetune, test.

Knows no Ray: the same function runs under Ray Train, in unit tests, and in a debugger.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kinema import storage
from kinema.errors import ConfigError, VideoError
from kinema.evaluation.multiview import Evaluation, evaluate
from kinema.experiment import Experiment, pretrain_key, run_key
from kinema.models.weights import saw_labels
from kinema.motion.parts import MotionReader
from kinema.motion.store import MotionStore
from kinema.training.data import ClipSource
from kinema.training.engine import current_device, gather_objects, world
from kinema.training.finetune import FinetuneTask, finetune, keep_labels, split_holdout
from kinema.training.frames import FrameCache
from kinema.training.loop import Reporter
from kinema.training.order import too_few_clips
from kinema.training.pretrain import ENCODER_FILE, SUMMARY_FILE, PretrainTask, keep_clips, pretrain
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import Sampling
from kinema.wording import counted

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.parquet"


@dataclass(frozen=True)
class Splits:
    """The clips of each stage. `tested_on` names the split that the final number is for."""

    pretrain: list[Entry]
    train: list[Entry]
    validation: list[Entry]
    test: list[Entry]
    tested_on: str


def split(experiment: Experiment, manifest: Manifest) -> Splits:
    """Which clips train, choose the best epoch, and test.

    With a validation and a test split each serves its name. With only one of them it is the one
    that is tested; the best epoch is then chosen on a held-out tenth of the training clips
    (`data.selection: holdout`) or, as the papers do, on the tested split itself (`official`).

    Where nothing is finetuned there may be none.

    Raises:
        ConfigError: no training clips, or nothing to test on.
    """
    train = manifest.select("train").rows()
    validation, test = manifest.select("validation").rows(), manifest.select("test").rows()
    if not train:
        raise ConfigError(["the manifest has no clips in split 'train'"])
    if validation and test:
        return Splits(train, train, validation, test, "test")
    tested_on = "test" if test else "validation"
    tested = test or validation
    if not tested and experiment.finetune is None:
        return Splits(train, train, [], [], "none")
    if not tested:
        raise ConfigError(
            [
                "the manifest has neither a 'validation' nor a 'test' split: index the videos again"
                " with test_share=0.2, or with a list or folder for one of the two"
            ]
        )
    if experiment.data.selection == "official":
        return Splits(train, train, tested, tested, tested_on)
    if experiment.finetune is None:  # no epoch is chosen
        return Splits(train, train, [], tested, tested_on)
    kept, aside = split_holdout(train, experiment.seed)
    return Splits(train, kept, aside, tested, tested_on)


def pretrained_uri(experiment: Experiment, manifest_digest: str) -> str:
    """Folder of the encoder that this experiment's pretraining gives."""
    return storage.join(experiment.root, "pretrained", pretrain_key(experiment, manifest_digest))


def run_uri(experiment: Experiment, manifest_digest: str) -> str:
    """Folder of everything this experiment's run leaves behind, apart from the encoder."""
    return storage.join(experiment.root, "runs", run_key(experiment, manifest_digest))


def is_pretrained(experiment: Experiment, manifest_digest: str) -> bool:
    """Whether the pretraining of this experiment is complete."""
    uri = pretrained_uri(experiment, manifest_digest)
    return storage.exists(storage.join(uri, ENCODER_FILE))


def result(experiment: Experiment, manifest_digest: str) -> dict[str, Any] | None:
    """The result of a complete run, or None: also where its encoder, all it was for, is gone."""
    only_pretrains = experiment.finetune is None and experiment.pretrain is not None
    if only_pretrains and not is_pretrained(experiment, manifest_digest):
        return None
    return result_in(run_uri(experiment, manifest_digest))


def result_in(folder: str) -> dict[str, Any] | None:
    """The result that something complete left in its folder, or None."""
    uri = storage.join(folder, RESULT_FILE)
    return storage.read_json(uri) if storage.exists(uri) else None


def is_complete(outcome: Mapping[str, Any]) -> bool:
    """Whether a result is final: every video it needs was read, or there was no test."""
    return bool(outcome.get("comparable", True))


def final_result(experiment: Experiment, manifest_digest: str) -> dict[str, Any] | None:
    """The result of a run that has nothing left to do, or None."""
    done = result(experiment, manifest_digest)
    return done if done is not None and is_complete(done) else None


def run_stages(experiment: Experiment, manifest_uri: str, reporter: Reporter) -> dict[str, Any]:
    """Do what is still to do of an experiment; returns its result and writes it to `run_uri`.

    Collective: called by every rank of the process group. A finished pretraining is found by its
    key and not repeated, whichever run it was made by.
    """
    started = time.time()
    manifest = Manifest.read(manifest_uri)
    splits = check_clips(experiment, manifest)
    cache = FrameCache(experiment.loader.cache_gb * 2**30)
    everything = [*splits.pretrain, *splits.validation, *splits.test]
    motion = None
    if experiment.reads_motion:
        motion = open_motion(experiment, everything, manifest.digest)
    failed: Mapping[str, VideoError] = {} if motion is None else motion.failed
    pretraining = _without(splits, failed if experiment.pretraining_reads_motion else {})
    finetuning = _without(splits, failed if experiment.finetuning_reads_motion else {})

    def source(entries: Sequence[Entry], sampling: Sampling, reads_motion: bool) -> ClipSource:
        fields = experiment.motion.fields if experiment.motion else None
        return ClipSource(
            entries,
            experiment.model,
            sampling,
            experiment.data.reduce,
            motion if reads_motion else None,
            cache,
            stride=fields.stride if fields else 1,
        )

    outcome: dict[str, Any] = {"manifest": manifest_uri, "left_out": _left_out(splits, failed)}
    encoder_uri = experiment.encoder
    if experiment.pretrain is not None:
        folder = pretrained_uri(experiment, manifest.digest)
        encoder_uri = storage.join(folder, ENCODER_FILE)
        # One rank looks for all: another job may be about to write it.
        if not gather_objects(is_pretrained(experiment, manifest.digest))[0]:
            task = PretrainTask(
                experiment.pretrain,
                experiment.model,
                experiment.mask,
                experiment.target,
                experiment.loader,
                experiment.seed,
            )
            seen = {entry.id for entry in pretraining.pretrain}
            used = _pretrained_on(experiment, pretraining)
            unseen = [entry for entry in pretraining.validation if entry.id not in seen]
            reads = experiment.pretraining_reads_motion
            pretrain(
                task,
                source(used, experiment.pretrain.sampling, reads),
                source(unseen, experiment.pretrain.sampling, reads),
                folder,
                reporter,
            )
        outcome["pretrain"] = storage.read_json(storage.join(folder, SUMMARY_FILE))
    outcome["encoder"] = encoder_uri
    outcome["encoder_saw_labels"] = encoder_uri is not None and saw_labels(encoder_uri)
    if experiment.finetune is not None:
        output = run_uri(experiment, manifest.digest)
        todo = FinetuneTask(
            experiment.finetune,
            experiment.model,
            experiment.head,
            manifest.num_classes,
            experiment.loader,
            experiment.seed,
            encoder_uri,
        )
        labelled = _finetuned_on(experiment, finetuning)
        train, validation, test = (
            source(entries, experiment.finetune.sampling, experiment.finetuning_reads_motion)
            for entries in (labelled, finetuning.validation, finetuning.test)
        )
        model = finetune(todo, train, validation, output, reporter).to(current_device())
        tested = evaluate(model, test, experiment.evaluation, experiment.loader, current_device())
        outcome |= _record(tested, splits.tested_on, manifest.num_classes, output)
    outcome["seconds"] = time.time() - started
    if world()[0] == 0:
        output = run_uri(experiment, manifest.digest)
        storage.write_json(storage.join(output, RESULT_FILE), outcome)
    return outcome


def open_motion(
    experiment: Experiment, entries: Sequence[Entry], manifest_digest: str
) -> MotionReader | None:
    """The motion boxes of a manifest's `entries`, or None when the experiment names no motion.

    Raises:
        StoreError: the store lacks some of them or was made with other parameters.
    """
    if experiment.motion is None:
        return None
    store = MotionStore(experiment.root, experiment.motion, manifest_digest)
    return store.open([entry.id for entry in entries])


def check_clips(experiment: Experiment, manifest: Manifest) -> Splits:
    """Make sure, before anything starts, that every stage has clips enough, and their labels.

    Returns:
        The clips, as `split`.

    Raises:
        ConfigError: a stage has no clips or fewer than one step takes, or labels are missing.
    """
    splits = split(experiment, manifest)
    problems = []
    if experiment.pretrain is not None:
        count = len(_pretrained_on(experiment, splits))
        problems += too_few_clips("pretrain", count, experiment.pretrain.engine.global_batch_size)
    if experiment.finetune is not None:
        problems += _missing_labels(splits)
        count = len(_finetuned_on(experiment, splits))
        problems += too_few_clips("finetune", count, experiment.finetune.engine.global_batch_size)
    if problems:
        raise ConfigError(problems)
    return splits


def _pretrained_on(experiment: Experiment, splits: Splits) -> list[Entry]:
    assert experiment.pretrain is not None
    return keep_clips(splits.pretrain, experiment.pretrain.clip_share, experiment.seed)


def _finetuned_on(experiment: Experiment, splits: Splits) -> list[Entry]:
    assert experiment.finetune is not None
    return keep_labels(splits.train, experiment.finetune.label_share, experiment.seed)


def _missing_labels(splits: Splits) -> list[str]:
    """A clip without a label would count as one of the last class."""
    uses = {"trained": splits.train, "chosen": splits.validation, "tested": splits.test}
    lost = {use: [e.id for e in entries if e.label is None] for use, entries in uses.items()}
    return [
        f"{counted(len(ids), 'clip')} without a label, on which the model would be {use}, such as"
        f" {ids[0]};"
        " leave them out of the manifest"
        for use, ids in lost.items()
        if ids
    ]


def _without(splits: Splits, failed: Mapping[str, VideoError]) -> Splits:
    """The splits without the videos that extraction failed on, but for the test.

    A test keeps and reports them, so that its number is marked as not comparable.
    """
    pretraining, training, validation = (
        [entry for entry in entries if entry.id not in failed]
        for entries in (splits.pretrain, splits.train, splits.validation)
    )
    return replace(splits, pretrain=pretraining, train=training, validation=validation)


def _left_out(splits: Splits, failed: Mapping[str, VideoError]) -> dict[str, str]:
    """Id -> reason of the training and validation videos that `_without` leaves out; also told."""
    lost = {
        entry.id: str(failed[entry.id])
        for entry in [*splits.pretrain, *splits.validation]
        if entry.id in failed
    }
    if lost and world()[0] == 0:
        first = next(iter(lost.values()))
        print(
            f"{counted(len(lost), 'training or validation video')} without motion left out,"
            f" first {first}"
        )
    return lost


def _record(test: Evaluation, tested_on: str, num_classes: int, output: str) -> dict[str, Any]:
    if world()[0] == 0:
        storage.write_table(storage.join(output, PREDICTIONS_FILE), test.predictions)
    return {
        "tested_on": tested_on,
        "num_tested": len(test.predictions),
        "chance": 1 / num_classes,
        "comparable": test.comparable,
        "failures": test.failures,
        "predictions": storage.join(output, PREDICTIONS_FILE),
        "metrics": test.metrics("test"),
    }
