"""Dense flow as the motion store keeps it: coarse cells, small integers, camera motion apart.

One field says where every cell of a frame goes until `stride` frames later, as a camera at rest
would see it, in units of 1 / `UNITS` px of the reduced frame. The homography beside it puts the
camera's motion back. Both are enough for tracks, and for flow with and without camera motion.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt

from kinema.config import Config
from kinema.motion.camera import Features, camera_motion, move, stabilised_flow
from kinema.motion.flow import Estimator, Flow, Grey

UNITS = 32
"""Stored integers per pixel of the reduced frame: rounding costs at most 1/64 px."""


class FieldConfig(Config):
    """Which dense flow is kept. Lengths are in pixels of the reduced frame."""

    stride: int = Field(
        1, ge=1, description="frames from one end of a flow to the other; every frame starts one"
    )
    cell: int = Field(4, ge=1, description="side of the squares whose mean flow is kept")
    limit: PositiveFloat = Field(
        20.0, le=1000, description="longer components are cut to this, and counted"
    )
    stabilise: bool = Field(True, description="remove camera motion (MME, appendix A)")
    features: Features = Field("orb", description="what is matched to find the camera's motion")
    min_inliers: PositiveInt = Field(
        25, description="points that must agree on a camera motion; with no more it counts as none"
    )
    median: bool = Field(True, description="3 x 3 median before cells are formed (MME, Eq. 6)")


@dataclass(frozen=True)
class StoredFields:
    """The fields of one video, or of a part of it, as they are stored.

    Attributes:
        frames: (F,) int32, the frame at which each field starts, ascending.
        values: (F, 2, rows, columns) int16, x then y, in 1 / `UNITS` px of the reduced frame.
        cameras: (F, 3, 3) float64, pixels of the reduced frame -> of the one `stride` later.
        clipped: (F,) float32, share of the pixels with a component beyond the limit.
        scale: source pixels per pixel of the reduced frame, x and y.
        size: (height, width) of the source frames, pixels.
    """

    frames: npt.NDArray[np.int32]
    values: npt.NDArray[np.int16]
    cameras: npt.NDArray[np.float64]
    clipped: npt.NDArray[np.float32]
    scale: tuple[float, float]
    size: tuple[int, int]

    def decode(self) -> FlowRun:
        """The fields in source pixels."""
        scale = np.array(self.scale)
        rows, columns = self.values.shape[2:]
        flow = self.values.transpose(0, 2, 3, 1) * (scale / UNITS).astype(np.float32)
        enlarge = np.diag([*scale, 1.0])
        cameras = enlarge @ self.cameras @ np.linalg.inv(enlarge)
        cell = (self.size[1] / columns, self.size[0] / rows)
        return FlowRun(self.frames.astype(np.int64), flow.astype(np.float32), cameras, cell)


@dataclass(frozen=True)
class FlowRun:
    """Flow that starts at some frames of a video, in source pixels.

    Attributes:
        frames: (F,) int64 ascending.
        flow: (F, rows, columns, 2) float32 x, y, camera motion removed.
        cameras: (F, 3, 3) float64, what the camera added to it.
        cell: width and height of a cell; the cells cover the frame.
    """

    frames: npt.NDArray[np.int64]
    flow: npt.NDArray[np.float32]
    cameras: npt.NDArray[np.float64]
    cell: tuple[float, float]

    def raw(self) -> npt.NDArray[np.float32]:
        """The same flow with the camera's motion, as it is between the frames themselves."""
        rows, columns = self.flow.shape[1:3]
        x, y = np.meshgrid(
            (np.arange(columns) + 0.5) * self.cell[0], (np.arange(rows) + 0.5) * self.cell[1]
        )
        at = np.stack([x, y], axis=-1)
        moved = move(at + self.flow, self.cameras[:, None, None])
        return np.asarray(moved - at, dtype=np.float32)


class FieldCollector:
    """Turns pairs of frames into stored fields, one after the other."""

    def __init__(self, cfg: FieldConfig, estimate: Estimator) -> None:
        self._cfg, self._estimate = cfg, estimate
        self._held: deque[Grey] = deque(maxlen=cfg.stride + 1)
        self._values: list[npt.NDArray[np.int16]] = []
        self._cameras: list[npt.NDArray[np.float64]] = []
        self._clipped: list[float] = []

    def add(self, grey: Grey) -> Flow | None:
        """Take the next frame; returns its flow from `stride` frames before, camera included."""
        self._held.append(grey)
        if len(self._held) <= self._cfg.stride:
            return None
        prev = self._held[0]
        raw = self._estimate(prev, grey)
        camera, flow = np.eye(3), raw
        if self._cfg.stabilise:
            camera = camera_motion(prev, grey, raw, self._cfg.min_inliers, self._cfg.features)
            flow = stabilised_flow(prev, grey, camera, self._estimate, raw)
        self._keep(flow, camera)
        return raw

    def _keep(self, flow: Flow, camera: npt.NDArray[np.float64]) -> None:
        limit, cell = self._cfg.limit, self._cfg.cell
        self._clipped.append(float((np.abs(flow) > limit).any(axis=-1).mean()))
        if self._cfg.median:
            flow = np.stack([cv2.medianBlur(flow[..., i].copy(), 3) for i in (0, 1)], axis=-1)
        flow = np.clip(flow, -limit, limit)
        height, width = flow.shape[:2]
        cells = (-(-width // cell), -(-height // cell))
        coarse = np.asarray(cv2.resize(flow, cells, interpolation=cv2.INTER_AREA))
        self._values.append(np.rint(coarse * UNITS).astype(np.int16).transpose(2, 0, 1))
        self._cameras.append(camera)

    def collected(self, scale: tuple[float, float], size: tuple[int, int]) -> StoredFields | None:
        """All fields so far; None when there was no pair."""
        if not self._values:
            return None
        return StoredFields(
            frames=np.arange(len(self._values), dtype=np.int32),
            values=np.stack(self._values),
            cameras=np.stack(self._cameras),
            clipped=np.array(self._clipped, dtype=np.float32),
            scale=scale,
            size=size,
        )
