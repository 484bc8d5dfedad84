"""One experiment from data to tracked result: what the jobs `pretrain` and `finetune` run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinema import trial
from kinema.experiment import Experiment, run_key
from kinema.pipelines.cluster import require
from kinema.pipelines.prepare import check_encoders, known_manifest, prepare, start
from kinema.pipelines.study import begin, close, encoder_note, give_up
from kinema.pipelines.tracker import start_tracker
from kinema.pipelines.train import bundles, is_done, train
from kinema.video.sources import SPLITS
from kinema.wording import counted

SHOWN = 5


def run_experiment(experiment: Experiment, name: str) -> int:
    """Run `experiment`, or find it done, and print its result.

    Args:
        experiment: what to run.
        name: of the run, for people.

    Returns:
        Exit code: 0, or 1 when some test videos could not be read.

    Raises:
        KinemaError: settings, data or cluster make it impossible, or training gave up.
    """
    experiment = experiment.resolved()
    check_encoders([experiment])
    start(experiment)
    outcome, folder = complete(experiment, name)
    print(encoder_line(outcome, outcome["encoder"]))
    if count := len(outcome["left_out"]):
        print(f"left out    {counted(count, 'training or validation video')}, see result.json")
    if "metrics" in outcome:
        print(*unread_lines(outcome), accuracy_line(outcome, "test"), sep="\n")
    print(f"everything  {folder}")
    return 0 if trial.is_complete(outcome) else 1


def complete(experiment: Experiment, name: str) -> tuple[dict[str, Any], str]:
    """Run a resolved experiment on the connected cluster, or find it done, as a tracked run.

    Returns:
        Its result, and the folder of everything it leaves behind.
    """
    if not is_done(experiment, known_manifest(experiment)):
        require(bundles(experiment), f"a training run of {experiment.name}")
    prepared = prepare([experiment], trial.check_clips)
    digest = prepared.manifest.digest
    tracker, key = start_tracker(experiment.root, experiment.name), run_key(experiment, digest)
    done, folder = trial.final_result(experiment, digest), trial.run_uri(experiment, digest)
    if done is not None:
        print(f"{name}: found done, not repeated", flush=True)
        if tracker.is_finished(key):
            return done, folder
    run = begin(tracker, experiment, key, name, prepared, extra=encoder_note(experiment))
    try:
        outcome = train(experiment, prepared.manifest_uri, digest, run, talks=True)
    except BaseException as error:
        give_up(run, error)
        raise
    close(run, outcome, None)
    return outcome, folder


def encoder_line(outcome: Mapping[str, Any], encoder: str) -> str:
    """Which encoder a result is of, marked where its training saw labels."""
    marked = ", TRAINED WITH LABELS" if outcome.get("encoder_saw_labels") else ""
    return f"encoder     {encoder}{marked}"


def unread_lines(outcome: Mapping[str, Any]) -> list[str]:
    """That a result lacks videos, and which; nothing where all were read."""
    failures: Mapping[str, str] = outcome["failures"]
    if not failures:
        return []
    mark = "" if trial.is_complete(outcome) else "NOT COMPARABLE: "
    named = [f"  - {id}: {why}" for id, why in list(failures.items())[:SHOWN]]
    rest = [f"  and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
    return [f"{mark}{counted(len(failures), 'video')} could not be read", *named, *rest]


def accuracy_line(outcome: Mapping[str, Any], prefix: str) -> str:
    """Top-1 with its interval, of what, and what chance would give."""
    top1, low, high = (outcome["metrics"][f"{prefix}/top1{end}"] for end in ("", "_low", "_high"))
    tested = outcome["tested_on"]
    tested = f"split {tested}" if tested in SPLITS else tested
    clips = counted(outcome["num_tested"], "clip")
    return (
        f"top-1       {top1:.1%} [{low:.1%}, {high:.1%}] on {clips}"
        f" ({tested}); chance {outcome['chance']:.1%}"
    )
