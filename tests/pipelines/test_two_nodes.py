"""A submitted sweep on a cluster as the files in `clusters/` make them: a head without work, and
two nodes that start when a job asks for them, with the dependencies and not this checkout."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinema.pipelines.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]

# One process holds the cluster, as Ray reads the variables that keep it on the loopback only once.
CLUSTER = """
import json, os, sys, time
from ray._private.utils import write_ray_address
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster

os.mkdir(os.path.join(os.environ["RAY_TMPDIR"], "ray"))

head, *workers = sys.argv[1:4]
gcs, port = map(int, sys.argv[4:])
cluster = Cluster()
cluster.add_node(
    num_cpus=0,
    gcs_server_port=gcs,
    resources={"trial_driver": 1000},
    include_dashboard=True,
    dashboard_host="127.0.0.1",
    dashboard_port=port,
    dashboard_agent_listen_port=0,
    temp_dir=head,
)
# As `ray start` does: without the note a job's driver connects to any cluster of this machine.
for folder in (head, *workers):
    write_ray_address(cluster.address, folder)
print(json.dumps({"address": cluster.address, "dashboard": f"http://127.0.0.1:{port}"}), flush=True)

def demand():
    wanted = get_cluster_status(cluster.address).resource_demands
    return wanted.ray_task_actor_demand or wanted.placement_group_demand

# In an autoscaler's place, which starts machines for what waits.
while not demand():
    time.sleep(0.5)
# With folders of their own, as on machines of their own: nodes unpack packages there, and remove
# them. Jobs go to any node's agent, so on a fixed port they may reach another cluster's.
for folder in workers:
    cluster.add_node(num_cpus=1, temp_dir=folder, dashboard_agent_listen_port=0)
sys.stdin.read()
cluster.shutdown()
"""
SWEEP = [
    "data.synthetic={num_train: 32, num_validation: 8, num_test: 8}",
    "motion.flow={name: dis}",
    "model={embed_dim: 16, depth: 1, num_heads: 2}",
    "pretrain.decoder={embed_dim: 16, depth: 1, num_heads: 2}",
    "pretrain.epochs=1",
    "pretrain.optim.warmup_epochs=0",
    "pretrain.engine={global_batch_size: 16, micro_batch_size: 8}",
    "finetune.epochs=1",
    "finetune.optim.warmup_epochs=0",
    "finetune.engine={global_batch_size: 16, micro_batch_size: 8}",
    "sweep.axes={mask.inside_ratio: [0.5]}",
    "sweep.controls={}",
    "compute.num_workers=2",
]

LIMIT_S = 480  # a minute and a half on two idle cores

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def two_nodes() -> Iterator[dict[str, str]]:
    """The environment of a client of a cluster that grows to 2 nodes with 1 CPU each."""
    environment = {
        **os.environ,
        "KINEMA_NODE_TYPES": "2xCPU=1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    # sockets live in the folder, and a socket's path has at most 107 characters
    with contextlib.ExitStack() as stack:
        folders = [
            stack.enter_context(tempfile.TemporaryDirectory(prefix="kinema-", dir="/tmp"))
            for _ in range(3)
        ]
        holder = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", CLUSTER, *folders, *map(str, free_ports(2))],
                cwd=folders[0],
                # where the address of "the" local cluster is noted: not over that of one in use
                env={**environment, "RAY_TMPDIR": folders[0]},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert holder.stdout is not None
        assert holder.stdin is not None
        line = next((line for line in holder.stdout if line.startswith("{")), None)
        assert line is not None, "the cluster did not start"
        where = json.loads(line)
        yield {
            **environment,
            "RAY_ADDRESS": where["address"],
            "RAY_API_SERVER_ADDRESS": where["dashboard"],
        }
        holder.stdin.close()


def actors(environment: dict[str, str]) -> list[dict[str, Any]]:
    """Every actor that the cluster has seen, dead ones too."""
    code = (
        "import json, os; from ray.util.state import list_actors;"
        "found = list_actors(address=os.environ['RAY_API_SERVER_ADDRESS'], limit=1000);"
        "print(json.dumps([[actor.class_name, actor.node_id] for actor in found]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    pairs = json.loads(done.stdout.splitlines()[-1])
    return [{"class": name, "node": node} for name, node in pairs]


@pytest.mark.timeout(LIMIT_S + 100)
def test_submitted_sweep_uses_both_nodes(two_nodes: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    command += ["--runtime-env", "clusters/runtime_env.yaml", "--"]
    command += ["python", "jobs/sweep_mask_ratio.py", *SWEEP, f"storage={tmp_path}"]
    said = tmp_path / "said.txt"
    code = None
    with said.open("w") as output, contextlib.suppress(subprocess.TimeoutExpired):
        code = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=two_nodes,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_S,
            check=False,
        ).returncode
    tail = "\n".join(said.read_text().splitlines()[-60:])  # settings come first
    assert code == 0, f"{'no end in time' if code is None else code}:\n{tail}"
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1

    nodes: dict[str, set[str]] = {}
    for actor in actors(two_nodes):
        nodes.setdefault(actor["class"], set()).add(actor["node"])
    (training,) = (found for name, found in nodes.items() if "RayTrainWorker" in name)
    assert len(training) == 2, nodes
    (extraction,) = (found for name, found in nodes.items() if "VideoActor" in name)
    assert len(extraction) == 2, nodes
