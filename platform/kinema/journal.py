"""A local, append-only record of one tracked run, written before anything is sent to a server.

One JSON object per line. Killed mid-write, a journal loses at most its last line. Everything that a
tracking server shows of a run can be made again from its journal.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from kinema.config import fingerprint
from kinema.errors import StorageError
from kinema.storage import absolute

Point = tuple[str, float, int, int]
"""A metric: key, value, step, time in milliseconds since 1970."""
Scalar = str | int | float | bool | None

FOLDER = "journal"
LOCK_WAIT_S = 60.0
"""How long a run waits for processes of an earlier job that was killed to end."""

_held: dict[Path, IO[str]] = {}
"""Locks of the runs that this process is at."""


@dataclass(frozen=True)
class RunHeader:
    """What a run is called and what it was started with."""

    experiment: str
    key: str
    name: str
    parent_key: str | None
    params: dict[str, Scalar]
    tags: dict[str, str]


class Journal:
    """One run's record on disk and its state in memory.

    Attributes:
        header: the latest start of the run, None for a journal that was never begun.
        points: every metric point in order of arrival, none twice for one (key, step).
        run_id: the tracking server's run that the points went to, None before that.
        num_sent: how many of `points` that run has.
        status, reason: what the run should be shown as.
        sent_status: what it is shown as.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: RunHeader | None = None
        self.points: list[Point] = []
        self.run_id: str | None = None
        self.num_sent = 0
        self.status = "RUNNING"
        self.reason: str | None = None
        self.sent_status: str | None = None
        self._seen: set[tuple[str, int, bool]] = set()
        if path.exists():
            self._read()

    @property
    def spool(self) -> Path:
        """Folder of the artifacts that could not be sent yet."""
        return self.path.with_suffix(".artifacts")

    @property
    def non_finite(self) -> Counter[str]:
        """How many NaN or infinite values each metric had."""
        return Counter(key for key, value, _, _ in self.points if not math.isfinite(value))

    @property
    def settled(self) -> bool:
        """Whether the server has everything."""
        return (
            self.num_sent == len(self.points)
            and self.sent_status == self.status
            and not self.spool.exists()
        )

    def begin(self, header: RunHeader) -> None:
        """Start the run, or start it again.

        Raises:
            StorageError: a process of another job is at it: two would write over each other.
        """
        self._take(header.name)
        self._append({"kind": "run", **asdict(header)})

    def add(self, points: Iterable[Point]) -> int:
        """Keep the points whose (key, step) is new; returns how many were.

        After a NaN or infinity a finite value may still come for the same step; both are kept.
        """
        fresh: list[Point] = []
        for key, value, step, time_ms in points:
            identity = (key, step, math.isfinite(value))
            if identity not in self._seen:
                self._seen.add(identity)
                fresh.append((key, value, step, time_ms))
        if fresh:
            lines = [[key, _to_json(value), step, time_ms] for key, value, step, time_ms in fresh]
            self._write({"kind": "points", "points": lines})
            self.points += fresh
        return len(fresh)

    def finish(self, status: str, reason: str | None) -> None:
        """Note the run's end."""
        self._append({"kind": "finish", "status": status, "reason": reason})
        lock = _held.pop(self.path, None)
        if lock is not None:
            lock.close()

    def sent(self, run_id: str, num_points: int, rejected: str | None = None) -> None:
        """Note that the server's run `run_id` has the first `num_points` points.

        `rejected` is the server's reason for refusing the last of them for good.
        """
        entry = {"kind": "sent", "run_id": run_id, "points": num_points}
        self._append(entry if rejected is None else {**entry, "rejected": rejected})

    def shown(self, status: str) -> None:
        """Note that the server shows `status`."""
        self._append({"kind": "shown", "status": status})

    def _take(self, name: str) -> None:
        """Lock the run for this process; the system lets go when the process ends, however."""
        if self.path in _held:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_suffix(".lock").open("w")
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.close()
                    raise StorageError(
                        f"another job is at the run '{name}' ({self.path}): wait for its end, or"
                        " end it"
                    ) from None
                time.sleep(0.5)
            else:
                _held[self.path] = lock
                return

    def _read(self) -> None:
        for entry in _entries(self.path):
            if entry["kind"] == "points":
                for key, value, step, time_ms in entry["points"]:
                    self.points.append((key, float(value), step, time_ms))
                    self._seen.add((key, step, math.isfinite(float(value))))
            else:
                self._apply(entry)

    def _append(self, entry: dict[str, Any]) -> None:
        self._write(entry)
        self._apply(entry)

    def _apply(self, entry: dict[str, Any]) -> None:
        match entry["kind"]:
            case "run":
                fields = {name: entry[name] for name in RunHeader.__dataclass_fields__}
                self.header, self.status, self.reason = RunHeader(**fields), "RUNNING", None
                self.sent_status = None
            case "sent":
                self.run_id, self.num_sent = entry["run_id"], entry["points"]
            case "finish":
                self.status, self.reason = entry["status"], entry["reason"]
            case "shown":
                self.sent_status = entry["status"]

    def _write(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode()
        with self.path.open("ab+") as file:
            end = file.seek(0, 2)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a torn last line must not swallow this one
                    line = b"\n" + line
            file.write(line + b"\n")


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal; one torn by a kill is left out."""
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield entry


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def journal_folder(storage_root: str) -> Path:
    """Where the journals of a storage root lie.

    A remote root cannot be appended to; its journals stay on this machine under `~/.kinema/remote`.
    """
    root = absolute(storage_root)
    if "://" in root:
        return Path.home() / ".kinema" / "remote" / fingerprint(root) / FOLDER
    return Path(root) / FOLDER


def journal_path(storage_root: str, experiment: str, key: str, parent_key: str | None) -> Path:
    """`<storage root>/journal/<experiment>/[<parent key>@]<run key>.jsonl`."""
    name = key if parent_key is None else f"{parent_key}@{key}"
    return journal_folder(storage_root) / _safe(experiment) / f"{_safe(name)}.jsonl"


def _safe(name: str) -> str:
    return quote(name, safe="@ +,=").replace("..", "%2E%2E")
