"""Runs side by side through Ray Tune: as many as the cluster holds, one line per event."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler

from kinema import storage
from kinema.errors import ConfigError, KinemaError
from kinema.experiment import Experiment, SweepExperiment
from kinema.pipelines.cluster import TRIAL_DRIVER, max_concurrent_trials, require_trial
from kinema.pipelines.prepare import Prepared
from kinema.pipelines.tracker import RemoteTracker
from kinema.pipelines.train import bundles, train


@dataclass(frozen=True)
class Trial:
    """One point of a sweep: the settings it changes, and the experiment they give."""

    name: str
    settings: Mapping[str, Any]
    experiment: Experiment
    control: bool = False


OnEnd = Callable[[Trial, str | None], None]
"""Called on the driver as (trial, reason of its failure or None) when a trial ends."""


Work = Callable[[Trial, RemoteTracker], object]
"""What a trial does, in a process of its own."""


def training(prepared: Prepared) -> Work:
    """Work that runs a trial's experiment on `prepared` data and tells Tune of its epochs."""
    uri, digest = prepared.manifest_uri, prepared.manifest.digest

    def work(item: Trial, run: RemoteTracker) -> None:
        stage = item.experiment.finetune
        reports = _FinetuneReports(0 if stage is None else stage.epochs)
        train(item.experiment, uri, digest, run, [reports])

    return work


def check_trials(trials: Sequence[Trial]) -> None:
    """Check that trials can run side by side: names tell them apart, all ask for the same.

    Raises:
        ConfigError: two have the same name, or some ask for other workers than the first.
    """
    problems = [
        f"{count} trials are called '{name}': give variants, controls and values of an axis that"
        " differ"
        for name, count in Counter(item.name for item in trials).items()
        if count > 1
    ]
    wanted = [bundles(item.experiment) for item in trials]
    for item, asked in zip(trials, wanted, strict=True):
        if asked != wanted[0]:
            problems.append(
                f"trial '{item.name}' asks for workers {asked} and '{trials[0].name}' for"
                f" {wanted[0]}: give all the same compute, or submit them separately"
            )
    if problems:
        raise ConfigError(problems)


def run_trials(
    trials: Sequence[Trial],
    work: Work,
    trackers: Mapping[str, RemoteTracker],
    on_end: OnEnd,
    *,
    study: Experiment,
    max_concurrent: int | None,
    scheduler: ASHAScheduler | None = None,
) -> dict[str, str]:
    """Run trials on the cluster, several at a time; returns the reason of each one that failed.

    Args:
        trials: see `check_trials`.
        work: what each does.
        trackers: the planned run of each trial, by its name.
        on_end: told when a trial ends.
        study: what the trials belong to; it has their name and storage root.
        max_concurrent: at most this many at once; None = as many as fit.
        scheduler: stops trials that lag.

    Raises:
        ConfigError: two trials have the same name, or they ask for different workers.
        ClusterError: the cluster can never give what a trial asks for.
    """
    check_trials(trials)
    if not trials:
        return {}
    require_room(trials[0].experiment, study.name)
    per_trial, driver = bundles(trials[0].experiment), driver_resources()
    wanted = min(max_concurrent or len(trials), len(trials))
    concurrent = max_concurrent_trials(per_trial, driver, wanted)
    by_name = {item.name: item for item in trials}

    def trainable(config: dict[str, Any]) -> None:
        item = by_name[config["trial"]]
        trackers[item.name].start()
        work(item, trackers[item.name])

    # Tune's old console is silent at verbose=0, its new one is not; `_Progress` says what matters.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune would take Ctrl-C and `ray job stop` for an end of its own, and the job would go on.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    progress = _Progress(by_name, on_end)
    tuner = tune.Tuner(
        tune.with_resources(trainable, driver),
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, scheduler=scheduler),
        run_config=tune.RunConfig(
            name=f"{study.name}-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=storage.join(study.root, "tune"),
            callbacks=[progress],
            verbose=0,
        ),
    )
    tuner.fit()
    return progress.failures


def require_room(experiment: Experiment, study: str) -> None:
    """Make sure that the cluster can give what a trial of a study asks for.

    Raises:
        ClusterError: it never can.
    """
    require_trial(bundles(experiment), driver_resources(), f"each trial of {study}")


def driver_resources() -> dict[str, float]:
    """What a trial's own process takes: next to nothing, but Tune refuses nothing at all.

    A cluster that declares the resource `TRIAL_DRIVER` keeps its CPUs whole for the workers.
    """
    if TRIAL_DRIVER in ray.cluster_resources():
        return {TRIAL_DRIVER: 0.01}
    return {"CPU": 0.01}


def scheduler_of(experiment: SweepExperiment, trials: Sequence[Trial]) -> ASHAScheduler | None:
    """ASHA over the trials of a sweep that asks for it and finetunes."""
    asha = experiment.sweep.scheduler
    epochs = [item.experiment.finetune.epochs for item in trials if item.experiment.finetune]
    if asha is None or not epochs:
        return None
    return ASHAScheduler(
        time_attr="stage_epoch",
        metric="val/top1",
        mode="max",
        max_t=max(epochs) + 1,  # at `max_t` a trial is ended, also one that leads
        grace_period=min(asha.grace_epochs, max(epochs)),
        reduction_factor=asha.reduction_factor,
    )


class _FinetuneReports(TuneReportCallback):
    """Tells Tune about finetuning only: pretraining losses of different masks don't compare.

    Of `epochs`, the last one is left out: a trial that has come so far is to have its test.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.epochs = epochs

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        if "val/top1" in metrics[0] and metrics[0]["stage_epoch"] < self.epochs:
            super().after_report(run_context, metrics, checkpoint)


class _Progress(TrialProgressCallback):
    """One plain line per event, and the reasons of failures; Ray job logs are no terminal.

    In the place of Tune's own lines, which it adds beside any other callback.
    """

    def __init__(self, trials: Mapping[str, Trial], on_end: OnEnd) -> None:
        super().__init__()
        self.trials, self.on_end = trials, on_end
        self.started: dict[str, float] = {}
        self.ended = 0
        self.failures: dict[str, str] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self.started.setdefault(name, time.monotonic())
        print(f"  started   {name}", flush=True)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any
    ) -> None:
        """No line: metrics go to MLflow."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial.config["trial"], "finished", None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial.config["trial"], "FAILED", _reason(trial))

    def _end(self, name: str, what: str, reason: str | None) -> None:
        self.ended += 1
        now = time.monotonic()
        seconds = now - self.started.get(name, now)  # whose process never came up has no start
        tail = "" if reason is None else f"\n            {reason}"
        print(
            f"  {what:9} {name}  ({self.ended}/{len(self.trials)}, {seconds:.0f} s){tail}",
            flush=True,
        )
        if reason is not None:
            self.failures[name] = reason
        self.on_end(self.trials[name], reason)


def _reason(trial: Any) -> str:
    """What went wrong in a trial of Tune's, without Ray's wrapping.

    Read where the driver has just written it: in the storage it appears only some time later.
    """
    if trial.pickled_error_file is None:
        return Path(trial.error_file).read_text().strip().splitlines()[-1]
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = getattr(error, "cause", None) or error
    return str(cause) if isinstance(cause, KinemaError) else f"{type(cause).__name__}: {cause}"
