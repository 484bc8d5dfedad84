"""From one flow field to one motion box (MOFO 3.1, Eq. 1 and 2).

The motion map is the joint norm of the flow's spatial derivatives, so that a uniform camera motion
leaves nothing. It is smoothed, cut at 1.5 of its own standard deviations, and the two largest
regions that remain span the box.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from kinema.config import TO_VARY, Config

Map = npt.NDArray[np.float32]
Derivative = Literal["central", "prewitt"]
Magnitude = Literal["joint", "mean"]

PREWITT = np.array([[-1, 0, 1]] * 3, dtype=np.float32) / 6
"""Scaled to equal the derivative of a linear field."""

RELEASED: dict[str, Any] = {
    "derivative": "prewitt",
    "magnitude": "mean",
    "window": 8,
    "border": 8 / 240,
    "sigma": 1 / 240,
    "max_cut": 0.4,
    "second_sigma": 30 / 240,
    "second_floor": 1 / 306,
    "max_distance": 0.4,
}
"""What MOFO's released extractor does beyond the paper, without its rounding to 8 bits.

Blurs of 1 and 30 px were given for frames 240 px high. Its maps count 76.5 levels for a step of
1 px where ours hold 0.25, so its lowest level that is not zero is 1/306. It also joins the boxes of
a whole video, which is `reduce: video` when a clip is loaded.
"""


class RegionConfig(Config):
    """How a flow field becomes a box. Lengths are relative to the frame's shorter side."""

    released: ClassVar[dict[str, Any]] = RELEASED

    preset: Literal["paper", "released"] = Field(
        "paper", description="released fills in what MOFO's released extractor does (see RELEASED)"
    )
    derivative: Derivative = "central"
    magnitude: Magnitude = Field("joint", description="joint is Eq. 1; mean averages |du| and |dv|")
    window: int = Field(1, ge=1, description="flow fields averaged before the derivatives")
    border: float = Field(
        0.02, ge=0, lt=0.25, description="rim in which the map is zeroed, a share of the short side"
    )
    sigma: float = Field(0.02, gt=0, description="Gaussian of Eq. 2 in shares of the short side")
    std_factor: float = Field(1.5, ge=0)
    max_cut: float = Field(0.0, ge=0, lt=1, description="also cut below this share of the peak")
    min_motion: float = Field(
        0.2, ge=0, description="px per frame; a frame whose strongest step is weaker has no box"
    )
    second_sigma: float = Field(0.0, ge=0, description="blur after the cuts; 0 = none")
    second_floor: float = Field(0.0, ge=0, description="cut after that blur, px per frame and px")
    max_contours: int = Field(2, ge=1)
    max_distance: float | None = Field(
        None, gt=0, description="share of the diagonal beyond which only the largest region is kept"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") == "released":
            return {**cls.released, **values}
        return values

    @model_serializer(mode="wrap")
    def _dump_chosen(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Without what the preset stands for, where another one may be chosen."""
        dumped: dict[str, Any] = dump(self)
        if info.context != TO_VARY:
            return dumped
        named = type(self)(preset=self.preset)
        same = [key for key in self.released if getattr(self, key) == getattr(named, key)]
        return {key: value for key, value in dumped.items() if key not in same}


def motion_map(
    flow: npt.NDArray[np.floating[Any]],
    derivative: Derivative = "central",
    magnitude: Magnitude = "joint",
) -> Map:
    """Motion boundaries of a flow field, Eq. 1.

    Args:
        flow: (H, W, 2), pixels.
        derivative: `central` differences (one-sided at the edges) or the 3x3 `prewitt` kernel.
        magnitude: `joint` is the norm over all four derivatives, `mean` the mean of the two norms.

    Returns:
        (H, W) float32 >= 0, pixels of displacement per pixel.
    """
    flow = np.asarray(flow, dtype=np.float32)
    if flow.ndim != 3 or flow.shape[2] != 2:
        raise ValueError(f"flow has shape {flow.shape}, expected (H, W, 2)")
    if derivative == "central":
        down, right = np.gradient(flow, axis=(0, 1))
    else:
        right = cv2.filter2D(flow, -1, PREWITT, borderType=cv2.BORDER_REPLICATE)
        down = cv2.filter2D(flow, -1, PREWITT.T, borderType=cv2.BORDER_REPLICATE)
    squared = right * right + down * down
    if magnitude == "joint":
        return np.asarray(np.sqrt(squared.sum(axis=2)))
    return np.asarray(np.sqrt(squared).mean(axis=2))


def smooth(motion: Map, sigma: float) -> Map:
    """Gaussian smoothing, Eq. 2, with `sigma` in shares of the shorter side."""
    pixels = sigma * min(motion.shape)
    return np.asarray(
        cv2.GaussianBlur(motion, (0, 0), pixels, borderType=cv2.BORDER_REFLECT), dtype=np.float32
    )


def peak_step(smoothed: Map, sigma: float) -> float:
    """The flow step, in px, that would leave the smoothed map's peak.

    A straight step of d px integrates to d across the edge, so a Gaussian of s px turns it into a
    ridge of height d / (s sqrt(2 pi)).
    """
    pixels = sigma * min(smoothed.shape)
    return float(smoothed.max() * pixels * math.sqrt(2 * math.pi))


def find_box(motion: Map, cfg: RegionConfig) -> npt.NDArray[np.float32]:
    """The box around the moving regions of one motion map.

    Args:
        motion: (H, W) as `motion_map` returns it, in px per frame and px.
        cfg: smoothing, cuts and number of regions.

    Returns:
        (4,) float32 xyxy in pixels of the map, half-open; NaN when nothing moves.
    """
    return find_box_and_peak(motion, cfg)[0]


def find_box_and_peak(motion: Map, cfg: RegionConfig) -> tuple[npt.NDArray[np.float32], float]:
    """`find_box` together with the map's `peak_step` in px per frame."""
    if cfg.border:
        motion = _without_rim(motion, cfg.border)
    smoothed = smooth(motion, cfg.sigma)
    peak = peak_step(smoothed, cfg.sigma)
    if peak == 0 or peak < cfg.min_motion:
        return _no_box(), peak
    regions = _largest_regions(_moving(smoothed, cfg), cfg)
    if not regions:
        return _no_box(), peak
    points = np.concatenate(regions).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0) + 1  # contours run through pixel centres
    return np.array([*low, *high], dtype=np.float32), peak


def _moving(smoothed: Map, cfg: RegionConfig) -> npt.NDArray[np.uint8]:
    """1 where the smoothed map survives every cut."""
    floor = max(cfg.std_factor * float(smoothed.std()), cfg.max_cut * float(smoothed.max()))
    kept = np.where(smoothed >= floor, smoothed, np.float32(0))
    if cfg.second_sigma:
        kept = smooth(kept, cfg.second_sigma)
        kept = np.where(kept >= cfg.second_floor, kept, np.float32(0))
    return (kept > 0).astype(np.uint8)


def _largest_regions(
    moving: npt.NDArray[np.uint8], cfg: RegionConfig
) -> list[npt.NDArray[np.int32]]:
    """External contours of the largest regions, largest first."""
    found, _ = cv2.findContours(moving, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contours = [np.asarray(contour, dtype=np.int32) for contour in found]
    contours.sort(key=cv2.contourArea, reverse=True)
    kept = contours[: cfg.max_contours]
    if cfg.max_distance is not None and len(kept) > 1:
        limit = cfg.max_distance * math.hypot(*moving.shape)
        centre = kept[0].mean(axis=(0, 1))
        kept = [c for c in kept if np.linalg.norm(c.mean(axis=(0, 1)) - centre) <= limit]
    return kept


def _without_rim(motion: Map, border: float) -> Map:
    rim = math.ceil(border * min(motion.shape))
    inner = np.zeros_like(motion)
    inner[rim:-rim, rim:-rim] = motion[rim:-rim, rim:-rim]
    return inner


def _no_box() -> npt.NDArray[np.float32]:
    return np.full(4, np.nan, dtype=np.float32)
