"""From a video's frames to one motion box per pair of frames (MOFO 3.1), and to dense flow (MME).

What it reaches with the defaults, mean per-frame IoU: see `agreement`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from kinema.errors import KinemaError
from kinema.motion.fields import FieldCollector, FieldConfig, StoredFields
from kinema.motion.flow import (
    TVL1,
    AnnotatedBoxes,
    CodecVectors,
    Flow,
    Grey,
    MotionSource,
    to_grey,
)
from kinema.motion.regions import RELEASED, RegionConfig, find_box_and_peak, motion_map

# Part of every digest and store name: raise it by hand whenever results change for unchanged
# settings, so that stored boxes are made again instead of being mixed with new ones.
EXTRACTOR_VERSION = 2


class MotionConfig(RegionConfig):
    """Everything that decides the motion boxes of a video, and which dense flow is kept."""

    released: ClassVar[dict[str, Any]] = {**RELEASED, "flow": {"name": "tvl1", "data_weight": 0.15}}

    flow: MotionSource = TVL1()
    step: int = Field(1, ge=1, description="frames between the two frames of a pair")
    flow_short_side: int = Field(
        224, ge=16, description="frames are reduced to this short side before flow, never enlarged"
    )
    fields: FieldConfig | None = Field(
        None, description="dense flow to keep, for tracks and flow targets; null = boxes alone"
    )

    @model_validator(mode="after")
    def _vectors_are_consecutive(self) -> Self:
        if isinstance(self.flow, CodecVectors) and self.step != 1:
            raise ValueError(
                f"flow vectors link neighbouring frames: step must be 1, not {self.step}"
            )
        if isinstance(self.flow, CodecVectors | AnnotatedBoxes) and self.fields is not None:
            raise ValueError(f"flow {self.flow.name} is no dense flow: fields must be null")
        return self


@dataclass(frozen=True)
class FrameBoxes:
    """The motion boxes of one video.

    Attributes:
        frames: (F,) int32, absolute index of the first frame of each pair, ascending.
        boxes: (F, 4) float32 xyxy in source pixels, half-open; NaN rows where nothing moves.
        peaks: (F,) float32, strongest motion step in px per frame at the size flow was computed.
    """

    frames: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]
    peaks: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.frames)
        if self.boxes.shape != (count, 4) or self.peaks.shape != (count,):
            raise ValueError(
                f"{count} frames, but boxes {self.boxes.shape} and peaks {self.peaks.shape}"
            )


@dataclass(frozen=True)
class Extraction:
    """What is kept of one video: its boxes, and its dense flow if `fields` asks for it."""

    boxes: FrameBoxes
    fields: StoredFields | None = None


def extract_motion(frames: Iterable[npt.NDArray[np.uint8]], cfg: MotionConfig) -> Extraction:
    """Motion boxes and dense flow of a video, in the memory of what is kept and a few frames.

    Args:
        frames: (H, W, 3) uint8 RGB each, in order, at the video's own rate.
        cfg: `cfg.flow` must estimate flow; codec vectors go to `extract_boxes_from_vectors`.

    Raises:
        KinemaError: fewer than `step + 1` or `fields.stride + 1` frames, or frames of different
            sizes.
    """
    if isinstance(cfg.flow, CodecVectors | AnnotatedBoxes):
        raise KinemaError(
            f"flow {cfg.flow.name} does not read frames; choose flow.name=tvl1, dis or farneback"
        )
    with _single_threaded():
        greys = _Greys(frames, cfg)
        collector = FieldCollector(cfg.fields, cfg.flow.estimator()) if cfg.fields else None
        flows = _flows(greys, cfg, collector)
        maps = _motion_maps(flows, cfg)
        boxes, peaks = _boxes(maps, cfg)
    needed = max(cfg.step, cfg.fields.stride if cfg.fields else 0) + 1
    if greys.count < needed:
        raise KinemaError(f"its motion needs {needed} frames, got {greys.count}")
    scale = greys.source_per_pixel()
    stored = collector.collected(scale, greys.source_size()) if collector else None
    return Extraction(_frame_boxes(boxes, peaks, scale, cfg.step), stored)


def extract_boxes(frames: Iterable[npt.NDArray[np.uint8]], cfg: MotionConfig) -> FrameBoxes:
    """The boxes of `extract_motion` alone."""
    return extract_motion(frames, cfg.model_copy(update={"fields": None})).boxes


def extract_boxes_from_vectors(
    fields: Iterable[npt.NDArray[np.float32]], height: int, width: int, cfg: MotionConfig
) -> FrameBoxes:
    """Motion boxes of a video by its codec's vectors.

    Args:
        fields: (rows, columns, 2) float32 as `rasterise_vectors` returns them, px per frame in
            source pixels; the first belongs to the second frame of the video.
        height: of the frames, pixels.
        width: of the frames, pixels.
        cfg: `cfg.flow` must be `vectors`, with the grid the fields were made with.

    Raises:
        KinemaError: no field at all.
    """
    if not isinstance(cfg.flow, CodecVectors):
        raise KinemaError(f"codec vectors were given, but flow.name is {cfg.flow.name}")
    # min_motion counts pixels at the size at which flow would be computed
    scale = np.float32(_reduction(height, width, cfg))
    maps = _motion_maps((field * scale for field in fields), cfg)
    boxes, peaks = _boxes(maps, cfg)
    if not boxes:
        raise KinemaError("a motion box needs 2 frames, got no motion vectors")
    found = _frame_boxes(boxes, peaks, (cfg.flow.grid, cfg.flow.grid), cfg.step)
    limit = np.array([width, height] * 2, dtype=np.float32)  # the last cells may reach past it
    return FrameBoxes(found.frames, np.minimum(found.boxes, limit), found.peaks)


class _Greys:
    """Index and picture, grey and reduced, of the frames that are used; remembers their size."""

    def __init__(self, frames: Iterable[npt.NDArray[np.uint8]], cfg: MotionConfig) -> None:
        self._frames, self._cfg = frames, cfg
        self._source: tuple[int, int] | None = None
        self._reduced: tuple[int, int] | None = None
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int, Grey]]:
        for index, frame in enumerate(self._frames):
            self.count = index + 1
            size = frame.shape[:2]
            if self._source is None:
                scale = _reduction(size[0], size[1], self._cfg)
                self._source = size
                self._reduced = round(size[0] * scale), round(size[1] * scale)
            elif size != self._source:
                raise KinemaError(f"frame {index} is {size}, the frames before {self._source}")
            if self._cfg.fields is not None or index % self._cfg.step == 0:
                yield index, self._reduce(to_grey(frame))

    def _reduce(self, grey: Grey) -> Grey:
        assert self._reduced is not None
        if self._reduced == grey.shape:
            return grey
        rows, columns = self._reduced
        return cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]

    def source_size(self) -> tuple[int, int]:
        """Height and width of the frames as they came."""
        assert self._source is not None
        return self._source

    def source_per_pixel(self) -> tuple[float, float]:
        """Source pixels per pixel of the reduced frames, x and y."""
        assert self._source is not None
        assert self._reduced is not None
        return self._source[1] / self._reduced[1], self._source[0] / self._reduced[0]


def _reduction(height: int, width: int, cfg: MotionConfig) -> float:
    return min(1.0, cfg.flow_short_side / min(height, width))


def _flows(
    greys: Iterable[tuple[int, Grey]], cfg: MotionConfig, collector: FieldCollector | None
) -> Iterator[Flow]:
    """Flow between every `step`-th grey frame, in pixels per frame of the video.

    `collector` sees every frame; where it estimates the same flow, that is used.
    """
    assert not isinstance(cfg.flow, CodecVectors | AnnotatedBoxes)
    estimate = cfg.flow.estimator()
    shared = cfg.fields is not None and cfg.step == cfg.fields.stride == 1
    previous: Grey | None = None
    for index, grey in greys:
        collected = None if collector is None else collector.add(grey)
        if index % cfg.step:
            continue
        if previous is not None:
            flow = collected if shared and collected is not None else estimate(previous, grey)
            yield flow / np.float32(cfg.step)
        previous = grey


def _motion_maps(flows: Iterable[Flow], cfg: MotionConfig) -> Iterator[npt.NDArray[np.float32]]:
    for flow in _averaged(flows, cfg.window):
        yield motion_map(flow, cfg.derivative, cfg.magnitude)


def _averaged(flows: Iterable[Flow], window: int) -> Iterator[Flow]:
    """Mean of each flow and its neighbours, `window` fields in all, fewer at both ends."""
    if window == 1:
        yield from flows
        return
    before = window // 2
    ahead = window - 1 - before
    held: deque[Flow] = deque(maxlen=window)
    waiting = 0
    for flow in flows:
        held.append(flow)
        waiting += 1
        if waiting > ahead:
            yield np.mean(held, axis=0)
            waiting -= 1
    for left in range(waiting, 0, -1):
        while len(held) > before + left:
            held.popleft()
        yield np.mean(held, axis=0)


def _boxes(
    maps: Iterable[npt.NDArray[np.float32]], cfg: MotionConfig
) -> tuple[list[npt.NDArray[np.float32]], list[float]]:
    found = [find_box_and_peak(motion, cfg) for motion in maps]
    return [box for box, _ in found], [peak for _, peak in found]


def _frame_boxes(
    boxes: list[npt.NDArray[np.float32]],
    peaks: list[float],
    source_per_pixel: tuple[float, float],
    step: int,
) -> FrameBoxes:
    return FrameBoxes(
        frames=np.arange(len(boxes), dtype=np.int32) * step,
        boxes=(np.stack(boxes) * np.array([*source_per_pixel] * 2)).astype(np.float32),
        peaks=np.array(peaks, dtype=np.float32),
    )


@contextmanager
def _single_threaded() -> Iterator[Any]:
    """Keep OpenCV on one core: the extraction job runs one worker per core."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
