"""The one writer of a study's tracking records, reachable from every worker without waiting."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kinema.errors import ClusterError
from kinema.journal import Point, Scalar
from kinema.storage import absolute
from kinema.tracking import Status, Tracker
from kinema.tracking_server import tracking_uri_for

_log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 300.0
"""On a busy machine a tracker that was making its database took longer than 120 s, once."""
RETRIES = -1  # every call may be repeated, so none is given up while the actor restarts


class TrackerActor:
    """`kinema.tracking.Tracker` in a process of its own.

    A restarted one finds its runs again in the journals. Every call may be repeated without harm.
    """

    def __init__(
        self, storage_root: str, experiment: str, tracking_uri: str, settings: Mapping[str, str]
    ) -> None:
        os.environ.update(settings)
        self._tracker = Tracker(storage_root, experiment, tracking_uri)

    def run(self, *header: Any) -> str:
        """See `Tracker.run`."""
        return self._tracker.run(*header)

    def start(self, run_id: str) -> None:
        """See `Tracker.start`."""
        self._tracker.start(run_id)

    def is_finished(self, key: str, parent_key: str | None) -> bool:
        """See `Tracker.is_finished`."""
        return self._tracker.is_finished(key, parent_key)

    def log(self, run_id: str, points: list[Point]) -> None:
        """See `Tracker.log`."""
        self._tracker.log(run_id, points)

    def summary(self, run_id: str, metrics: dict[str, float]) -> None:
        """See `Tracker.summary`."""
        self._tracker.summary(run_id, metrics)

    def attach(self, run_id: str, data: bytes, file: str) -> None:
        """See `Tracker.attach`."""
        self._tracker.attach(run_id, data, file)

    def finish(self, run_id: str, status: Status, reason: str | None) -> int:
        """See `Tracker.finish`; returns how many points the server still lacks."""
        self._tracker.finish(run_id, status, reason)
        return self._tracker.unsent(run_id)


class RemoteTracker:
    """One tracked run; small and picklable.

    `log` and `start` are for workers: they never wait and never raise. The other methods are for
    the driver: they wait until the record is on disk.
    """

    def __init__(self, actor: Any, run_id: str) -> None:
        self._actor, self.run_id = actor, run_id
        self._sent: Any = None
        self._warned = False

    def __reduce__(self) -> tuple[type[RemoteTracker], tuple[Any, str]]:
        return type(self), (self._actor, self.run_id)  # what was sent concerns this process only

    def log(self, points: Iterable[Point]) -> None:
        """Send metrics: (key, value, step, time in ms).

        That the tracker is gone or cannot write shows later: a call looks at an earlier one's fate,
        and warns once.
        """
        try:
            self._look_back()
        except RayError as error:
            self._warn(error)
        self._send("log", list(points))

    def start(self) -> None:
        """Start a planned run; see `Tracker.start`."""
        self._send("start")

    def _send(self, method: str, *arguments: Any) -> None:
        watched = self._sent is None  # one call at a time; Ray complains of unread results itself
        try:
            sent = (
                getattr(self._actor, method)
                .options(num_returns=int(watched))
                .remote(self.run_id, *arguments)
            )
        except RayError as error:
            self._warn(error)
        else:
            self._sent = sent if watched else self._sent

    def _look_back(self) -> None:
        if self._sent is not None and ray.wait([self._sent], timeout=0)[0]:
            done, self._sent = self._sent, None
            ray.get(done)

    def _warn(self, error: RayError) -> None:
        if not self._warned:
            _log.warning("the tracker is gone or cannot write, metrics are lost: %s", error)
        self._warned = True

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Record final numbers; see `Tracker.summary`."""
        self.call("summary", {name: float(value) for name, value in metrics.items()})

    def content(self, data: bytes, file: str) -> None:
        """Attach bytes as `file`, which may name folders."""
        self.call("attach", data, file)

    def text(self, text: str, file: str) -> None:
        """Attach a text as `file`."""
        self.content(text.encode(), file)

    def json(self, value: Any, file: str) -> None:
        """Attach plain data as JSON."""
        self.text(json.dumps(value, indent=2, sort_keys=True), file)

    def artifact(self, local_path: str | Path, folder: str | None = None) -> None:
        """Attach a file of this process under `folder`."""
        path = Path(local_path)
        self.content(path.read_bytes(), path.name if folder is None else f"{folder}/{path.name}")

    def finish(self, status: Status, reason: str | None = None) -> int:
        """Close the run; returns the points that the server still lacks."""
        return int(self.call("finish", status, reason))

    def call(self, method: str, *arguments: Any) -> Any:
        """Call the actor about this run and wait.

        Raises:
            ClusterError: the actor does not answer.
        """
        return _call(self._actor, method, self.run_id, *arguments)


class StudyTracker:
    """A study's tracker as its driver sees it: starts runs, which then write through one actor.

    The actor runs on the driver's own node, the only place that needs the embedded store or the
    server's address, and ends with the driver.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def run(
        self,
        key: str,
        name: str,
        parent_key: str | None = None,
        params: Mapping[str, Scalar] | None = None,
        tags: Mapping[str, str] | None = None,
        planned: bool = False,
    ) -> RemoteTracker:
        """Start or continue a run; see `Tracker.run`.

        Raises:
            StorageError: the store cannot be used, or the server refuses the run for good.
            ClusterError: the actor does not answer.
        """
        header = (key, name, parent_key, dict(params or {}), dict(tags or {}), planned)
        return RemoteTracker(self._actor, str(_call(self._actor, "run", *header)))

    def is_finished(self, key: str, parent_key: str | None = None) -> bool:
        """Whether nothing is left to tell of a run; see `Tracker.is_finished`."""
        return bool(_call(self._actor, "is_finished", key, parent_key))


def start_tracker(
    storage_root: str, experiment: str, tracking_uri: str | None = None
) -> StudyTracker:
    """Start the tracker of one MLflow experiment on the connected cluster, on this very node.

    Raises:
        StorageError: no server is named and the storage root is remote.
    """
    uri = tracking_uri_for(storage_root, tracking_uri)
    settings = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    here = ray.get_runtime_context().get_node_id()
    actor = (
        ray.remote(TrackerActor)
        .options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=RETRIES,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(absolute(storage_root), experiment, uri, settings)
    )
    return StudyTracker(actor)


def _call(actor: Any, method: str, *arguments: Any) -> Any:
    try:
        return ray.get(getattr(actor, method).remote(*arguments), timeout=CALL_TIMEOUT_S)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise ClusterError(f"the tracker does not answer: {error}") from error
