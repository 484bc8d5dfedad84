"""Connecting to a cluster, and asking it for what it has and has not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kinema.config import load
from kinema.errors import ClusterError
from kinema.experiment import SweepExperiment
from kinema.pipelines import prepare
from kinema.pipelines.cluster import (
    connect,
    max_concurrent_trials,
    require,
    require_trial,
    start_local,
)
from kinema.pipelines.ports import HIGHEST, LOWEST, free_ports
from kinema.pipelines.single import run_experiment
from kinema.pipelines.sweep import sweep

DEMO = Path(__file__).resolve().parents[2] / "experiments/demo"
DRIVER = {"CPU": 0.01}


def test_unreachable_cluster_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever ran before
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS=127\.0\.0\.1:9 does not answer"):
        connect()
    assert time.monotonic() - started < 10


def test_malformed_node_types_are_told_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("started"))
    monkeypatch.setenv("KINEMA_NODE_TYPES", "16 x CPU 32")
    with pytest.raises(ClusterError, match=r"KINEMA_NODE_TYPES: '16 x CPU 32' is not of the form"):
        connect()


def test_a_local_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    starts: list[object] = []

    def fail(error: Exception, times: int) -> None:
        def init(**_: object) -> None:
            starts.append(os.environ["RAY_GCS_SERVER_PORT"])
            if len(starts) <= times:
                raise error

        starts.clear()
        monkeypatch.setattr(ray, "init", init)

    before = dict(os.environ)
    slow = Exception("The current node timed out during startup.")
    fail(slow, 2)
    with pytest.raises(ClusterError, match=r"did not start: The current node timed out"):
        start_local(1)
    fail(slow, 1)
    start_local(1)  # a second start finds in memory what the first one loaded
    assert len(set(starts)) == 2
    fail(ValueError("a bug"), 1)
    with pytest.raises(ValueError, match="a bug"):
        start_local(1)
    assert len(starts) == 1
    assert dict(os.environ) == before


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_gpu_on_a_cluster_without_is_refused_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"pretraining asks for 2 x \{CPU 1, GPU 1\}.*no GPU"):
        require([{"CPU": 1, "GPU": 1}] * 2, "pretraining")
    require([{"CPU": 1}] * 2, "pretraining")
    assert time.monotonic() - started < 5


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_worker_that_asks_for_no_gpu_sees_none() -> None:
    import ray

    task = ray.remote(num_cpus=1)(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert ray.get(task.remote()) == ""


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_figure_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert max_concurrent_trials([{"CPU": 0.5}], DRIVER, 4) == 3
    assert "3 of 4 trials at a time: each takes CPU 0.51" in capsys.readouterr().out
    with pytest.raises(ClusterError, match=r"can never start: each takes CPU 4\.01"):
        max_concurrent_trials([{"CPU": 1}] * 4, DRIVER, 4)
    with pytest.raises(ClusterError, match=r"each takes CPU 2\.01 with its driver"):
        require_trial([{"CPU": 1}] * 2, DRIVER, "each trial")


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        ("{use_gpu: true}", "asks for 1 x .CPU 1, GPU 1., but the cluster has no GPU"),
        ("{num_workers: 3}", "that is CPU 3 in all and the cluster has CPU 2"),
    ],
)
def test_what_a_run_cannot_have_is_told_before_videos_are_made_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: str, reason: str
) -> None:
    monkeypatch.setattr(prepare, "make", lambda *_: pytest.fail("made"))
    given = [
        f"storage={tmp_path}",
        f"compute={compute}",
        "data.synthetic={num_train: 32, num_validation: 8, num_test: 8}",
    ]
    chosen = load(SweepExperiment, DEMO / "sweep_mask_ratio.yaml", given)
    with pytest.raises(ClusterError, match=reason):
        sweep(chosen)
    with pytest.raises(ClusterError, match=reason):
        run_experiment(chosen.base(), "alone")


_OWN_CLUSTER = """
import pathlib, urllib.error, urllib.request
import ray
from ray.util.state import list_nodes
from kinema.pipelines.cluster import connect, disconnect

found = connect(num_cpus=1)
assert found.own and found.address.startswith("127.0.0.1:"), found
assert found.dashboard.startswith("http://127.0.0.1:"), found
print("token %o" % ((pathlib.Path.home() / ".ray/auth_token").stat().st_mode & 0o777))
try:
    urllib.request.urlopen(found.dashboard + "/api/jobs/", timeout=10)
except urllib.error.HTTPError as error:
    print("without token", error.code)

@ray.remote
def where():
    import kinema.pipelines.cluster
    # what Ray itself asks for before it gives back the resources of a stopped trial
    return kinema.pipelines.cluster.__file__, len(list_nodes())

print("worker imports %s and sees %d node" % ray.get(where.remote()))
disconnect()
"""
_UNSET = {"PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")  # a second cluster on the machine
def test_own_cluster_is_local_authenticated_and_knows_the_package(tmp_path: Path) -> None:
    """Also where no variable is set and only the driver's `sys.path` leads to the package."""
    import kinema

    platform = os.path.dirname(os.path.dirname(str(kinema.__file__)))
    environment = {k: v for k, v in os.environ.items() if k not in _UNSET}
    environment["HOME"] = str(tmp_path)  # without a token
    code = f"import sys; sys.path.insert(0, {platform!r})\n{_OWN_CLUSTER}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "without token 401" in done.stdout
    assert "token 600" in done.stdout
    expected = f"worker imports {platform}/kinema/pipelines/cluster.py and sees 1 node"
    assert expected in done.stdout


def test_ports_are_free_different_and_not_given_out_by_the_system() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(LOWEST <= port <= HIGHEST for port in ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        assert ports[0] not in free_ports(50)
    with pytest.raises(OSError, match="fewer than"):
        free_ports(HIGHEST)
