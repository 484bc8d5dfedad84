"""Work on one video in a process of its own, which may crash or hang. Knows no Ray."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from kinema.errors import KinemaError, VideoError
from kinema.video.manifest import Entry

Result = TypeVar("Result")

ATTEMPTS = 2
"""A video that ends its process gets one more chance: the machine may have been to blame."""
START_TIMEOUT_S = 120.0
"""Limit for the imports of the work; those of torch take seconds."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one video: a result, or the reason why there is none.

    Attributes:
        seconds: wall time, all attempts together.
        finished_at: seconds since 1970.
    """

    entry: Entry
    result: Result | None
    why: str | None
    seconds: float
    finished_at: float


@dataclass(frozen=True)
class Packed(Generic[Result]):
    """Work on a video and its settings, as bytes that only the child process opens.

    So its parent imports nothing of what the work needs: torch takes seconds, and some 300 MB on
    every core.
    """

    content: bytes

    @classmethod
    def of(cls, work: Callable[[Entry, Any], Result], config: object) -> Packed[Result]:
        """Pack a function of (entry, config), importable in a new process, and its config."""
        return cls(pickle.dumps((work, config)))


class Isolated(Generic[Result]):
    """Runs work on one video after the other in a child process, which may die of one.

    Args:
        packed: the work; what it returns goes through a pipe.
        timeout_s: limit per video and attempt.
    """

    def __init__(self, packed: Packed[Result], timeout_s: float) -> None:
        self._packed, self.timeout_s = packed, timeout_s
        self._child: BaseProcess | None = None
        self._pipe: Connection

    def __enter__(self) -> Isolated[Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._pipe.close()
            self._child = None

    def run(self, entry: Entry) -> Outcome[Result]:
        """One video; a crash, a hang and every error become the reason of its failure.

        Raises:
            KinemaError: the child process does not start, which no video is to blame for.
        """
        started = time.monotonic()
        result, why = None, None
        for _ in range(ATTEMPTS):
            answer = self._attempt(entry)
            if isinstance(answer, _Done):
                result, why = answer.result, None
                break
            why = str(answer)
            if not isinstance(answer, _Ended):
                break
            why += f", {ATTEMPTS} times"
        return Outcome(entry, result, why, time.monotonic() - started, time.time())

    def _attempt(self, entry: Entry) -> _Done | str | _Ended:
        """The result, the error's text, or how the child ended."""
        if self._child is None:
            self._start()
        try:
            self._pipe.send(entry)
            if self._pipe.poll(self.timeout_s):
                answer: _Done | str = self._pipe.recv()
                return answer
            end = f"took longer than {self.timeout_s:g} s"
        except (EOFError, OSError):
            assert self._child is not None
            self._child.join()
            end = f"the decoder crashed ({_cause(self._child.exitcode)})"
        self.close()
        return _Ended(end)

    def _start(self) -> None:
        # spawn: a fork of a process with threads (Ray, Arrow) may deadlock
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, self._packed), daemon=True)
        self._child.start()
        theirs.close()  # so that the child's death is the end of the pipe
        end = f"took longer than {START_TIMEOUT_S:g} s"
        try:
            if self._pipe.poll(START_TIMEOUT_S):
                self._pipe.recv()  # its imports are done, the first video's time starts
                return
        except (EOFError, OSError):
            self._child.join()
            end = _cause(self._child.exitcode)
        self.close()
        raise KinemaError(
            f"the process that reads videos did not start ({end}); see its output above"
        )


@dataclass(frozen=True)
class _Done:
    """An answer that is no error."""

    result: Any


class _Ended(str):
    """How a child process ended without an answer."""


def _serve(pipe: Connection, packed: Packed[Any]) -> None:
    """The child: answers entries with results or an error's text, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    work, config = pickle.loads(packed.content)
    pipe.send("ready")
    while True:
        try:
            entry = pipe.recv()
        except EOFError:
            return
        try:
            answer: _Done | str = _Done(work(entry, config))
        except VideoError as error:
            answer = error.why
        except KinemaError as error:
            answer = str(error)
        except Exception as error:  # a bug met by one video must not cost the others
            answer = f"{type(error).__name__}: {error}"
        pipe.send(answer)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"
