"""A Ray head on this machine, ours alone: loopback, own ports and token, ended by its pid."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from kinema.errors import ClusterError
from kinema.pipelines.cluster import ON_THIS_MACHINE, TRIAL_DRIVER
from kinema.pipelines.ports import free_ports

START_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class LocalCluster:
    """A running head. `environment` is what a client needs to reach it, token included."""

    process: subprocess.Popen[bytes]
    address: str
    dashboard: str
    folder: Path
    environment: Mapping[str, str]


@contextlib.contextmanager
def local_cluster(
    num_cpus: int | None = None, working_dir: Path | None = None
) -> Iterator[LocalCluster]:
    """Start a head in `working_dir`, wait until it takes jobs, and end it with the block.

    Raises:
        ClusterError: it did not come up; carries the end of its log.
    """
    # Ray's sockets live below this folder, and a socket's path may have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="kinema-", dir="/tmp"))
    try:
        cluster = _start(folder, num_cpus, working_dir or Path.cwd())
        try:
            _wait(cluster)
            yield cluster
        finally:
            _end(cluster.process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, num_cpus: int | None, working_dir: Path) -> LocalCluster:
    # Every port is ours: with Ray's defaults a second Ray here breaks the first one's jobs.
    port, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        **ON_THIS_MACHINE,
        "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        # Its actors would keep the head from ending for as long as it may wait: nobody needs them.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    head = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--metrics-export-port={metrics}",
        f"--ray-client-server-port={client}",
        f"--temp-dir={folder}",
        f"--resources={json.dumps({TRIAL_DRIVER: 1000})}",
    ]
    if num_cpus is not None:
        command.append(f"--num-cpus={num_cpus}")
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=working_dir, env=head, stdout=log, stderr=log, start_new_session=True
        )
    return LocalCluster(
        process,
        environment["RAY_ADDRESS"],
        environment["RAY_API_SERVER_ADDRESS"],
        folder,
        environment,
    )


def _wait(cluster: LocalCluster) -> None:
    """Until a job can be submitted: the dashboard answers well before its job agent does."""
    headers = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    deadline, problem = time.monotonic() + START_TIMEOUT_S, "no answer"
    while time.monotonic() < deadline and cluster.process.poll() is None:
        try:
            client = JobSubmissionClient(cluster.dashboard, headers=headers)
            client.submit_job(entrypoint="true", submission_id="ready")
            return
        except (ConnectionError, RuntimeError) as error:
            problem = str(error)
            time.sleep(0.5)
    log = (cluster.folder / "head.log").read_text(errors="replace")
    raise ClusterError(f"the local Ray head did not come up ({problem}):\n{log[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head and everything it started; nothing else on this machine."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
