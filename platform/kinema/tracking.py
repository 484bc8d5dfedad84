"""Experiment tracking in MLflow that survives restarts and outages.

Everything is written to a local journal first (`kinema.journal`), then sent. A server that does
not answer delays what is shown and never stops a training; it gets what it missed afterwards.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from kinema.config import Config
from kinema.errors import StorageError
from kinema.journal import Journal, Point, RunHeader, Scalar, journal_folder, journal_path
from kinema.storage import absolute, default_root
from kinema.tracking_server import (
    KEY_TAG,
    Outage,
    Refusal,
    connect,
    sorting_errors,
    tracking_uri_for,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENT_KEY_TAG = "kinema.parent_key"
REASON_TAG = "kinema.reason"
PARENT_TAG = "mlflow.parentRunId"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages show training runs first, not traces of language models."""

Status = Literal["FINISHED", "FAILED", "KILLED"]

METRICS_PER_BATCH = 1000
PAIRS_PER_BATCH = 100
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
METRIC_NAME = re.compile(r"[\w.\- :]+(/[\w.\- :]+)*")
RETRY_AFTER_S = (10.0, 300.0)
"""First and longest pause after the server failed to answer."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass
class _OpenRun:
    """A run of this tracker: its journal, and what is known of the server's side.

    `history` holds the steps that the server already had per metric, looked up once per metric and
    only for a run that existed before; None for one made here. `tags` are those it has from here.
    `planned` until it starts: the server hears of it then, and so has its true start.
    """

    journal: Journal
    run_id: str | None = None
    history: dict[str, set[int]] | None = None
    tags: dict[str, str] = field(default_factory=dict)
    planned: bool = False

    @property
    def header(self) -> RunHeader:
        assert self.journal.header is not None
        return self.journal.header

    @property
    def handle(self) -> str:
        return self.run_id or f"journal:{self.journal.path.stem}"


class Tracker:
    """Writes runs of one experiment. Use one at a time, on the machine of the storage root.

    Args:
        storage_root: of everything durable; holds `mlflow.db` and `mlartifacts` when no server is
            named, and the journals.
        experiment: MLflow's experiment, made when absent.
        tracking_uri: of a server; `MLFLOW_TRACKING_URI` when None, the embedded store when unset.

    Raises:
        StorageError: the embedded store cannot be used; a server's silence is no error.
    """

    def __init__(self, storage_root: str, experiment: str, tracking_uri: str | None = None) -> None:
        self.storage_root = absolute(storage_root)
        self.experiment = experiment
        self.tracking_uri = tracking_uri_for(self.storage_root, tracking_uri)
        self._runs: dict[str, _OpenRun] = {}
        self._experiment_id: str | None = None
        self._answers = True
        self._pause_s = 0.0
        self._silent_until = 0.0
        self._client = connect(self.tracking_uri)

    def run(
        self,
        key: str,
        name: str,
        parent_key: str | None = None,
        params: Mapping[str, Scalar] | None = None,
        tags: Mapping[str, str] | None = None,
        planned: bool = False,
    ) -> str:
        """Start the run `key`, or go on with it where it exists; the run is RUNNING afterwards.

        A parameter that differs from the recorded one cannot replace it and becomes the tag
        `resumed.<parameter>`.

        Args:
            key: what is computed; a run is found again by it and `parent_key`.
            name: shown in the interface.
            parent_key: of the run it is listed under, started before.
            params: settings.
            tags: beside kinema's own.
            planned: it starts later, by `start`, its first metrics or its end.

        Returns:
            The MLflow run id; during an outage, or of a planned run, a handle that serves in its
            place here.

        Raises:
            StorageError: the server refuses the run for good, or another job is at it.
        """
        journal = Journal(journal_path(self.storage_root, self.experiment, key, parent_key))
        header = RunHeader(
            self.experiment, key, name, parent_key, dict(params or {}), dict(tags or {})
        )
        journal.begin(header)
        run = _OpenRun(journal, planned=planned)
        self._runs[run.handle] = run
        if planned:
            return run.handle
        try:
            self._attempt(lambda: self._send(run))
        except Refusal as refusal:
            raise StorageError(f"MLflow at {self.tracking_uri}: {refusal}") from refusal
        return run.handle

    def start(self, run_id: str) -> None:
        """Start a planned run; another one is left as it is."""
        run = self._find(run_id)
        run.planned = False
        self._flush(run)

    def is_finished(self, key: str, parent_key: str | None = None) -> bool:
        """Whether the server shows this run as finished, and lacks nothing of it."""
        found: list[Run | None] = []

        def look() -> None:
            with sorting_errors():
                found.append(self._search(key, parent_key))

        self._attempt(look)
        journal = Journal(journal_path(self.storage_root, self.experiment, key, parent_key))
        return any(run is not None and run.info.status == "FINISHED" for run in found) and (
            journal.settled
        )

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        """Record metrics: (key, value, step, time in ms). A (key, step) counts once for ever.

        NaN and infinity stay in the journal and are counted in the tag `nonfinite.<key>`.
        """
        points = list(points)
        for key, *_ in points:
            if not METRIC_NAME.fullmatch(key) or len(key) > 250:
                raise ValueError(f"metric name {key!r}: use letters, digits, _ - . : and single /")
        run = self._find(run_id)
        if run.journal.add(points):
            run.planned = False
            self._flush(run)

    def summary(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Record final numbers: each becomes the metric's last value, unless it already is."""
        recorded = {key: (step, value) for key, value, step, _ in self._find(run_id).journal.points}
        now = int(time.time() * 1000)
        points = []
        for key, value in metrics.items():
            step, last = recorded.get(key, (-1, math.nan))
            if value != last:
                points.append((key, float(value), step + 1, now))
        self.log(run_id, points)

    def artifact(self, run_id: str, local_path: str | Path, folder: str | None = None) -> None:
        """Attach a file under `folder` of the run's artifacts; a copy waits out an outage."""
        source, run = Path(local_path), self._find(run_id)
        if not source.is_file():
            raise FileNotFoundError(source)
        kept = run.journal.spool / (folder or "")
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, kept / source.name)
        self._flush(run)

    def attach(self, run_id: str, data: bytes, file: str) -> None:
        """Attach bytes as `file`, which may name folders."""
        target = Path(file)
        with TemporaryDirectory() as folder:
            path = Path(folder) / target.name
            path.write_bytes(data)
            parent = target.parent.as_posix()
            self.artifact(run_id, path, None if parent == "." else parent)

    def finish(self, run_id: str, status: Status, reason: str | None = None) -> None:
        """Close a run; `reason` becomes a tag. Tries the server once more, whatever the pause."""
        run = self._find(run_id)
        run.journal.finish(status, reason)
        run.planned = False
        self._silent_until = 0.0
        self._flush(run)

    def unsent(self, run_id: str) -> int:
        """How many metric points the server does not have yet."""
        journal = self._find(run_id).journal
        return len(journal.points) - journal.num_sent

    def _find(self, run_id: str) -> _OpenRun:
        """A run by its id, also one that another process of this storage root started."""
        if run_id not in self._runs:
            self._runs[run_id] = _OpenRun(self._journal_of(run_id))
        return self._runs[run_id]

    def _journal_of(self, run_id: str) -> Journal:
        folder = journal_path(self.storage_root, self.experiment, "any", None).parent
        for path in sorted(folder.glob("*.jsonl")):
            if run_id == f"journal:{path.stem}" or run_id.encode() in path.read_bytes():
                journal = Journal(path)
                if run_id in (journal.run_id, f"journal:{path.stem}"):
                    return journal
        raise KeyError(f"no run {run_id} in experiment {self.experiment}; start it with run()")

    def _flush(self, run: _OpenRun) -> None:
        """Bring the server up to date with a run's journal, as far as it answers."""
        if run.planned:
            return
        try:
            self._attempt(lambda: self._send(run))
        except Refusal as refusal:
            _log.error("MLflow at %s refused: %s", self.tracking_uri, refusal)

    def _attempt(self, action: Callable[[], object]) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            action()
        except Outage as outage:
            if self._answers:
                _log.warning(
                    "MLflow at %s does not answer; metrics wait in %s (%s)",
                    self.tracking_uri,
                    journal_folder(self.storage_root),
                    outage,
                )
            self._answers = False
            first, longest = RETRY_AFTER_S
            self._pause_s = min(max(first, 2 * self._pause_s), longest)
            self._silent_until = time.monotonic() + self._pause_s
        else:
            if not self._answers:
                _log.warning("MLflow at %s answers again", self.tracking_uri)
            self._answers, self._pause_s = True, 0.0

    def _send(self, run: _OpenRun) -> None:
        if run.run_id is None:
            self._open(run)
        self._send_points(run)
        self._send_tags(run)
        self._show_status(run)
        self._send_artifacts(run)  # last: a server without room for files still shows the rest

    def _open(self, run: _OpenRun) -> None:
        """Find or make the server's run and give it the header."""
        header, journal = run.header, run.journal
        parent_id = None if header.parent_key is None else self._parent_id(header.parent_key)
        with sorting_errors():
            found = self._search(header.key, header.parent_key)
            tags = {KEY_TAG: header.key}
            if parent_id is not None and header.parent_key is not None:
                tags |= {PARENT_TAG: parent_id, PARENT_KEY_TAG: header.parent_key}
            if found is None:
                experiment = self._experiment()
                made = self._client.create_run(experiment, tags=tags, run_name=header.name)
                run_id, recorded = made.info.run_id, {}
            else:
                run_id, recorded = found.info.run_id, dict(found.data.params)
                run.history = {}
            if journal.run_id != run_id:
                journal.sent(run_id, 0)
            self._send_params(run_id, header.params, recorded)
        run.run_id = run_id
        self._runs[run_id] = run

    def _parent_id(self, key: str) -> str:
        for run in list(self._runs.values()):
            if run.header.key == key and run.header.parent_key is None:
                if run.run_id is None:
                    self._open(run)
                assert run.run_id is not None
                return run.run_id
        with sorting_errors():
            found = self._search(key, None)
        if found is not None:
            return str(found.info.run_id)
        journal = Journal(journal_path(self.storage_root, self.experiment, key, None))
        if journal.header is None:
            raise ValueError(f"parent run {key} was never started in {self.experiment}")
        parent = _OpenRun(journal)
        self._open(parent)
        assert parent.run_id is not None
        return parent.run_id

    def _search(self, key: str, parent_key: str | None) -> Run | None:
        query = f"tags.`{KEY_TAG}` = '{_quoted(key)}'"
        if parent_key is not None:
            query += f" and tags.`{PARENT_KEY_TAG}` = '{_quoted(parent_key)}'"
        runs = self._client.search_runs(
            [self._experiment()], query, order_by=["attributes.start_time ASC"]
        )
        for run in runs:
            if parent_key is not None or PARENT_KEY_TAG not in run.data.tags:
                return run
        return None

    def _experiment(self) -> str:
        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self.experiment)
            if found is None:
                location = None
                if self.tracking_uri.startswith("sqlite:") and "://" not in self.storage_root:
                    location = (Path(self.storage_root) / "mlartifacts").as_uri()
                self._experiment_id = self._make_experiment(location)
            elif found.lifecycle_stage == "deleted":
                raise Refusal(
                    f"experiment {self.experiment} was deleted; bring it back with "
                    f"`mlflow experiments restore -x {found.experiment_id}` or name another"
                )
            else:
                self._experiment_id = str(found.experiment_id)
        return self._experiment_id

    def _make_experiment(self, location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(
                self._client.create_experiment(
                    self.experiment, artifact_location=location, tags=KIND
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Another job has just made it.
        found = self._client.get_experiment_by_name(self.experiment)
        assert found is not None
        return str(found.experiment_id)

    def _send_params(
        self, run_id: str, params: Mapping[str, Scalar], recorded: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag

        texts = {name: _shortened(str(value), PARAM_LENGTH) for name, value in params.items()}
        fresh = [Param(name, text) for name, text in texts.items() if name not in recorded]
        other = [
            RunTag(f"resumed.{name}", text)
            for name, text in texts.items()
            if name in recorded and recorded[name] != text
        ]
        for chunk in _chunks(fresh, PAIRS_PER_BATCH):
            self._client.log_batch(run_id, params=chunk)
        for tags in _chunks(other, PAIRS_PER_BATCH):
            self._client.log_batch(run_id, tags=tags)

    def _send_tags(self, run: _OpenRun) -> None:
        from mlflow.entities import RunTag

        assert run.run_id is not None
        counts = run.journal.non_finite
        wanted = run.header.tags | {f"nonfinite.{key}": str(n) for key, n in counts.items()}
        if run.journal.reason is not None:
            wanted[REASON_TAG] = run.journal.reason
        changed = {name: value for name, value in wanted.items() if run.tags.get(name) != value}
        entities = [RunTag(name, _shortened(value, TAG_LENGTH)) for name, value in changed.items()]
        with sorting_errors():
            for chunk in _chunks(entities, PAIRS_PER_BATCH):
                self._client.log_batch(run.run_id, tags=chunk)
        run.tags = wanted

    def _send_points(self, run: _OpenRun) -> None:
        from mlflow.entities import Metric

        journal = run.journal
        assert run.run_id is not None
        while journal.num_sent < len(journal.points):
            chunk = journal.points[journal.num_sent :][:METRICS_PER_BATCH]
            rejected = None
            try:
                with sorting_errors():
                    fresh = [
                        Metric(key, value, time_ms, step)
                        for key, value, step, time_ms in chunk
                        if math.isfinite(value) and step not in self._logged(run, key)
                    ]
                    if fresh:
                        self._client.log_batch(run.run_id, metrics=fresh)
            except Refusal as refusal:
                rejected = str(refusal)
                _log.error("MLflow refused %d metrics of %s: %s", len(chunk), run.run_id, refusal)
            journal.sent(run.run_id, journal.num_sent + len(chunk), rejected)

    def _logged(self, run: _OpenRun, key: str) -> set[int]:
        if run.history is None:
            return set()
        if key not in run.history:
            assert run.run_id is not None
            points = self._client.get_metric_history(run.run_id, key)
            run.history[key] = {point.step for point in points}
        return run.history[key]

    def _send_artifacts(self, run: _OpenRun) -> None:
        """Hand over the files that wait in the spool.

        Raises:
            Outage: the artifact store failed, in whatever way: stores raise errors of their own
                libraries, or lack one here. The files stay in the spool and are sent later.
            Refusal: the server will never take them.
        """
        spool = run.journal.spool
        if spool.exists():
            assert run.run_id is not None
            try:
                with sorting_errors():
                    self._client.log_artifacts(run.run_id, str(spool))
            except (Outage, Refusal):
                raise
            except Exception as error:
                raise Outage(f"{type(error).__name__}: {error}") from error
            shutil.rmtree(spool)

    def _show_status(self, run: _OpenRun) -> None:
        journal = run.journal
        if journal.sent_status == journal.status:
            return
        assert run.run_id is not None
        with sorting_errors():
            if journal.status == "RUNNING":
                self._client.update_run(run.run_id, status="RUNNING")
            else:
                self._client.set_terminated(run.run_id, journal.status)
        journal.shown(journal.status)


class ReplayConfig(Config):
    """Whose journals to send, and where to."""

    storage: str | None = Field(None, description="root of the runs; $KINEMA_STORAGE")
    tracking_uri: str | None = Field(
        None, description="server; $MLFLOW_TRACKING_URI, and without it the root's own store"
    )

    @property
    def root(self) -> str:
        """Absolute storage root."""
        return absolute(self.storage or default_root())


def replay(storage_root: str, tracking_uri: str | None = None) -> int:
    """Send what earlier outages left in the journals of a storage root; runs must not be going on.

    Returns:
        Of how many runs the server still lacks something, 0 when it took everything.

    Raises:
        StorageError: the embedded store cannot be used, or no server is named for a remote root.
    """
    trackers: dict[str, Tracker] = {}
    incomplete = 0
    for path in sorted(journal_folder(storage_root).glob("*/*.jsonl")):
        journal = Journal(path)
        if journal.header is None:
            continue
        name = journal.header.experiment
        if name not in trackers:
            trackers[name] = Tracker(storage_root, name, tracking_uri)
        run = _OpenRun(journal)
        if not journal.settled:
            trackers[name]._flush(run)
        incomplete += not journal.settled
    return incomplete


def _chunks(items: list[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
