"""What runs leave in MLflow: one run per trial with settings, numbers and predictions; for a sweep
also a parent run with the table and the figure of all trials."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from kinema import provenance, storage, trial
from kinema.config import Config, fingerprint, flatten, to_yaml
from kinema.experiment import Experiment, SweepExperiment, run_key
from kinema.figures.sweep import save_sweep, terminal_table
from kinema.models.weights import saw_labels
from kinema.pipelines.prepare import Prepared
from kinema.pipelines.tracker import RemoteTracker, StudyTracker, start_tracker
from kinema.pipelines.tuning import Trial
from kinema.tracking import Status
from kinema.wording import counted


def begin(
    tracker: StudyTracker,
    experiment: Experiment,
    key: str,
    name: str,
    prepared: Prepared,
    parent_key: str | None = None,
    extra: Mapping[str, Any] | None = None,
    planned: bool = False,
    settings: Config | None = None,
) -> RemoteTracker:
    """Start, continue or plan the tracked run of an experiment: params, tags, config, packages.

    `settings` are shown in place of the experiment's own, where those do not say what is run.
    """
    shown = experiment if settings is None else settings
    # A sweep's file has the settings of all its trials, this run those of one.
    params = {k: v for k, v in flatten(shown).items() if not k.startswith("sweep.")}
    params |= {k: str(v) for k, v in (extra or {}).items()}
    run = tracker.run(
        key,
        name,
        parent_key=parent_key,
        params=params,
        tags=provenance.standard_tags(
            method=experiment.method,
            paper=experiment.paper,
            manifest_digest=prepared.manifest.digest,
            store_digest=None if experiment.motion is None else fingerprint(experiment.motion),
            ray_job_id=ray.get_runtime_context().get_job_id(),
        ),
        planned=planned,
    )
    run.text(to_yaml(shown), "config/experiment.yaml")
    run.text(provenance.installed_packages(), "environment/packages.txt")
    return run


def encoder_note(experiment: Experiment) -> dict[str, str]:
    """A param for the run of an experiment that starts from a given encoder."""
    if experiment.encoder is None:
        return {}
    return {"encoder_saw_labels": str(saw_labels(experiment.encoder)).lower()}


def close(run: RemoteTracker, outcome: Mapping[str, Any] | None, reason: str | None) -> None:
    """End a run: with its result and predictions, or with the reason why it has none.

    With a reason it failed, whatever it has from an earlier attempt.
    """
    if reason is not None or outcome is None:
        run.finish("FAILED" if reason else "KILLED", reason or "stopped before its end")
        return
    if "metrics" in outcome:
        run.summary(outcome["metrics"])
    if "predictions" in outcome:
        run.content(storage.read_bytes(outcome["predictions"]), "predictions/test.parquet")
    run.json(dict(outcome), "result.json")
    run.finish("FINISHED")


def give_up(run: RemoteTracker, error: BaseException) -> None:
    """End a run that could not go on."""
    killed = isinstance(error, KeyboardInterrupt | SystemExit)
    status: Status = "KILLED" if killed else "FAILED"
    run.finish(status, f"{type(error).__name__}: {error}")


class Study(ABC):
    """The tracked side of many trials. Every run is found again by its key on every submission.

    Args:
        kind: of the study, in names of folders and artifacts.
        base: what all trials have in common.
        key: names the study.
        name: of the parent run.
        prepared: the data that the parent run is tagged with.
        extra: further params of the parent run.
    """

    def __init__(
        self,
        kind: str,
        base: Experiment,
        key: str,
        name: str,
        prepared: Prepared,
        extra: Mapping[str, Any],
    ) -> None:
        self.kind, self.key = kind, key
        self.tracker = start_tracker(base.root, base.name)
        self.parent = begin(self.tracker, base, key, name, prepared, extra=extra)
        self.folder = storage.join(base.root, f"{kind}s", key)
        self._runs: dict[str, RemoteTracker] = {}

    @abstractmethod
    def data(self, item: Trial) -> Prepared:
        """The videos of a trial."""

    @abstractmethod
    def run_key(self, item: Trial) -> str:
        """Names what a trial computes."""

    @abstractmethod
    def result(self, item: Trial) -> dict[str, Any] | None:
        """The result of a trial, or None."""

    def is_done(self, item: Trial) -> bool:
        """Whether nothing is left to do for a trial; what could not be read may be readable now."""
        outcome = self.result(item)
        return outcome is not None and trial.is_complete(outcome)

    @abstractmethod
    def row(self, item: Trial, failures: Mapping[str, str]) -> dict[str, Any]:
        """One line of the study's table."""

    @abstractmethod
    def table(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The table for a terminal."""

    @abstractmethod
    def save(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
        """Write table and figures."""

    def settle(self, trials: Sequence[Trial]) -> list[Trial]:
        """Close the runs of trials that are done; returns the others."""
        unfinished = [item for item in trials if not self.is_done(item)]
        for item in trials:
            done = item not in unfinished
            if done and not self.tracker.is_finished(self.run_key(item), self.key):
                self.open([item])
                self.close(item, None)
        everything = counted(len(trials), "trial is", "trials are")
        print(f"{len(trials) - len(unfinished)} of {everything} done", flush=True)
        return unfinished

    def open(self, trials: Sequence[Trial], planned: bool = False) -> dict[str, RemoteTracker]:
        """The runs of `trials`, below the study's; planned ones start later."""
        for item in trials:
            key, data = self.run_key(item), self.data(item)
            extra = {"control": str(item.control).lower(), **item.settings}
            extra |= encoder_note(item.experiment)
            self._runs[item.name] = begin(
                self.tracker, item.experiment, key, item.name, data, self.key, extra, planned
            )
        return {item.name: self._runs[item.name] for item in trials}

    def close(self, item: Trial, reason: str | None) -> None:
        """End a trial's run."""
        close(self._runs.pop(item.name), self.result(item), reason)

    def publish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the table, keep it with the figure in storage and parent run, and end that run."""
        print(self.table(rows), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for file in self.save(rows, Path(folder)):
                storage.write_bytes(storage.join(self.folder, file.name), file.read_bytes())
                self.parent.artifact(file, self.kind)
        done = [row for row in rows if row["status"] == "done"]
        reached = [row["top1"] for row in done if "top1" in row and not row.get("control")]
        if reached:
            self.parent.summary({f"{self.kind}/top1_best": max(reached)})
        lost = len(rows) - len(done)
        self.parent.finish(
            "FAILED" if lost else "FINISHED",
            f"{lost} of {counted(len(rows), 'trial has', 'trials have')} no comparable result"
            if lost
            else None,
        )
        print(f"table and figure: {self.folder}", flush=True)

    def abandon(self, error: BaseException) -> None:
        """End what is still open: the study could not go on."""
        for run in [*self._runs.values(), self.parent]:
            give_up(run, error)


class SweepStudy(Study):
    """The tracked side of a sweep, whose trials all use the same videos."""

    def __init__(
        self, experiment: SweepExperiment, trials: Sequence[Trial], prepared: Prepared
    ) -> None:
        base, self.columns = experiment.base(), experiment.sweep.columns
        key = fingerprint(
            "sweep", experiment.name, sorted(self.columns), base, prepared.manifest.digest
        )
        name = f"sweep {' x '.join(axis.rsplit('.', 1)[-1] for axis in self.columns)}"
        self.prepared = prepared
        super().__init__(
            "sweep", base, key, name, prepared, {"sweep.axes": ", ".join(self.columns)}
        )

    def data(self, item: Trial) -> Prepared:
        """The same of every trial."""
        return self.prepared

    def run_key(self, item: Trial) -> str:
        """Of the whole run."""
        return run_key(item.experiment, self.prepared.manifest.digest)

    def result(self, item: Trial) -> dict[str, Any] | None:
        """Of the whole run."""
        return trial.result(item.experiment, self.prepared.manifest.digest)

    def row(self, item: Trial, failures: Mapping[str, str]) -> dict[str, Any]:
        """One line of the sweep's table."""
        outcome = self.result(item)
        row: dict[str, Any] = {"trial": item.name, "control": item.control, **item.settings}
        if outcome is None or item.name in failures:
            status = "failed" if item.name in failures else "stopped"
            return row | {"status": status, "reason": failures.get(item.name, "")}
        masked = outcome.get("pretrain", {})
        masks = {
            "realised_inside_ratio": masked.get("mask/realised_inside_ratio"),
            "clipped_share": masked.get("mask/clipped_share"),
            "fallback_share": masked.get("motion/fallback_share"),
            "seconds": outcome["seconds"],
        }
        if "metrics" not in outcome:
            return row | masks | {"status": "done", "encoder": outcome["encoder"]}
        metrics = outcome["metrics"]
        return (
            row
            | masks
            | {
                "status": "done" if outcome["comparable"] else "not comparable",
                "top1": metrics["test/top1"],
                "low": metrics["test/top1_low"],
                "high": metrics["test/top1_high"],
                "chance": outcome["chance"],
                "num_tested": outcome["num_tested"],
            }
        )

    def table(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """A line per trial, and notes."""
        return terminal_table(rows, self.columns)

    def save(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
        """See `save_sweep`."""
        return save_sweep(rows, self.columns, folder)
