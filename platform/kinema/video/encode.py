"""H.264 as motion methods want it: one reference, no B-frames, so that each vector spans one frame.

Then FFmpeg's motion vectors, which tell a reference's direction and not its distance, are exact.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from kinema.config import Config
from kinema.errors import VideoError
from kinema.video.decode import iterate_frames, vectors_are_exact

ENCODER_VERSION = 2
"""Part of the digest of everything re-encoded; raise it when results change."""

X264_PARAMS = "cpu-independent=1"
"""Without it rate control sums differently on other CPUs, and with AVX-512 (core 165) even in
another process, as arrays lie in memory: the same frames now and then gave other bytes."""

Frame = npt.NDArray[np.uint8]


class EncodeConfig(Config):
    """How to re-encode. Every frame is kept, upright; sound is left out."""

    short_side: PositiveInt | None = Field(
        320, description="pixels that the shorter side is reduced to, never enlarged; null = kept"
    )
    gop: PositiveInt = Field(
        12, ge=2, description="frames from key frame to key frame; a clip decodes from one on"
    )
    crf: int = Field(
        18, ge=0, le=51, description="quality: 0 lossless, 18 hardly visible, 51 worst"
    )
    preset: Literal[
        "ultrafast",
        "superfast",
        "veryfast",
        "faster",
        "fast",
        "medium",
        "slow",
        "slower",
        "veryslow",
    ] = Field("medium", description="libx264's; slower gives smaller files")


@dataclass(frozen=True)
class Encoded:
    """What came out.

    Attributes:
        data: the MP4 file.
        height: pixels; even, as H.264's colours are halved.
        width: likewise.
        num_frames: as decoded again.
        source_seconds: spent on decoding the source.
        seconds: on decoding the result.
    """

    data: bytes
    height: int
    width: int
    num_frames: int
    source_seconds: float
    seconds: float


def reencode(
    uri: str, fps: float, config: EncodeConfig, start: int = 0, stop: int | None = None
) -> Encoded:
    """Re-encode frames `start` to `stop` of a video, and decode the result to verify it.

    Frame times become uniform, 1 / `fps` apart.

    Raises:
        VideoError: the source is unusable, or too small; or the result is not what it should be.
    """
    clock = _Clock(iterate_frames(uri, start, stop))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        rate = Fraction(fps).limit_denominator(1001)
        options = {"preset": config.preset, "g": str(config.gop), "sc_threshold": "0"}
        count = _write(
            str(path), _resized(clock, uri, config.short_side), rate, config.crf, options
        )
        started = time.perf_counter()
        height, width, decoded = 0, 0, 0
        for frame in iterate_frames(str(path)):
            height, width = frame.shape[:2]
            decoded += 1
        seconds = time.perf_counter() - started
        if decoded != count or (count > 1 and not vectors_are_exact(str(path))):
            raise VideoError(uri, f"gave {decoded} of {count} frames after re-encoding")
        return Encoded(path.read_bytes(), height, width, count, clock.seconds, seconds)


def encode(frames: Frame, fps: int, crf: int) -> bytes:
    """One clip in memory as MP4, with libx264's own distance of key frames.

    Args:
        frames: (T, H, W, 3) uint8 RGB, even sides.
        fps: frames per second.
        crf: quality, 0 (lossless) to 51.
    """
    file = io.BytesIO()
    _write(file, frames, Fraction(fps), crf, {})
    return file.getvalue()


def _write(
    file: str | io.BytesIO,
    frames: Iterable[Frame],
    rate: Fraction,
    crf: int,
    options: dict[str, str],
) -> int:
    """Write an MP4 file; returns the number of frames."""
    count = 0
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "crf": str(crf),
            "threads": "1",
            "bf": "0",
            "refs": "1",
            "x264-params": X264_PARAMS,
            **options,
        }
        for count, frame in enumerate(frames, start=1):
            if count == 1:
                stream.height, stream.width = frame.shape[:2]
            # By OpenCV: the last bit of FFmpeg's depends on where the array lies in memory.
            yuv = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")))
        container.mux(stream.encode(None))
    return count


def _resized(frames: Iterable[Frame], uri: str, short_side: int | None) -> Iterator[Frame]:
    """The frames in the size of the first, its shorter side reduced and both sides even."""
    size: tuple[int, int] | None = None
    for frame in frames:
        height, width = frame.shape[:2]
        if size is None:
            if min(height, width) < 2:
                raise VideoError(uri, f"frames of {width}x{height} are too small to encode")
            scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
            size = 2 * round(width * scale / 2), 2 * round(height * scale / 2)
        if size == (width, height):
            yield frame
        else:
            resized = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            yield np.asarray(resized, dtype=np.uint8)


class _Clock:
    """Passes frames on and counts the seconds that they took."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames, self.seconds = frames, 0.0

    def __iter__(self) -> Iterator[Frame]:
        while True:
            started = time.perf_counter()
            frame = next(self._frames, None)
            self.seconds += time.perf_counter() - started
            if frame is None:
                return
            yield frame
