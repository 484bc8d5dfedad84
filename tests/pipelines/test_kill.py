"""SIGKILL of a training worker and of a sweep's driver; the run ends as if undisturbed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kinema.config import load
from kinema.experiment import Experiment, run_key
from kinema.pipelines.prepare import prepare_manifest
from kinema.trial import run_stages
from kinema.video.manifest import Manifest

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = [
    "data.synthetic={num_train: 32, num_validation: 8, num_test: 8}",
    "model={embed_dim: 16, depth: 1, num_heads: 2}",
    "pretrain.decoder={embed_dim: 16, depth: 1, num_heads: 2}",
    "pretrain.epochs=3",
    "pretrain.checkpoint_every=1",
    "pretrain.engine={global_batch_size: 16, micro_batch_size: 16}",
    "finetune.epochs=3",
    "finetune.checkpoint_every=1",
    "finetune.engine={global_batch_size: 16, micro_batch_size: 16}",
]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class SilentReporter:
    """Runs in this process and saves nothing."""

    resume = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Ignore metrics."""

    def checkpoint(self, metrics: Mapping[str, float], save: Any) -> None:
        """Ignore states."""

    def preempted(self) -> bool:
        """Never."""
        return False


def experiment(root: Path, *overrides: str) -> Experiment:
    file = REPOSITORY / "experiments/demo/base.yaml"
    settings = [*TINY, "motion=null", f"storage={root}", *overrides]
    return load(Experiment, file, settings).resolved()


def kill_worker_after(checkpoints: int, folder: Path, killed: list[int]) -> None:
    """SIGKILL the training worker once `folder` holds that many checkpoints."""
    import ray
    from ray.util.state import list_actors

    dashboard = f"http://{ray._private.worker.get_dashboard_url()}"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if len(list(folder.glob("checkpoint_*/meta.json"))) >= checkpoints:
            alive = [("state", "=", "ALIVE")]
            for actor in list_actors(address=dashboard, filters=alive, detail=True):
                if "RayTrainWorker" in actor.class_name:
                    os.kill(int(actor.pid), signal.SIGKILL)
                    killed.append(int(actor.pid))
                    return
        time.sleep(0.05)


@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(400)
def test_killed_worker_changes_nothing(tmp_path: Path) -> None:
    from kinema.pipelines.train import train

    undisturbed = experiment(tmp_path / "undisturbed")
    uri = prepare_manifest(undisturbed)
    expected = run_stages(undisturbed, uri, SilentReporter())

    disturbed = experiment(tmp_path / "disturbed")
    digest = Manifest.read(uri).digest
    folder = Path(disturbed.root) / "train" / run_key(disturbed, digest)
    killed: list[int] = []
    killer = threading.Thread(target=kill_worker_after, args=(2, folder, killed))
    killer.start()
    outcome = train(disturbed, uri, digest)
    killer.join()
    assert killed, "the run ended before it could be killed"
    # Means of float32 losses: their last digit depends on the process that summed them.
    assert outcome["pretrain"] == pytest.approx(expected["pretrain"], rel=1e-6)
    assert outcome["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)


def interrupt(command: list[str], environment: dict[str, str]) -> None:
    """Ctrl-C once the sweep's first trial has started."""
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as job:
        try:
            assert job.stdout is not None
            assert job.stderr is not None
            started = any("  started   " in line for line in job.stdout)
            assert started, job.stderr.read()
            job.send_signal(signal.SIGINT)
            _, errors = job.communicate(timeout=120)
        finally:
            job.kill()
    assert job.returncode == 130, errors
    assert "interrupted; the same command goes on" in errors


def statuses(root: Path) -> list[str]:
    """Of the sweep's runs in MLflow."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    (study,) = client.search_experiments(filter_string="name = 'demo-mask-ratio'")
    return [run.info.status for run in client.search_runs([study.experiment_id])]


@pytest.mark.timeout(600)
def test_interrupted_and_killed_sweep_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"  # without motion: a killed extraction has a test of its own
    file.write_text(
        f"base: {REPOSITORY}/experiments/demo/base.yaml\n"
        "name: demo-mask-ratio\n"
        "motion: null\n"
        "sweep:\n"
        "  axes: {mask.mask_ratio: [0.5]}\n"
        "  controls: {longer: {pretrain.epochs: 12}}\n"
        "  max_concurrent: 1\n"
    )
    command = [sys.executable, "jobs/sweep_mask_ratio.py", str(file), *TINY, f"storage={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "platform")}
    interrupt(command, environment)
    assert set(statuses(tmp_path)) == {"KILLED"}
    first = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            # Each run has a folder, and Ray keeps the last checkpoints alone.
            begun = {meta.parents[1] for meta in tmp_path.glob("train/*/checkpoint_*/meta.json")}
            if len(begun) == 2:
                break
            assert first.poll() is None, "the sweep ended before it could be killed"
            time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    done = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/result.json")}
    assert len(done) == 1
    time.sleep(3)  # its workers die with it
    second = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 0, second.stdout + second.stderr
    # A worker may end its trial in the moment before it notices that its driver is gone.
    assert re.search(r"[12] of 2 trials are done", second.stdout), second.stdout
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2
    assert statuses(tmp_path) == ["FINISHED"] * 3
