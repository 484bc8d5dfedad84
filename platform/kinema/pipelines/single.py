"""One experiment from data to tracked result: what the jobs `pretrain` and `finetune` run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinema import trial
from kinema.experiment import Experiment, run_key
from kinema.pipelines.prepare import prepare, start
from kinema.pipelines.study import begin, close
from kinema.pipelines.tracker import start_tracker
from kinema.pipelines.train import train
from kinema.video.sources import SPLITS


def run_experiment(experiment: Experiment) -> int:
    """Run `experiment`, or find it done, and print its result.

    Raises:
        KinemaError: settings, data or cluster make it impossible, or training gave up.
    """
    experiment = experiment.resolved()
    start(experiment)
    outcome, folder = complete(experiment)
    print(f"encoder     {outcome['encoder']}")
    if "metrics" in outcome:
        print(accuracy_line(outcome, "test"))
    print(f"everything  {folder}")
    return 0


def complete(experiment: Experiment) -> tuple[dict[str, Any], str]:
    """Run a resolved experiment on the connected cluster, or find it done, as a tracked run.

    Returns:
        Its result, and the folder of everything it leaves behind.
    """
    prepared = prepare([experiment], trial.check_clips)
    digest = prepared.manifest.digest
    tracker = start_tracker(experiment.root, experiment.name)
    run = begin(tracker, experiment, run_key(experiment, digest), experiment.method, prepared)
    try:
        outcome = train(experiment, prepared.manifest_uri, digest, run)
    except BaseException as error:
        close(run, None, f"{type(error).__name__}: {error}")
        raise
    close(run, outcome, None)
    return outcome, trial.run_uri(experiment, digest)


def accuracy_line(outcome: Mapping[str, Any], prefix: str) -> str:
    """Top-1 with its interval, of what, and what chance would give."""
    top1, low, high = (outcome["metrics"][f"{prefix}/top1{end}"] for end in ("", "_low", "_high"))
    tested = outcome["tested_on"]
    tested = f"split {tested}" if tested in SPLITS else tested
    return (
        f"top-1       {top1:.1%} [{low:.1%}, {high:.1%}] on {outcome['num_tested']} clips"
        f" ({tested}); chance {outcome['chance']:.1%}"
    )
