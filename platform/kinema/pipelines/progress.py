"""Progress of many equal things: count, rate, time left, failures. One line that is redrawn on a
terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TextIO

REDRAW_S = 0.2
LOG_EVERY_S = 10.0
WINDOW = 200
"""The rate is that of the last so many things."""


class Progress:
    """A context in which `advance` is called once per thing."""

    def __init__(self, name: str, total: int, stream: TextIO | None = None) -> None:
        self.name, self.total = name, total
        self.done = self.failed = 0
        self._stream = stream or sys.stdout
        self._started = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._shown = self._started

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.total:
            seconds = time.monotonic() - self._started
            self._write(f"{self._counts()} in {clock(seconds)}", last=True)

    def advance(self, failed: bool = False) -> None:
        """One more is done."""
        self.done += 1
        self.failed += failed
        now = time.monotonic()
        self._recent.append((now, self.done))
        if now - self._shown >= (REDRAW_S if self._stream.isatty() else LOG_EVERY_S):
            self._shown = now
            self._write(self.line(now), last=False)

    def line(self, now: float) -> str:
        """Count, failures, and once there are two things to tell them by, rate and time left.

        The first thing also waited for everything to start, so it tells neither.
        """
        since, count = self._recent[0]
        if self.done == count:
            return self._counts()
        rate = (self.done - count) / max(now - since, 1e-9)
        return f"{self._counts()}  {rate:.3g}/s  {clock((self.total - self.done) / rate)} left"

    def _counts(self) -> str:
        return f"{self.name}: {self.done}/{self.total}" + (
            f", {self.failed} failed" if self.failed else ""
        )

    def _write(self, text: str, last: bool) -> None:
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[2K{text}" + ("\n" if last else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()


def clock(seconds: float) -> str:
    """`m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
