"""A sweep without a cluster: what one failure ends, and which trials cannot run side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kinema import storage, trial
from kinema.config import load
from kinema.errors import ConfigError
from kinema.experiment import Experiment, SweepExperiment
from kinema.pipelines import study as study_module
from kinema.pipelines import sweep as module
from kinema.pipelines.prepare import Prepared
from kinema.pipelines.sweep import plan, sweep
from kinema.pipelines.tuning import Trial, check_trials, run_trials

DEMO = Path(__file__).resolve().parents[2] / "experiments/demo"
DIGEST = "0123456789abcdef"
RESULT = {
    "metrics": {"test/top1": 0.5, "test/top1_low": 0.4, "test/top1_high": 0.6},
    "comparable": True,
    "chance": 0.125,
    "num_tested": 8,
    "seconds": 1.0,
}


def load_sweep(root: Path, *overrides: str) -> SweepExperiment:
    return load(SweepExperiment, DEMO / "sweep_mca.yaml", [f"storage={root}", *overrides])


class Run:
    """A tracked run that notes how it ended."""

    def __init__(self, name: str, ended: dict[str, tuple[str, str | None]]) -> None:
        self.name, self.ended = name, ended

    def finish(self, status: str, reason: str | None = None) -> None:
        self.ended[self.name] = (status, reason)

    def summary(self, *arguments: Any) -> None: ...

    json = artifact = summary


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str | None]]:
    """How each tracked run ended; there is no cluster, and there are no videos."""
    ended: dict[str, tuple[str, str | None]] = {}

    def begin(tracker: Any, experiment: Any, key: str, name: str, *rest: Any, **more: Any) -> Run:
        return Run(name, ended)

    manifest = SimpleNamespace(digest=DIGEST)
    prepared = Prepared("manifest.parquet", manifest)  # type: ignore[arg-type]
    monkeypatch.setattr(study_module, "begin", begin)
    monkeypatch.setattr(study_module, "start_tracker", lambda *arguments: None)
    monkeypatch.setattr(module, "start", lambda config: None)
    monkeypatch.setattr(module, "prepare", lambda experiments, check: prepared)
    return ended


def failing(batches: list[list[str]], fails: Callable[[Trial], bool]) -> Any:
    """Stands for `run_trials`: every trial ends at once, some without a result."""

    def run(
        trials: Sequence[Trial],
        work: object,
        trackers: Mapping[str, Run],
        on_end: Callable[[Trial, str | None], None],
        **more: Any,
    ) -> dict[str, str]:
        batches.append([item.name for item in trials])
        failures = {item.name: "out of memory" for item in trials if fails(item)}
        for item in trials:
            if item.name not in failures:
                folder = trial.run_uri(item.experiment, DIGEST)
                storage.write_json(storage.join(folder, trial.RESULT_FILE), RESULT)
            on_end(item, failures.get(item.name))
        return failures

    return run


def test_a_shared_pretraining_that_fails_fails_those_that_need_it_alone(
    tmp_path: Path, ended: dict[str, tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []
    run = failing(batches, lambda item: item.name.startswith("pretrain "))
    monkeypatch.setattr(module, "run_trials", run)
    other = "sweep.controls={other: {pretrain.epochs: 1}, none: {pretrain: null}}"
    experiment = load_sweep(tmp_path, "pretrain.epochs=2", other)
    assert sweep(experiment) == 1
    (shared,), ran = batches
    assert ran == ["other", "none"]
    needed = [item.name for item in plan(experiment) if item.name not in ran]
    assert len(needed) == 5
    for name in needed:
        assert ended[name] == ("FAILED", f"{shared}: out of memory")
    assert {ended[name][0] for name in ran} == {"FINISHED"}
    (folder,) = (tmp_path / "sweeps").iterdir()
    lines = (folder / "sweep.csv").read_text().splitlines()
    assert sum(f",{shared}: out of memory" in line and ",failed," in line for line in lines) == 5
    assert sum(",done," in line for line in lines) == 2


def test_a_sweep_whose_pretraining_works_runs_everything(
    tmp_path: Path, ended: dict[str, tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []
    monkeypatch.setattr(module, "run_trials", failing(batches, lambda item: False))
    experiment = load_sweep(tmp_path)
    assert sweep(experiment) == 0
    assert batches[1] == [item.name for item in plan(experiment)]
    assert {status for status, _ in ended.values()} == {"FINISHED"}


def test_trials_of_one_name_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 trials are called 'heads=1 depth=1': give .* differ"):
        plan(load_sweep(tmp_path, "sweep.controls={heads=1 depth=1: {head: {name: plain}}}"))


def test_trials_that_ask_for_other_workers_are_told(tmp_path: Path) -> None:
    base = load_sweep(tmp_path).base()
    trials = [
        Trial("one", {}, base),
        Trial("two", {}, base.varied({"compute.num_workers": 3})),
    ]
    message = r"trial 'two' asks for .* and 'one' for .*: give all the same compute"
    with pytest.raises(ConfigError, match=message):
        check_trials(trials)


def test_runs_are_checked_before_the_cluster_is_asked(tmp_path: Path) -> None:
    base: Experiment = load_sweep(tmp_path).base()
    twice = [Trial("one", {}, base)] * 2
    with pytest.raises(ConfigError, match="2 trials are called 'one'"):
        run_trials(twice, print, {}, print, study=base, max_concurrent=None)
