"""Jobs without a cluster: what a failure ends, what is done again, and what cannot run at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from ray.tune.integration.ray_train import TuneReportCallback

from kinema import storage, trial
from kinema.config import load
from kinema.errors import CheckpointError, ConfigError, NonFiniteLossError, VideoError
from kinema.experiment import Experiment, SweepExperiment
from kinema.pipelines import prepare as prepare_module
from kinema.pipelines import single as single_module
from kinema.pipelines import study as study_module
from kinema.pipelines import sweep as module
from kinema.pipelines import train as train_module
from kinema.pipelines import transfer as transfer_module
from kinema.pipelines.prepare import Prepared
from kinema.pipelines.sweep import plan, sweep
from kinema.pipelines.transfer import TransferStudy
from kinema.pipelines.transfer_plan import Cell, Source
from kinema.pipelines.tuning import (
    Trial,
    _FinetuneReports,
    _Progress,
    check_trials,
    run_trials,
    scheduler_of,
)

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
    tracker = SimpleNamespace(is_finished=lambda *keys: False)
    monkeypatch.setattr(study_module, "start_tracker", lambda *arguments: tracker)
    monkeypatch.setattr(module, "start", lambda config: None)
    monkeypatch.setattr(module, "_require_room", lambda trials: None)
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
                if item.experiment.finetune is None:
                    encoder = trial.pretrained_uri(item.experiment, DIGEST)
                    storage.write_bytes(storage.join(encoder, trial.ENCODER_FILE), b"an encoder")
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
    experiment = load_sweep(tmp_path, "pretrain.epochs=2", "pretrain.optim.warmup_epochs=0", other)
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


@pytest.mark.parametrize("comparable", [True, False])
def test_a_trial_that_lacked_test_videos_is_done_again(
    tmp_path: Path,
    ended: dict[str, tuple[str, str | None]],
    monkeypatch: pytest.MonkeyPatch,
    comparable: bool,
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(module, "run_trials", failing(ran, lambda item: False))
    monkeypatch.setitem(RESULT, "comparable", comparable)
    experiment = load_sweep(tmp_path)
    every = plan(experiment)
    folder = trial.run_uri(every[0].experiment, DIGEST)
    storage.write_json(storage.join(folder, trial.RESULT_FILE), RESULT)
    assert sweep(experiment) == (0 if comparable else 1)
    assert ran[-1] == [item.name for item in (every[1:] if comparable else every)]
    (parent,) = [end for name, end in ended.items() if name.startswith("sweep")]
    reason = "5 of 5 trials have no comparable result"
    assert parent == (("FINISHED", None) if comparable else ("FAILED", reason))


def test_a_trial_that_now_fails_is_not_shown_as_its_earlier_result(
    tmp_path: Path, ended: dict[str, tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_sweep(tmp_path)
    first = plan(experiment)[0]
    monkeypatch.setattr(module, "run_trials", failing([], lambda item: item.name == first.name))
    earlier = {**RESULT, "comparable": False}
    folder = trial.run_uri(first.experiment, DIGEST)
    storage.write_json(storage.join(folder, trial.RESULT_FILE), earlier)
    assert sweep(experiment) == 1
    assert ended[first.name] == ("FAILED", "out of memory")
    (folder,) = map(str, (tmp_path / "sweeps").iterdir())
    lines = Path(folder, "sweep.csv").read_text().splitlines()
    assert sum(",failed,out of memory," in line for line in lines) == 1
    study = TransferStudy.__new__(TransferStudy)  # no cluster, so no tracker
    test: Any = SimpleNamespace(result=lambda: earlier)
    cell = Cell("a", {}, first.experiment, test=test)
    row = {"trial": "a", "status": "failed", "reason": "out of memory"}
    assert study.row(cell, {"a": "out of memory"}) == row
    assert study.row(cell, {})["status"] == "not comparable"


def test_trials_with_one_result_are_told_before_anything_runs(tmp_path: Path) -> None:
    same = "sweep.controls={same: {loader.num_workers: 3, head: {name: mca, heads: 3, depth: 2}}}"
    message = "trials 'heads=3 depth=2' and 'same' differ in nothing that changes a result"
    with pytest.raises(ConfigError, match=message):
        plan(load_sweep(tmp_path, same))


def test_a_scheduler_that_stops_nothing_is_told_before_anything_runs(tmp_path: Path) -> None:
    settings = "sweep.scheduler={grace_epochs: 4}", "finetune.epochs=4"
    with pytest.raises(ConfigError, match=r"grace_epochs 4 leaves nothing to stop of .*epochs 4"):
        plan(load_sweep(tmp_path, *settings))
    seldom = "sweep.scheduler={grace_epochs: 1}", "finetune.epochs=4", "finetune.checkpoint_every=4"
    with pytest.raises(ConfigError, match=r"checkpoint_every 4 tells .* nothing before the last"):
        plan(load_sweep(tmp_path, *seldom))


def test_a_trial_that_has_trained_to_its_end_is_not_shown_to_the_scheduler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float] = []
    monkeypatch.setattr(
        TuneReportCallback, "after_report", lambda _, __, said, ___: told.append(said[0])
    )
    monkeypatch.setattr(TuneReportCallback, "__init__", lambda _: None)  # asks for a Tune session
    reports = _FinetuneReports(3)
    for said in [{"loss": 1.0}, *({"val/top1": 0.5, "stage_epoch": n} for n in (1, 2, 3))]:
        reports.after_report(None, [said], None)
    assert [said["stage_epoch"] for said in told] == [1, 2]


def test_encoders_that_are_swept_are_found_from_everywhere(tmp_path: Path) -> None:
    """Workers run in another folder, and one on another machine has never seen this one."""
    axes = "sweep.axes={encoder: [a.safetensors, b.safetensors]}", "pretrain=null"
    found = [item.experiment.encoder for item in plan(load_sweep(tmp_path, *axes))]
    assert found[:2] == [str(Path(name).absolute()) for name in ("a.safetensors", "b.safetensors")]


def test_a_scheduler_ends_those_that_lag_and_leaves_the_best_their_test(tmp_path: Path) -> None:
    settings = (
        "sweep.scheduler={grace_epochs: 1, reduction_factor: 2}",
        "finetune.epochs=4",
        "finetune.checkpoint_every=1",
    )
    experiment = load_sweep(tmp_path, *settings)
    scheduler = scheduler_of(experiment, plan(experiment))
    assert scheduler is not None
    runs = {name: SimpleNamespace(trial_id=name, config={}, status="RUNNING") for name in "ab"}
    for run in runs.values():
        scheduler.on_trial_add(None, run)  # type: ignore[arg-type]
    for epoch in range(1, 5):  # one that leads is never ended, also not by its last epoch
        said = {"stage_epoch": epoch, "val/top1": 0.9}
        assert scheduler.on_trial_result(None, runs["a"], said) == "CONTINUE"  # type: ignore[arg-type]
    said = {"stage_epoch": 1, "val/top1": 0.1}
    assert scheduler.on_trial_result(None, runs["b"], said) == "STOP"  # type: ignore[arg-type]


def test_a_trial_that_never_started_ends_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = Trial("one", {}, load_sweep(tmp_path).base())
    told: list[tuple[Trial, str | None]] = []
    error = tmp_path / "error.txt"
    error.write_text("Traceback\nActorDiedError: the node is gone\n")
    lost = SimpleNamespace(config={"trial": "one"}, pickled_error_file=None, error_file=str(error))
    _Progress({"one": item}, lambda *end: told.append(end)).on_trial_error(0, [], lost)
    assert told == [(item, "ActorDiedError: the node is gone")]
    assert "FAILED    one  (1/1, 0 s)" in capsys.readouterr().out


def worker(folder: Path, attempt: str) -> dict[str, Any]:
    """What Ray hands to a training worker."""
    experiment = load_sweep(folder).base().resolved().model_dump(mode="json")
    failure = str(folder / "failure.json")
    return {
        "experiment": experiment,
        "manifest": "manifest.parquet",
        "tracker": None,
        "failure": failure,
        "attempt": attempt,
        "talks": False,
    }


@pytest.mark.parametrize(
    ("error", "starts"),
    [(NonFiniteLossError("diverged"), 1), (OSError("disk"), 2), (CheckpointError("gone"), 2)],
)
def test_a_restart_does_not_repeat_what_would_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, starts: int
) -> None:
    begun = []

    def run_stages(*arguments: object) -> None:
        begun.append(arguments)
        raise error

    monkeypatch.setattr(train_module, "run_stages", run_stages)
    monkeypatch.setattr(train_module.ray.train, "get_checkpoint", lambda: None)
    first = worker(tmp_path, "first")
    with pytest.raises(type(error)):
        train_module._train_worker(first)
    with contextlib.nullcontext() if starts == 1 else pytest.raises(type(error)):
        train_module._train_worker(first)  # Ray's restart
    assert len(begun) == starts
    with pytest.raises(type(error)):
        train_module._train_worker(worker(tmp_path, "second"))  # submitted again: tried again
    assert len(begun) == starts + 1


@pytest.mark.parametrize("read", [True, False])
def test_a_run_says_which_videos_its_test_lacks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    read: bool,
) -> None:
    failures = {} if read else {f"v{i}": f"v{i}.mp4: damaged" for i in range(7)}
    outcome = {
        **RESULT,
        "encoder": "encoder.safetensors",
        "tested_on": "test",
        "left_out": {"t1": "t1.mp4: damaged"},
        "comparable": read,
        "failures": failures,
    }
    monkeypatch.setattr(single_module, "start", lambda config: None)
    monkeypatch.setattr(
        single_module, "complete", lambda experiment, name: (outcome, str(tmp_path))
    )
    assert single_module.run_experiment(load_sweep(tmp_path).base(), "mofo") == (0 if read else 1)
    printed = capsys.readouterr().out
    assert "left out    1 training or validation video," in printed
    assert ("NOT COMPARABLE: 7 videos could not be read\n  - v0: v0.mp4" in printed) is not read
    assert ("  and 2 more\n" in printed) is not read


def test_a_run_that_is_done_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_sweep(tmp_path).base().resolved()
    folder = trial.run_uri(experiment, DIGEST)
    prepared = SimpleNamespace(manifest=SimpleNamespace(digest=DIGEST))
    tracker = SimpleNamespace(is_finished=lambda key: True)
    monkeypatch.setattr(single_module, "prepare", lambda *arguments: prepared)
    monkeypatch.setattr(single_module, "known_manifest", lambda experiment: prepared.manifest)
    monkeypatch.setattr(single_module, "start_tracker", lambda *arguments: tracker)
    storage.write_json(storage.join(folder, trial.RESULT_FILE), RESULT)
    assert single_module.complete(experiment, "mofo") == (RESULT, folder)
    assert capsys.readouterr().out == "mofo: found done, not repeated\n"


def test_a_source_without_videos_ends_no_other(tmp_path: Path) -> None:
    base = load_sweep(tmp_path).base().pretraining_only()
    manifest = SimpleNamespace(digest=DIGEST)
    good = Prepared("manifest.parquet", manifest)  # type: ignore[arg-type]

    class Data:
        def of(self, experiment: Experiment) -> Prepared:
            if experiment.seed == 1:
                raise VideoError("v.mp4", "damaged")
            return good

    sources = {
        name: Source(name, base, base.varied({"seed": seed}))
        for name, seed in {"good": 0, "bad": 1}.items()
    }
    study = SimpleNamespace(
        run_key=lambda cell: cell.name,
        result=lambda cell: {},
        open=lambda *cells, **more: {},
        close=None,
    )
    checked: list[Experiment] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "check_clips", lambda experiment, manifest: checked.append(experiment))
        patch.setattr(transfer_module, "run_trials", lambda *arguments, **more: {})
        failures = transfer_module._make_sources(
            SimpleNamespace(transfer=SimpleNamespace(max_concurrent=None)),  # type: ignore[arg-type]
            study,  # type: ignore[arg-type]
            sources,
            Data(),  # type: ignore[arg-type]
        )
    assert failures == {"bad": "v.mp4: damaged"}
    assert [experiment.seed for experiment in checked] == [0]


@pytest.mark.parametrize(
    ("overrides", "times"),
    [
        ((), 1),  # the head reads boxes
        (("head={name: plain}",), 0),
        (("head={name: plain}", "mask={name: motion_box}"), 1),
        (("mask={name: mgm}", "head={name: plain}"), 0),  # its vectors come with the frames
    ],
)
def test_only_motion_that_is_read_is_extracted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], times: int
) -> None:
    extracted: list[object] = []
    monkeypatch.setattr(
        prepare_module, "extract", lambda uri, motion, *more, **options: extracted.append(motion)
    )
    monkeypatch.setattr(prepare_module.Manifest, "read", lambda uri: None)
    monkeypatch.setattr(prepare_module, "_warn_of_parts", lambda manifest: None)
    experiment = load_sweep(tmp_path, *overrides, "data.manifest=manifest.parquet").base()
    prepare_module.prepare([experiment])
    assert len(extracted) == times
    prepare_module.prepare([experiment], reads_motion=lambda _: True)
    assert len(extracted) == times + 1


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


@pytest.mark.parametrize(("length", "told"), [(10.0, True), (None, False)])
def test_clips_of_long_files_are_told(
    length: float | None, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table(
        {
            "path": [f"{i % 2}.mp4" for i in range(10)],
            "start_s": pa.array([None] * 10, pa.float64()),
            "end_s": pa.array([length] * 10, pa.float64()),
        }
    )
    prepare_module._warn_of_parts(SimpleNamespace(table=table))  # type: ignore[arg-type]
    assert ("10 clips are parts of 2 files" in capsys.readouterr().out) == told
