"""The tracker as an actor: workers write through it and do not depend on it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient

from kinema.errors import StorageError
from kinema.pipelines.tracker import RemoteTracker, start_tracker

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]


@ray.remote(num_cpus=1)
def work(run: RemoteTracker, steps: range) -> float:
    """A worker that logs; returns the seconds it spent on that."""
    started = time.monotonic()
    for step in steps:
        run.log([("loss", float(step), step, 0)])
    return time.monotonic() - started


def logged(root: Path, run: RemoteTracker, count: int) -> list[int]:
    """Steps of the metric once there are `count` of them, or what there is after a minute."""
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    deadline = time.monotonic() + 60
    while True:
        steps = [point.step for point in client.get_metric_history(run.run_id, "loss")]
        if len(steps) >= count or time.monotonic() > deadline:
            return steps
        time.sleep(0.2)


def test_workers_write_through_one_actor_that_may_die(tmp_path: Path) -> None:
    tracker = start_tracker(str(tmp_path), "study")
    parent = tracker.run("sweep", "sweep")
    run = tracker.run("trial", "trial", "sweep", {"seed": 0}, {"method": "mofo"})
    halves = ray.get([work.remote(run, range(20)), work.remote(run, range(20, 40))])
    assert max(halves) < 5
    assert sorted(logged(tmp_path, run, 40)) == list(range(40))
    run.text("a: 1\n", "config/experiment.yaml")
    run.summary({"test/top1": 0.5})

    # the actor is killed: it restarts, finds its run in the journal, and workers notice nothing
    pid = ray.get(run._actor.__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    ray.get(work.remote(run, range(30, 60)))
    assert sorted(logged(tmp_path, run, 60)) == list(range(60))
    assert run.finish("FINISHED") == 0
    parent.finish("FAILED", "one trial failed")

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/top1"] == 0.5
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(parent.run_id).data.tags["kinema.reason"] == "one trial failed"
    assert [file.path for file in client.list_artifacts(run.run_id, "config")] == [
        "config/experiment.yaml"
    ]


def warnings_of(run: RemoteTracker, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What `log` warns about while it is called for some time, and goes on being called."""

    def said() -> list[str]:
        ours = [record for record in caplog.records if record.name.startswith("kinema")]
        return [record.getMessage() for record in ours]  # Ray's own complaints are not ours

    deadline = time.monotonic() + 30
    step = 0
    while not said() and time.monotonic() < deadline:
        run.log([("loss", 0.0, step, 0)])
        step += 1
        time.sleep(0.05)
    for more in range(20):
        run.log([("loss", 0.0, step + more, 0)])
        time.sleep(0.01)
    return said()


def test_lost_tracker_does_not_stop_a_worker_and_is_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start_tracker(str(tmp_path), "study")
    run = tracker.run("trial", "trial")
    ray.kill(run._actor)  # for good
    (warning,) = warnings_of(run, caplog)
    assert warning.startswith("the tracker is gone")
    assert ray.get(work.remote(run, range(5))) < 5


def test_points_that_cannot_be_written_are_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start_tracker(str(tmp_path), "study").run("trial", "trial")

    def fail(actor: Any) -> None:
        def full(*_: Any) -> None:
            raise OSError("no space left")

        actor._tracker.log = full

    ray.get(run._actor.__ray_call__.remote(fail))
    (warning,) = warnings_of(run, caplog)
    assert "no space left" in warning


def test_errors_of_the_store_reach_the_driver(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="MLFLOW_TRACKING_URI"):
        start_tracker("s3://bucket/kinema", "study")
