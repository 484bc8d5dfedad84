"""The Ray cluster a job runs on: reaching it, what it has, and whether a request can ever fit."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import _enable_token_auth
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from kinema.errors import ClusterError
from kinema.pipelines.capacity import (
    Bundle,
    concurrency,
    described,
    node_types,
    reachable,
    shortage,
)
from kinema.pipelines.ports import free_ports
from kinema.wording import counted

TRIAL_DRIVER = "trial_driver"
"""Resource that the processes which drive trials take, so that they take no share of a CPU."""
NODE_TYPES_VARIABLE = "KINEMA_NODE_TYPES"
ON_THIS_MACHINE = {
    # Despite its name, off means on any system: listen on 127.0.0.1 and nowhere else.
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    # Nobody takes this machine back, and a process per training that waits for that costs 2 s.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""What the processes of a cluster need that is this machine and nothing else."""

_REACH_TIMEOUT_S = 5.0
_START_ERRORS = (Exception, RuntimeError, TimeoutError)
"""What Ray raises, and nothing narrower, when its processes do not answer in time."""
_PACKAGES = Path(__file__).absolute().parents[2]
"""The folder that holds this package."""


@dataclass(frozen=True)
class Connection:
    """The cluster that `connect` found or started.

    Attributes:
        address: of its control service, host:port.
        dashboard: URL of its dashboard, None when it has none.
        own: whether this process started it, and `disconnect` ends it.
    """

    address: str
    dashboard: str | None
    own: bool


def connect(num_cpus: int | None = None) -> Connection:
    """Use the cluster named by `RAY_ADDRESS` (as inside `ray job submit`), else start a local one.

    The local one listens on the loopback only and keeps its dashboard, without which stopped trials
    would not give their resources back. Token authentication is on unless `RAY_AUTH_MODE` says no.

    Args:
        num_cpus: cores of a local cluster; all by default. An existing cluster keeps its own.

    Raises:
        ClusterError: `RAY_ADDRESS` does not answer or refuses the token, no local one starts, or
            `KINEMA_NODE_TYPES` is malformed.
    """
    _startable()  # what is malformed is told before anything runs
    if "RAY_AUTH_MODE" not in os.environ:
        _enable_token_auth()  # the variable alone comes too late once ray is imported
    address = os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        return _connection(own=address is None)
    if address is None:
        start_local(num_cpus)
        return _connection(own=True)
    _check_reachable(address)
    try:
        ray.init(
            address=address,
            runtime_env=_runtime_env(address),
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise ClusterError(
            f"no connection to the Ray cluster at {address}: {error}\n"
            "Use its token: export RAY_AUTH_MODE=token, with RAY_AUTH_TOKEN or ~/.ray/auth_token "
            "as on its head node; or unset RAY_ADDRESS to run on a local Ray."
        ) from error
    return _connection(own=False)


def disconnect() -> None:
    """Leave the cluster; a local one started by `connect` ends."""
    ray.shutdown()


def start_local(num_cpus: int | None = None, **options: Any) -> None:
    """Start a cluster of this process that listens on 127.0.0.1 and nowhere else.

    Ray on Linux replaces a loopback address by the machine's own, and its servers then listen on
    every interface. There is a switch for that, a constant here and a variable for the processes of
    the cluster; on other systems it is off already.

    Workers inherit what they need (`_variables`) from the cluster's processes: with a runtime
    environment Ray would start the interpreter twice for each of them.

    Ray's node dies when one of its own processes takes more than 15 s to start, as it may on a busy
    machine (ray issue 65983). A second start finds in memory what the first one loaded.

    Args:
        num_cpus: cores of the cluster; all by default.
        options: further arguments of `ray.init`.

    Raises:
        ClusterError: its processes did not come up.
    """
    for last in (False, True):
        try:
            _start_local(num_cpus, options)
        except Exception as error:
            if type(error) not in _START_ERRORS:
                raise
            if last:
                raise ClusterError(
                    f"a local Ray did not start: {error}\nA machine that is very busy, or short of"
                    " memory or of space in /tmp, is the usual cause; free it and try again. Ray's"
                    " own words are in /tmp/ray/session_latest/logs."
                ) from error
            why = str(error).partition("\n")[0]
            print(f"a local Ray did not start, once more: {why}", file=sys.stderr, flush=True)
            ray.shutdown()
        else:
            return


def _start_local(num_cpus: int | None, options: dict[str, Any]) -> None:
    (port,) = free_ports(1)
    switch = {
        **ON_THIS_MACHINE,
        ray_constants.GCS_PORT_ENVIRONMENT_VARIABLE: str(port),
        **_variables(f"127.0.0.1:{port}", _PACKAGES),
    }
    token = Path.home() / ".ray" / "auth_token"
    had_token = token.exists()
    before = ray_constants.ENABLE_RAY_CLUSTER, {name: os.environ.get(name) for name in switch}
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.update(switch)
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            resources={TRIAL_DRIVER: 1000},
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
            **options,
        )
        if not had_token and token.exists():
            token.chmod(0o600)  # Ray has just made it, readable by everyone on the machine
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        for name, value in before[1].items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _connection(own: bool) -> Connection:
    context = ray.get_runtime_context()
    dashboard = ray._private.worker.get_dashboard_url()
    return Connection(context.gcs_address, dashboard and f"http://{dashboard}", own)


def _check_reachable(address: str) -> None:
    """Find out in seconds what Ray finds out in minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), _REACH_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"RAY_ADDRESS={address} does not answer ({error}); start that cluster, or unset "
            "RAY_ADDRESS to run on a local Ray"
        ) from error


def _runtime_env(address: str) -> dict[str, Any]:
    """What workers of a cluster that is there already need of a driver that joins it.

    A driver outside the cluster ships its package, so that both run the same code.
    """
    given = _job_variables()
    if given is None:
        modules = [str(_PACKAGES / "kinema")]
        return {"py_modules": modules, "env_vars": _variables(address, None)}
    here = _PACKAGES.is_relative_to(Path.cwd())
    # seen from the job's working directory, which is elsewhere on any other node
    variables = _variables(address, _PACKAGES.relative_to(Path.cwd()) if here else _PACKAGES)
    return {"env_vars": {k: v for k, v in variables.items() if k not in given}}


def _variables(address: str, packages: Path | None) -> dict[str, str]:
    """What every worker needs: its own cluster's address, no GPU unasked, and this very package.

    Ray asks its state service before it gives back the resources of a stopped trial; with a second
    cluster on the machine it does not find the service without the address.

    Ray leaves every GPU of a node visible to a worker that asks for none, and torch would compute
    there. The variable makes Ray empty its CUDA_VISIBLE_DEVICES, which child processes inherit.

    Args:
        address: of the cluster.
        packages: folder that holds the package, as workers see it; None where it comes otherwise.
            An installation and an inherited `PYTHONPATH` need nothing.
    """
    variables = {"RAY_ADDRESS": address, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    entries = {Path(e).absolute() for e in _python_path().split(os.pathsep) if e}
    if packages is not None and _PACKAGES not in entries and not _is_installed():
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(packages), _python_path()]))
    return variables


def _job_variables() -> dict[str, str] | None:
    """Variables that a submitted job's runtime environment sets; None outside of one."""
    text = os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR)
    if text is None:
        return None
    variables: dict[str, str] = (json.loads(text).get("runtime_env") or {}).get("env_vars") or {}
    return variables


def _python_path() -> str:
    return os.environ.get("PYTHONPATH", "")


def _is_installed() -> bool:
    try:
        metadata.distribution("kinema")
    except metadata.PackageNotFoundError:
        return False
    return True


def live_nodes() -> list[Bundle]:
    """What each live node has."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def nodes() -> list[Bundle]:
    """What each node has: first the live ones, then those that an autoscaler may yet start.

    Ray's public interface does not tell what may start, so `KINEMA_NODE_TYPES` does, set where the
    head is: `16xCPU=32,4xCPU=48+GPU=4` for up to 16 nodes of one kind and 4 of another.

    Raises:
        ClusterError: the variable is malformed.
    """
    return reachable(live_nodes(), _startable())


def _startable() -> list[tuple[int, Bundle]]:
    text = os.environ.get(NODE_TYPES_VARIABLE, "")
    try:
        return node_types(text) if text else []
    except ValueError as error:
        raise ClusterError(f"{NODE_TYPES_VARIABLE}: {error}") from error


def require(bundles: Sequence[Bundle], what: str) -> None:
    """Make sure that `bundles` can be placed at once on the empty cluster.

    Raises:
        ClusterError: they never can, not even with every node that may start.
    """
    problem = shortage(bundles, nodes())
    if problem is not None:
        raise ClusterError(
            f"{what} asks for {described(bundles)}, but {problem}. Ask for less (compute.*) or use"
            f" a cluster that has it (RAY_ADDRESS). {_counted()}"
        )


def max_concurrent_trials(per_trial: Sequence[Bundle], driver: Bundle, wanted: int) -> int:
    """How many trials can run at once; prints the figure and what decides it.

    Ray Tune sees a trial's driver and not its workers, so it has to be told.

    Args:
        per_trial: one bundle per training worker of a trial.
        driver: what the trial's own process holds.
        wanted: at most this many.

    Raises:
        ClusterError: not even one trial fits: it would wait for ever.
    """
    count, reason = _trials_that_fit(per_trial, driver, wanted)
    print(f"{count} of {counted(wanted, 'trial')} at a time: {reason}", flush=True)
    return count


def require_trial(per_trial: Sequence[Bundle], driver: Bundle, what: str) -> None:
    """Make sure that one trial can run: its workers, and beside them its own process.

    Args:
        per_trial: as in `max_concurrent_trials`.
        driver: as there.
        what: asks for it, for the message.

    Raises:
        ClusterError: it never can.
    """
    require(per_trial, what)
    _trials_that_fit(per_trial, driver, 1)


def _trials_that_fit(per_trial: Sequence[Bundle], driver: Bundle, wanted: int) -> tuple[int, str]:
    count, reason = concurrency(per_trial, driver, wanted, nodes())
    if count == 0:
        raise ClusterError(
            f"a trial can never start: {reason}. Ask for less (compute.*) or use a larger cluster "
            f"(RAY_ADDRESS). {_counted()}"
        )
    return count, reason


def _counted() -> str:
    if os.environ.get(NODE_TYPES_VARIABLE):
        return f"Nodes that may yet start are counted as {NODE_TYPES_VARIABLE} says."
    return f"If more nodes start on demand, say which in {NODE_TYPES_VARIABLE} (docs/clusters.md)."
