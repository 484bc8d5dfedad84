"""Motion extraction of one video, in a process that may crash or hang. Knows no Ray."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
from pebble import ProcessExpired, ProcessPool

from kinema.config import fingerprint
from kinema.errors import KinemaError, VideoError
from kinema.motion.extractor import (
    FrameBoxes,
    MotionConfig,
    extract_boxes,
    extract_boxes_from_vectors,
)
from kinema.motion.flow import CodecVectors
from kinema.motion.store import MotionRow
from kinema.motion.vectors import rasterise_vectors
from kinema.storage import content_digest, list_files
from kinema.video.decode import iterate_frames, iterate_frames_and_vectors
from kinema.video.manifest import Entry

ATTEMPTS = 2
"""A video that ends its process gets one more chance: the machine may have been to blame."""


def video_digest(entry: Entry) -> str:
    """What the boxes of an entry are made from: the bytes, and its trimming where it has any.

    Raises:
        StorageError: the file cannot be read.
    """
    files = list_files(entry.path)  # a folder of images is a video too
    if files:
        content = fingerprint([content_digest(file) for file in files])
    else:
        content = content_digest(entry.path)
    if entry.start_s is None and entry.end_s is None:
        return content
    return fingerprint(content, entry.start_s, entry.end_s)


def frame_range(entry: Entry) -> tuple[int, int | None]:
    """First frame of an entry and the one after its last; None = to the end of the file."""
    first = 0 if entry.start_s is None else math.floor(entry.start_s * entry.fps)
    if entry.end_s is None:
        return first, None
    return first, min(math.ceil(entry.end_s * entry.fps), entry.num_frames)


def extract_one(entry: Entry, config: MotionConfig) -> MotionRow:
    """Decode one video and find its motion boxes; frame indices are those of the whole file.

    Raises:
        KinemaError: the video cannot be read, or has too few frames.
    """
    digest = video_digest(entry)
    start, stop = frame_range(entry)
    if isinstance(config.flow, CodecVectors):
        boxes = _from_vectors(entry, config, start, stop)
    else:
        boxes = extract_boxes(iterate_frames(entry.path, start, stop), config)
    return MotionRow(
        id=entry.id,
        video_digest=digest,
        width=entry.width,
        height=entry.height,
        num_frames=entry.num_frames,
        fps=entry.fps,
        boxes=replace(boxes, frames=(boxes.frames + start).astype(np.int32)),
    )


def _from_vectors(entry: Entry, config: MotionConfig, start: int, stop: int | None) -> FrameBoxes:
    assert isinstance(config.flow, CodecVectors)
    grid, decoded = config.flow.grid, iterate_frames_and_vectors(entry.path, start, stop)
    height, width = next(decoded)[0].shape[:2]  # its vectors belong to the frame before the range
    fields = (rasterise_vectors(vectors, height, width, grid) for _, vectors in decoded)
    return extract_boxes_from_vectors(fields, height, width, config)


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
    """Runs `extract_one` in one child process at a time, which a video may take down with it.

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
        self._config, self._timeout_s, self._extract = config, timeout_s, extract
        # spawn: a fork of a process with threads (Ray, Arrow) may deadlock
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(max_workers=1, context=context)

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
        self._pool.stop()
        self._pool.join()

    def extract(self, entry: Entry) -> Outcome:
        """Extract one video; a crash, a hang and every error become the reason of its failure."""
        started = time.monotonic()
        row, why = None, None
        for _ in range(ATTEMPTS):
            row, why, final = self._attempt(entry)
            if final:
                break
        return Outcome(entry, row, why, time.monotonic() - started, time.time())

    def _attempt(self, entry: Entry) -> tuple[MotionRow | None, str | None, bool]:
        future = self._pool.schedule(
            self._extract, args=[entry, self._config], timeout=self._timeout_s
        )
        try:
            return future.result(), None, True
        except TooLong:
            return None, f"took longer than {self._timeout_s:g} s, {ATTEMPTS} times", False
        except ProcessExpired as error:
            return None, f"the decoder crashed ({_cause(error.exitcode)}), {ATTEMPTS} times", False
        except VideoError as error:
            return None, error.why, True
        except KinemaError as error:
            return None, str(error), True
        except Exception as error:  # a bug met by one video must not cost the others
            return None, f"{type(error).__name__}: {error}", True


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"
