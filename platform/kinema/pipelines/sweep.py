"""A sweep from settings to table and figure.

The table of trials is our own: a trial is what its run key names, and it is done when its result
lies in the storage. Submitting a sweep again skips what is done, continues what was interrupted,
retries what failed and adds what is new.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from kinema import trial
from kinema.config import fingerprint, flatten
from kinema.errors import ConfigError
from kinema.experiment import (
    VARIANT,
    Experiment,
    SweepConfig,
    SweepExperiment,
    deciding_settings,
    pretrain_key,
    refuse_overruled,
)
from kinema.pipelines.prepare import Prepared, check_encoders, known_manifest, prepare, start
from kinema.pipelines.study import SweepStudy
from kinema.pipelines.train import is_done
from kinema.pipelines.tuning import (
    Trial,
    check_trials,
    require_room,
    run_trials,
    scheduler_of,
    training,
)
from kinema.randomness import keyed_rng


def plan(experiment: SweepExperiment) -> list[Trial]:
    """All trials of a sweep, in table order: the grid or a random part of it, then the controls.

    Raises:
        ConfigError: a combination of settings is not a valid experiment, two are the same one,
            trials cannot run side by side, or the scheduler has nothing to stop.
    """
    sweep, base = experiment.sweep, experiment.base()
    varied = {VARIANT: list(sweep.variants), **sweep.axes} if sweep.variants else sweep.axes
    points = [
        point
        for values in itertools.product(*varied.values())
        if not _skipped(point := dict(zip(varied, values, strict=True)), sweep.skip)
    ]
    if sweep.search == "random" and sweep.num_samples < len(points):
        rng = keyed_rng(experiment.seed, "random search")
        chosen = sorted(rng.choice(len(points), sweep.num_samples, replace=False))
        points = [points[i] for i in chosen]
    trials = [Trial(_name(point), point, _varied(base, sweep, point)) for point in points]
    trials += [
        Trial(name, settings, base.varied(settings).resolved(), control=True)
        for name, settings in sweep.controls.items()
    ]
    # of all, before anything runs: those left to do may be fewer
    check_trials(trials)
    _check_scheduler(sweep, trials)
    _check_distinct(trials)
    return trials


def check_sweep(experiment: SweepExperiment, given: Sequence[str]) -> None:
    """All that can be said of a sweep before it runs.

    Args:
        experiment: as read.
        given: the `given_keys` of the command line.

    Raises:
        ConfigError: as `plan`, or an axis or every variant overrules what was given.
    """
    sweep = experiment.sweep
    refuse_overruled(
        given,
        sweep.axes,
        lambda key: f"{key} is swept: give sweep.axes={{{key}: [...]}} in its place",
    )
    set_by = [set(flatten(changes)) for changes in sweep.variants.values()]
    refuse_overruled(
        given,
        set.intersection(*set_by) if set_by else (),
        lambda key: f"{key} is set by every variant: give sweep.variants={{...}} in its place",
    )
    plan(experiment)


def _check_scheduler(sweep: SweepConfig, trials: Sequence[Trial]) -> None:
    """One that lets every trial run to its end is not what was meant."""
    stages = [item.experiment.finetune for item in trials if item.experiment.finetune]
    if sweep.scheduler is None or not stages:
        return
    grace, epochs = sweep.scheduler.grace_epochs, max(stage.epochs for stage in stages)
    seldom = max(stage.checkpoint_every for stage in stages)  # an accuracy comes with a checkpoint
    problems = []
    if grace >= epochs:
        problems.append(
            f"sweep.scheduler.grace_epochs {grace} leaves nothing to stop of finetune.epochs"
            f" {epochs}; lower it, or set sweep.scheduler=null"
        )
    elif seldom >= epochs:
        problems.append(
            f"finetune.checkpoint_every {seldom} tells sweep.scheduler nothing before the last of"
            f" finetune.epochs {epochs}; set it to 1, or set sweep.scheduler=null"
        )
    if problems:
        raise ConfigError(problems)


def _check_distinct(trials: Sequence[Trial]) -> None:
    """Two trials with one result would train into one folder at the same time."""
    known: dict[str, str] = {}
    for item in trials:
        other = known.setdefault(fingerprint(deciding_settings(item.experiment)), item.name)
        if other != item.name:
            raise ConfigError(
                [
                    f"trials '{other}' and '{item.name}' differ in nothing that changes a result:"
                    " leave one out"
                ]
            )


def _skipped(point: Mapping[str, Any], skip: Sequence[Mapping[str, Any]]) -> bool:
    return any(all(point[key] == entry[key] for key in entry) for entry in skip)


def _varied(base: Experiment, sweep: SweepConfig, point: Mapping[str, Any]) -> Experiment:
    """The variant's overrides and the axes' values together: only both may be valid."""
    axes = {key: value for key, value in point.items() if key != VARIANT}
    return base.varied({**sweep.variants.get(point.get(VARIANT, ""), {}), **axes}).resolved()


def _name(point: Mapping[str, Any]) -> str:
    named = [point[VARIANT]] if VARIANT in point else []
    axes = (f"{k.rsplit('.', 1)[-1]}={value}" for k, value in point.items() if k != VARIANT)
    return " ".join([*named, *axes])


def shared_pretraining(trials: Sequence[Trial], prepared: Prepared) -> list[Trial]:
    """Pretraining-only trials for encoders that several unfinished trials start from.

    Each is made once, before the trials; otherwise every trial would make its own at the same time.
    """
    digest = prepared.manifest.digest
    users: dict[str, list[Trial]] = {}
    for item in trials:
        if item.experiment.pretrain is not None and item.experiment.finetune is not None:
            users.setdefault(pretrain_key(item.experiment, digest), []).append(item)
    return [
        Trial(f"pretrain {key[:8]}", {}, items[0].experiment.pretraining_only())
        for key, items in users.items()
        if len(items) > 1 and not trial.is_pretrained(items[0].experiment, digest)
    ]


def sweep(experiment: SweepExperiment) -> int:
    """Run a sweep to its end, show the table, keep table and figure in MLflow.

    Returns:
        Exit code: 0 when every trial has a result, 1 when any failed or was stopped without one.

    Raises:
        KinemaError: settings, data or cluster make the sweep as a whole impossible.
    """
    trials = plan(experiment)
    check_encoders(item.experiment for item in trials)
    start(trials[0].experiment)
    _require_room(trials)
    prepared = prepare([item.experiment for item in trials], trial.check_clips)
    study = SweepStudy(experiment, trials, prepared)
    try:
        unfinished = study.settle(trials)
        failures = _pretrain_shared(experiment, study, unfinished, prepared)
        for item in unfinished:
            if item.name in failures:
                study.open([item])
                study.close(item, failures[item.name])
        ready = [item for item in unfinished if item.name not in failures]
        failures |= _run(experiment, study, ready, prepared)
        rows = [study.row(item, failures) for item in trials]
        study.publish(rows)
    except BaseException as error:
        study.abandon(error)
        raise
    return 0 if all(row["status"] == "done" for row in rows) else 1


def _require_room(trials: Sequence[Trial]) -> None:
    """Said before videos are read, which may take hours; trials that are done need no workers."""
    manifest = known_manifest(trials[0].experiment)
    for item in trials:
        if not is_done(item.experiment, manifest):
            require_room(item.experiment, item.experiment.name)


def _pretrain_shared(
    experiment: SweepExperiment, study: SweepStudy, trials: Sequence[Trial], prepared: Prepared
) -> dict[str, str]:
    """Make the encoders that trials share; returns why each trial that now lacks its own failed."""
    digest = prepared.manifest.digest
    shared = shared_pretraining(trials, prepared)
    failures = _run(experiment, study, shared, prepared)
    by_key = {
        pretrain_key(item.experiment, digest): f"{item.name}: {failures[item.name]}"
        for item in shared
        if item.name in failures
    }
    needed = {
        item.name: pretrain_key(item.experiment, digest)
        for item in trials
        if item.experiment.pretrain is not None
    }
    return {name: by_key[key] for name, key in needed.items() if key in by_key}


def _run(
    experiment: SweepExperiment, study: SweepStudy, trials: Sequence[Trial], prepared: Prepared
) -> dict[str, str]:
    return run_trials(
        trials,
        training(prepared),
        study.open(trials, planned=True),
        study.close,
        study=experiment,
        max_concurrent=experiment.sweep.max_concurrent,
        scheduler=scheduler_of(experiment, trials),
    )
