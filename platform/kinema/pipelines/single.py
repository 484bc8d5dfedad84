"""One experiment from data to tracked result: what the jobs `pretrain` and `finetune` run."""

from __future__ import annotations

from kinema import storage, trial
from kinema.experiment import Experiment, run_key
from kinema.pipelines.cluster import connect
from kinema.pipelines.prepare import prepare
from kinema.pipelines.study import begin, close
from kinema.pipelines.tracker import start_tracker
from kinema.pipelines.train import train


def run_experiment(experiment: Experiment) -> int:
    """Run `experiment`, or find it done, and print its result.

    Raises:
        KinemaError: settings, data or cluster make it impossible, or training gave up.
    """
    experiment = experiment.resolved()
    storage.check_writable(experiment.root)
    connect()
    prepared = prepare([experiment])
    digest = prepared.manifest.digest
    tracker = start_tracker(experiment.root, experiment.name)
    run = begin(tracker, experiment, run_key(experiment, digest), experiment.method, prepared)
    try:
        outcome = train(experiment, prepared.manifest_uri, digest, run)
    except BaseException as error:
        close(run, None, f"{type(error).__name__}: {error}")
        raise
    close(run, outcome, None)
    print(f"encoder     {outcome['encoder']}")
    if "metrics" in outcome:
        metrics = outcome["metrics"]
        print(
            f"top-1       {metrics['test/top1']:.1%} "
            f"[{metrics['test/top1_low']:.1%}, {metrics['test/top1_high']:.1%}] on "
            f"{outcome['num_tested']} clips of split {outcome['tested_on']}; "
            f"chance {outcome['chance']:.1%}"
        )
    print(f"everything  {trial.run_uri(experiment, digest)}")
    return 0
