"""Tracking against a real SQLite store, and against a server that does not answer."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_runner import call
from mlflow import MlflowClient
from mlflow.entities import Run

from kinema import journal as journal_module
from kinema import tracking
from kinema.errors import StorageError
from kinema.journal import Journal, journal_path
from kinema.tracking import Tracker, replay
from kinema.tracking_server import tracking_uri_for

pytestmark = pytest.mark.filterwarnings(  # inside mlflow
    "ignore::sqlalchemy.exc.SADeprecationWarning"
)

UNREACHABLE = "http://127.0.0.1:9"
STUDY = "study"


@pytest.fixture(autouse=True)
def no_lock_outlives_its_test() -> Iterator[None]:
    """A process keeps the locks of its unfinished runs; these tests are many jobs in one."""
    yield
    while journal_module._held:
        journal_module._held.popitem()[1].close()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store; making one takes seconds, copying it does not."""
    root = tmp_path_factory.mktemp("mlflow")
    Tracker(str(root), STUDY)
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail at once against a server that is not there, and ask again at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "RETRY_AFTER_S", (0.0, 0.0))
    return


def runs(root: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name(STUDY)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def history(root: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def points(key: str, *steps: int) -> list[tuple[str, float, int, int]]:
    return [(key, step / 2, step, 1_000 + step) for step in steps]


def test_child_is_listed_under_parent_with_params_and_tags(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    parent = tracker.run("sweep", "sweep of ratios")
    child = tracker.run(
        "trial", "ratio 0.5", "sweep", {"mask.inside_ratio": 0.5, "encoder": None}, {"method": "a"}
    )
    tracker.finish(child, "FAILED", "out of memory")
    tracker.finish(parent, "FINISHED")
    found = {run.info.run_id: run for run in runs(root)}
    assert found.keys() == {parent, child}
    assert found[child].data.tags["mlflow.parentRunId"] == parent
    assert found[child].data.params == {"mask.inside_ratio": "0.5", "encoder": "None"}
    assert found[child].data.tags["method"] == "a"
    assert found[child].data.tags["kinema.reason"] == "out of memory"
    assert found[child].info.status == "FAILED"
    assert found[child].info.run_name == "ratio 0.5"
    assert found[parent].info.status == "FINISHED"


def test_same_key_continues_the_run(root: Path) -> None:
    first = Tracker(str(root), STUDY)
    run_id = first.run("trial", "trial", params={"seed": 0, "lr": 0.1})
    first.log(run_id, points("pretrain/loss", 0, 1, 2))
    first.finish(run_id, "KILLED")
    again = Tracker(str(root), STUDY)
    assert again.run("trial", "trial", params={"seed": 0, "lr": 0.2, "new": 1}) == run_id
    (run,) = runs(root)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"seed": "0", "lr": "0.1", "new": "1"}
    assert run.data.tags["resumed.lr"] == "0.2"
    again.log(run_id, points("pretrain/loss", 1, 2, 3))
    assert [step for step, _ in history(root, run_id, "pretrain/loss")] == [0, 1, 2, 3]
    again.finish(run_id, "FINISHED")
    assert runs(root)[0].info.status == "FINISHED"


def test_a_planned_run_begins_when_it_starts(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    tracker.run("sweep", "sweep")
    handles = {name: tracker.run(name, name, "sweep", planned=True) for name in "abc"}
    for handle in handles.values():
        tracker.attach(handle, b"seed: 0", "config.yaml")
    assert [run.info.run_name for run in runs(root)] == ["sweep"]
    before = time.time() * 1000
    tracker.start(handles["a"])
    tracker.log(handles["b"], points("loss", 0))
    tracker.finish(handles["c"], "FAILED", "its pretraining failed")
    found = {run.info.run_name: run.info for run in runs(root)}
    assert {name: found[name].status for name in "abc"} == {
        "a": "RUNNING", "b": "RUNNING", "c": "FAILED",
    }  # fmt: skip
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    for name in "abc":
        assert found[name].start_time >= before
        assert [file.path for file in client.list_artifacts(found[name].run_id)] == ["config.yaml"]
    tracker.log(handles["a"], points("loss", 0))
    assert history(root, found["a"].run_id, "loss") == [(0, 0.0)]


def test_a_run_is_finished_when_the_server_shows_all_of_it(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    tracker.run("sweep", "sweep")
    assert not tracker.is_finished("trial", "sweep")
    run_id = tracker.run("trial", "trial", "sweep")
    assert not tracker.is_finished("trial", "sweep")
    tracker.finish(run_id, "FINISHED")
    assert tracker.is_finished("trial", "sweep")
    assert not tracker.is_finished("trial")
    assert Tracker(str(root), STUDY).is_finished("trial", "sweep")
    failed = tracker.run("other", "other")
    tracker.finish(failed, "FAILED", "why")
    assert not tracker.is_finished("other")


def test_same_key_under_two_parents_is_two_runs(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    for parent in ("a", "b"):
        tracker.run(parent, parent)
    one, other = (tracker.run("trial", "trial", parent) for parent in ("a", "b"))
    alone = tracker.run("trial", "trial")
    assert len({one, other, alone}) == 3
    for run_id in (one, other, alone):
        tracker.log(run_id, points("loss", 0))
        assert len(history(root, run_id, "loss")) == 1


def test_replayed_points_are_dropped_even_without_the_journal(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("trial", "trial")
    tracker.log(run_id, points("loss", 0, 1))
    shutil.rmtree(root / "journal")
    again = Tracker(str(root), STUDY)
    again.run("trial", "trial")
    again.log(run_id, points("loss", 0, 1, 2))
    assert history(root, run_id, "loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_non_finite_values_are_counted_and_kept_out(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("trial", "trial")
    bad = [("loss", math.nan, 0, 1), ("loss", math.inf, 1, 1), ("loss", 1.0, 2, 1)]
    tracker.log(run_id, bad)
    tracker.log(run_id, bad[:1])
    assert history(root, run_id, "loss") == [(2, 1.0)]
    assert runs(root)[0].data.tags["nonfinite.loss"] == "2"
    journal = Journal(journal_path(str(root), STUDY, "trial", None))
    assert [str(value) for _, value, _, _ in journal.points] == ["nan", "inf", "1.0"]


def test_more_than_one_batch(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    many = {f"p{i}": "x" * 7_000 for i in range(130)}
    run_id = tracker.run("trial", "trial", params=many, tags={f"t{i}": "y" for i in range(130)})
    tracker.log(run_id, points("loss", *range(2_300)))
    (run,) = runs(root)
    assert len(run.data.params) == 130
    assert len(run.data.params["p0"]) == 6_000
    assert sum(name.startswith("t") for name in run.data.tags) == 130
    assert len(history(root, run_id, "loss")) == 2_300


def test_summary_is_the_last_value_and_can_change(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("sweep", "sweep")
    for best in (0.5, 0.5, 0.7):
        tracker.summary(run_id, {"top1_best": best})
    assert history(root, run_id, "top1_best") == [(0, 0.5), (1, 0.7)]
    assert runs(root)[0].data.metrics["top1_best"] == 0.7


def test_unfit_metric_name_is_refused_at_once(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("trial", "trial")
    with pytest.raises(ValueError, match="metric name 'a//b'"):
        tracker.log(run_id, points("a//b", 0))


def test_artifacts(root: Path, tmp_path: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("trial", "trial")
    file = tmp_path / "predictions.csv"
    file.write_text("id,label\n")
    tracker.artifact(run_id, file, "test")
    tracker.attach(run_id, b"a: 1\n", "config.yaml")
    tracker.attach(run_id, b"{}", "data/a.json")
    stored = {str(f.relative_to(root)) for f in root.glob("mlartifacts/**/*") if f.is_file()}
    names = ["test/predictions.csv", "config.yaml", "data/a.json"]
    assert stored == {f"mlartifacts/{run_id}/artifacts/{name}" for name in names}
    with pytest.raises(FileNotFoundError):
        tracker.artifact(run_id, tmp_path / "absent.csv")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "error",
    [
        OSError("no space left"),
        ModuleNotFoundError("No module named 'boto3'"),
        Exception("AccessDenied"),  # what botocore's errors are
    ],
)
def test_a_server_that_takes_no_files_still_shows_the_end(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def full(*arguments: object) -> None:
        raise error

    (tmp_path / "note.txt").write_text("x")
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("trial", "trial")
    monkeypatch.setattr(tracker._client, "log_artifacts", full)
    tracker.artifact(run_id, tmp_path / "note.txt")
    tracker.log(run_id, [("loss", 1.0, 0, 0)])
    tracker.finish(run_id, "FINISHED")
    assert runs(root)[0].info.status == "FINISHED"
    assert runs(root)[0].data.metrics["loss"] == 1.0
    assert str(error) in caplog.text
    assert replay(str(root)) == 0
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    assert [file.path for file in client.list_artifacts(run_id)] == ["note.txt"]


def test_two_jobs_may_make_the_experiment_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(str(root), "new")
    found = tracker._client.get_experiment_by_name

    def just_too_early(name: str) -> object:
        monkeypatch.setattr(tracker._client, "get_experiment_by_name", found)
        other = Tracker(str(root), name)
        other.run("theirs", "theirs")
        return None

    monkeypatch.setattr(tracker._client, "get_experiment_by_name", just_too_early)
    tracker.run("ours", "ours")
    experiment = found("new")
    assert experiment is not None
    names = {run.info.run_name for run in tracker._client.search_runs([experiment.experiment_id])}
    assert names == {"ours", "theirs"}


def test_a_second_job_is_refused_until_the_first_has_ended(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LOCK_WAIT_S", 0.0)
    code = (
        "import time; from kinema.tracking import Tracker;"
        f" Tracker({str(root)!r}, {STUDY!r}).run('k', 'a name'); print('at it', flush=True);"
        " time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "at it\n"
        tracker = Tracker(str(root), STUDY)
        with pytest.raises(StorageError, match="another job is at the run 'a name'"):
            tracker.run("k", "a name")
    finally:
        first.kill()
        first.communicate()
    run_id = tracker.run("k", "a name")
    assert tracker.run("k", "a name") == run_id  # this process's own
    tracker.finish(run_id, "FINISHED")


def test_outage_from_the_start_is_replayed(
    root: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(str(root), STUDY, UNREACHABLE)
    tracker.run("sweep", "sweep")
    handle = tracker.run("trial", "trial", "sweep", {"lr": 0.1}, {"method": "a"})
    tracker.log(handle, points("loss", 0, 1))
    tracker.attach(handle, b"a: 1\n", "config/resolved.yaml")
    tracker.finish(handle, "FAILED", "no memory")
    assert tracker.unsent(handle) == 2
    assert sum("does not answer" in record.message for record in caplog.records) == 1
    job = [f"storage={root}"]
    assert call("replay_tracking.py", [*job, f"tracking_uri={UNREACHABLE}"]) == 1
    assert "still lacks something of 2 runs" in capsys.readouterr().out
    assert call("replay_tracking.py", job) == 0
    assert "MLflow has everything" in capsys.readouterr().out
    found = {run.info.run_name: run for run in runs(root)}
    child = found["trial"]
    assert child.data.tags["mlflow.parentRunId"] == found["sweep"].info.run_id
    assert (child.info.status, child.data.params) == ("FAILED", {"lr": "0.1"})
    assert child.data.tags["kinema.reason"] == "no memory"
    assert history(root, child.info.run_id, "loss") == [(0, 0.0), (1, 0.5)]
    assert (root / f"mlartifacts/{child.info.run_id}/artifacts/config/resolved.yaml").is_file()
    assert replay(str(root)) == 0
    assert len(runs(root)) == 2
    assert len(history(root, child.info.run_id, "loss")) == 2


@pytest.mark.usefixtures("impatient")
def test_points_of_an_outage_go_with_the_next_flush(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("trial", "trial")
    working = tracker._client
    monkeypatch.setattr(tracker, "_client", MlflowClient(UNREACHABLE))
    tracker.log(run_id, points("loss", 0, 1))
    assert tracker.unsent(run_id) == 2
    monkeypatch.setattr(tracker, "_client", working)
    tracker.log(run_id, points("loss", 2))
    assert tracker.unsent(run_id) == 0
    assert [step for step, _ in history(root, run_id, "loss")] == [0, 1, 2]


@pytest.mark.usefixtures("impatient")
def test_silent_server_is_not_asked_for_every_point(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RETRY_AFTER_S", (60.0, 60.0))
    tracker = Tracker(str(root), STUDY, UNREACHABLE)
    handle = tracker.run("trial", "trial")
    monkeypatch.setattr(tracker, "_send", lambda run: pytest.fail("asked again"))
    tracker.log(handle, points("loss", 0))


def test_another_process_finds_the_run_by_its_id(root: Path) -> None:
    run_id = Tracker(str(root), STUDY).run("trial", "trial")
    Tracker(str(root), STUDY).log(run_id, points("loss", 0))
    assert history(root, run_id, "loss") == [(0, 0.0)]
    with pytest.raises(KeyError, match="no run other"):
        Tracker(str(root), STUDY).log("other", points("loss", 0))


def test_journal_fills_a_new_store(root: Path, empty_database: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    tracker.log(tracker.run("trial", "trial"), points("loss", 0, 1))
    shutil.copy(empty_database, root / "mlflow.db")
    again = Tracker(str(root), STUDY)
    run_id = again.run("trial", "trial")
    assert len(history(root, run_id, "loss")) == 2


def test_torn_journal_loses_only_its_last_line(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("trial", "trial")
    tracker.log(run_id, points("loss", 0))
    path = journal_path(str(root), STUDY, "trial", None)
    with path.open("ab") as file:
        file.write(b'{"kind":"points","points":[["loss",1')
    again = Tracker(str(root), STUDY)
    again.run("trial", "trial")
    again.log(run_id, points("loss", 0, 1))
    assert [step for step, _ in history(root, run_id, "loss")] == [0, 1]
    whole = [line for line in path.read_text().splitlines() if not line.endswith('["loss",1')]
    assert all(json.loads(line) for line in whole)


def test_deleted_run_does_not_stop_training(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    run_id = tracker.run("trial", "trial")
    MlflowClient(f"sqlite:///{root}/mlflow.db").delete_run(run_id)
    tracker.log(run_id, points("loss", 0))
    assert "rejected" in journal_path(str(root), STUDY, "trial", None).read_text()


def test_deleted_experiment_says_how_to_go_on(root: Path) -> None:
    tracker = Tracker(str(root), STUDY)
    tracker.run("trial", "trial")
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(StorageError, match="mlflow experiments restore"):
        Tracker(str(root), STUDY).run("trial", "trial")


def test_server_is_named_by_argument_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri_for(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(StorageError, match="MLFLOW_TRACKING_URI"):
        tracking_uri_for("s3://bucket/kinema")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri_for("s3://bucket/kinema") == "http://server:5000"
    assert tracking_uri_for(str(tmp_path), "sqlite:///a.db") == f"sqlite:///{Path.cwd()}/a.db"


def test_unusable_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="tracking store sqlite"):
        Tracker(str(file), STUDY)


@pytest.mark.slow
def test_runs_of_two_first_uses_meet_in_one_store(tmp_path: Path) -> None:
    """Two processes making the same store at once must both succeed."""
    import subprocess
    import sys

    code = f"from kinema.tracking import Tracker; Tracker({str(tmp_path)!r}, 's').run('k', 'n')"
    first, second = (subprocess.Popen([sys.executable, "-c", code]) for _ in range(2))
    assert (first.wait(120), second.wait(120)) == (0, 0)
