"""Which frames of a video make a clip: windows or segments, at random or evenly for tests.

A clip that reaches past the end of its video repeats the last frame (VideoMAE's rule).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt

from kinema.config import Config

Indices = npt.NDArray[np.int64]

_EDGE = 1e-6
"""Frames; a time this close to a frame's edge is on it, whatever the floats say."""


class DenseSampling(Config):
    """Frames at an even distance from a random start (VideoMAE: stride 2 or 4)."""

    name: Literal["dense"] = "dense"
    stride: PositiveInt = Field(default=2, description="raw frames between frames of the clip")
    interval_s: PositiveFloat | None = Field(
        default=None, description="seconds between frames instead, for videos of different rates"
    )

    def draw(
        self,
        num_frames: int,
        length: int,
        fps: float,
        rng: np.random.Generator | None,
        view: tuple[int, int],
    ) -> Indices:
        """Indices before the end of the video is minded; see `sample`."""
        step = float(self.stride) if self.interval_s is None else self.interval_s * fps
        last_start = max(0.0, length - 1 - (num_frames - 1) * step)
        if rng is not None:
            start = float(rng.integers(0, int(last_start) + 1))
        else:
            number, count = view
            start = last_start / 2 if count == 1 else last_start * number / (count - 1)
        indices: Indices = np.floor(np.floor(start) + np.arange(num_frames) * step + _EDGE).astype(
            np.int64
        )
        return indices


class SegmentSampling(Config):
    """One frame from each of `num_frames` equal segments (TSN; VideoMAE on SSv2)."""

    name: Literal["tsn"] = "tsn"

    def draw(
        self,
        num_frames: int,
        length: int,
        fps: float,
        rng: np.random.Generator | None,
        view: tuple[int, int],
    ) -> Indices:
        """Indices; see `sample`.

        Of two test views the first takes the starts of the segments, the second their middles.
        """
        edges = np.arange(num_frames + 1) * (length / num_frames)
        if rng is not None:
            offsets = rng.random(num_frames)
        else:
            number, count = view
            offsets = np.full(num_frames, 0.5 if count == 1 else number / count)
        indices: Indices = np.floor(edges[:-1] + offsets * (length / num_frames) + _EDGE).astype(
            np.int64
        )
        return np.minimum(indices, length - 1)


Sampling = Annotated[DenseSampling | SegmentSampling, Field(discriminator="name")]
"""Every sampling there is, told apart by `name`."""


def sample(
    config: DenseSampling | SegmentSampling,
    num_frames: int,
    span: range,
    fps: float,
    rng: np.random.Generator | None,
    view: tuple[int, int] = (0, 1),
) -> tuple[Indices, float]:
    """Choose the frames of a clip.

    Args:
        config: how.
        num_frames: frames of the clip.
        span: frames of the video that belong to the entry (all of it, or the trimmed part).
        fps: frames per second of the video.
        rng: draws a training clip; None gives the test view `view`.
        view: (number, count) of temporal test views; one view is the middle.

    Returns:
        Absolute frame indices (num_frames,) in ascending order, and the share of them that repeats
        the last frame because the video is too short.
    """
    if len(span) == 0:
        raise ValueError("there is no frame to choose from")
    if not 0 <= view[0] < view[1]:
        raise ValueError(f"there is no view {view[0]} of {view[1]}")
    drawn = config.draw(num_frames, len(span), fps, rng, view)
    padded = float((drawn >= len(span)).mean())
    return span.start + np.minimum(drawn, len(span) - 1), padded
