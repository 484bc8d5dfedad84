"""Progress lines: rate, time left, failures; quiet in logs."""

from __future__ import annotations

import io

import pytest

from kinema.pipelines import progress
from kinema.pipelines.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    time = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_log_gets_a_plain_line_now_and_then(now: list[float]) -> None:
    stream = io.StringIO()
    with Progress("motion", 100, stream) as bar:
        for step in range(1, 31):
            now[0] = float(step)
            bar.advance(failed=step == 5)
    assert stream.getvalue().splitlines() == [
        "motion: 10/100, 1 failed  1/s  1:30 left",
        "motion: 20/100, 1 failed  1/s  1:20 left",
        "motion: 30/100, 1 failed  1/s  1:10 left",
        "motion: 30/100, 1 failed in 0:30",
    ]


def test_terminal_line_is_redrawn(now: list[float]) -> None:
    stream = Terminal()
    with Progress("motion", 2, stream) as bar:
        for step in (1, 2):
            now[0] = float(step)
            bar.advance()
    assert stream.getvalue().split("\r\x1b[2K") == [
        "",
        "motion: 1/2",
        "motion: 2/2  1/s  0:00 left",
        "motion: 2/2 in 0:02\n",
    ]


def test_rate_is_that_of_the_last_things(now: list[float]) -> None:
    bar = Progress("motion", 10_000, io.StringIO())
    for step in range(1_000):  # slow at first, then ten times as fast
        now[0] += 1.0 if step < 500 else 0.1
        bar.advance()
    assert "10/s  15:00 left" in bar.line(now[0])


def test_what_starting_took_is_not_taken_for_the_rate(now: list[float]) -> None:
    bar = Progress("motion", 11, io.StringIO())
    now[0] = 60.0  # until the workers had started
    bar.advance()
    assert bar.line(now[0]) == "motion: 1/11"
    now[0] = 61.0
    bar.advance()
    assert bar.line(now[0]) == "motion: 2/11  1/s  0:09 left"


def test_nothing_to_do_says_nothing() -> None:
    stream = io.StringIO()
    with Progress("motion", 0, stream):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3_725, "1:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
