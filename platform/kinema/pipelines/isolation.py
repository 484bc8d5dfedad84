"""Motion extraction of one video, in a process that may crash or hang. Knows no Ray."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TypeVar

import numpy as np

from kinema.config import fingerprint
from kinema.errors import KinemaError, VideoError
from kinema.motion.extractor import (
    Extraction,
    FrameBoxes,
    MotionConfig,
    extract_boxes_from_vectors,
    extract_motion,
)
from kinema.motion.fields import StoredFields
from kinema.motion.flow import CodecVectors
from kinema.motion.store import MotionRow
from kinema.motion.vectors import iterate_fields
from kinema.video.decode import content_digest, iterate_frames, iterate_vectors
from kinema.video.manifest import Entry

Moving = TypeVar("Moving", FrameBoxes, StoredFields)

ATTEMPTS = 2
"""A video that ends its process gets one more chance: the machine may have been to blame."""


def video_digest(entry: Entry) -> str:
    """What the boxes of an entry are made from: the bytes, and its trimming where it has any.

    Raises:
        KinemaError: it cannot be read.
    """
    content = content_digest(entry.path)
    if entry.start_s is None and entry.end_s is None:
        return content
    return fingerprint(content, entry.start_s, entry.end_s)


def extract_one(entry: Entry, config: MotionConfig) -> MotionRow:
    """Decode one video and find its motion; frame indices are those of the whole file.

    Raises:
        KinemaError: the video cannot be read, or has too few frames.
    """
    digest = video_digest(entry)
    span = entry.frame_range()
    if isinstance(config.flow, CodecVectors):
        found = Extraction(_from_vectors(entry, config))
    else:
        found = extract_motion(iterate_frames(entry.path, span.start, span.stop), config)
    return MotionRow(
        id=entry.id,
        video_digest=digest,
        width=entry.width,
        height=entry.height,
        num_frames=entry.num_frames,
        fps=entry.fps,
        boxes=_from(span.start, found.boxes),
        fields=None if found.fields is None else _from(span.start, found.fields),
    )


def _from(start: int, found: Moving) -> Moving:
    """The same with frames counted from the start of the file."""
    return replace(found, frames=(found.frames + start).astype(np.int32))


def _from_vectors(entry: Entry, config: MotionConfig) -> FrameBoxes:
    assert isinstance(config.flow, CodecVectors)
    span = entry.frame_range()
    frames = iterate_vectors(entry.path, span.start, span.stop)
    fields = (field for _, field in iterate_fields(frames, config.flow.grid))
    next(fields)  # links the first frame to the one before the range
    return extract_boxes_from_vectors(fields, entry.height, entry.width, config)


@dataclass(frozen=True)
class Outcome:
    """What became of one video: a row, or the reason why there is none.

    Attributes:
        seconds: wall time, all attempts together.
        finished_at: seconds since 1970.
    """

    entry: Entry
    row: MotionRow | None
    why: str | None
    seconds: float
    finished_at: float


class IsolatedExtractor:
    """Runs `extract_one` in a child process, which a video may take down with it.

    Args:
        config: of the extraction.
        timeout_s: limit per video and attempt.
        extract: what to run; must be importable in a new process.
    """

    def __init__(
        self,
        config: MotionConfig,
        timeout_s: float,
        extract: Callable[[Entry, MotionConfig], MotionRow] = extract_one,
    ) -> None:
        self._config, self.timeout_s, self._extract = config, timeout_s, extract
        self._child: BaseProcess | None = None
        self._pipe: Connection

    def __enter__(self) -> IsolatedExtractor:
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

    def extract(self, entry: Entry) -> Outcome:
        """Extract one video; a crash, a hang and every error become the reason of its failure."""
        started = time.monotonic()
        row, why = None, None
        for _ in range(ATTEMPTS):
            answer = self._attempt(entry)
            if isinstance(answer, MotionRow):
                row, why = answer, None
                break
            why = str(answer)
            if not isinstance(answer, _Ended):
                break
            why += f", {ATTEMPTS} times"
        return Outcome(entry, row, why, time.monotonic() - started, time.time())

    def _attempt(self, entry: Entry) -> MotionRow | str | _Ended:
        """The row, the error's text, or how the child ended."""
        try:
            if self._child is None:
                self._start()
            self._pipe.send(entry)
            if self._pipe.poll(self.timeout_s):
                answer: MotionRow | str = self._pipe.recv()
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
        self._child = context.Process(
            target=_serve, args=(theirs, self._extract, self._config), daemon=True
        )
        self._child.start()
        theirs.close()  # so that the child's death is the end of the pipe
        self._pipe.recv()  # its imports are done, the first video's time starts


class _Ended(str):
    """How a child process ended without an answer."""


def _serve(
    pipe: Connection, extract: Callable[[Entry, MotionConfig], MotionRow], config: MotionConfig
) -> None:
    """The child: answers entries with rows or with the text of an error, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    pipe.send("ready")
    while True:
        try:
            entry = pipe.recv()
        except EOFError:
            return
        try:
            answer: MotionRow | str = extract(entry, config)
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
