"""Optical flow between two grey frames, by name.

TV-L1 (Zach et al. 2007, the paper's choice: MOFO 3.1), DIS (Kroeger et al. 2016) and Farneback
(2003), all from OpenCV. A flow at pixel (x, y) of the first frame says where that pixel is in the
second: `next(x + u, y + v) = prev(x, y)`, in pixels. No flow is ever rounded to 8 bits.

Mean end-point error in px on four Middlebury pairs (RubberWhale, Grove2, Dimetrodon, Venus):

    tvl1                    0.245  0.176  0.191  0.414
    tvl1, data_weight 0.15  0.156  0.157  0.180  0.306
    dis medium              0.223  0.324  0.153  0.391
    dis fast                0.438  0.396  0.302  0.573
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from kinema.config import Config
from kinema.errors import KinemaError

Grey = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
Estimator = Callable[[Grey, Grey], Flow]

DIS_PRESETS = {"ultrafast": 0, "fast": 1, "medium": 2}


class TVL1(Config):
    """Dual TV-L1 (Zach et al. 2007), the slowest of the three.

    `data_weight` is the paper's lambda: the smaller, the smoother the flow. OpenCV's own default,
    0.15, is more exact on the Middlebury pairs; at 0.05 edges follow objects rather than texture,
    which gives better motion boxes on Something-Something V2 and much the same ones elsewhere
    (`benchmarks/motion_boxes.py`). Everything else is OpenCV's default.
    """

    name: Literal["tvl1"] = "tvl1"
    tau: float = Field(0.25, gt=0)
    data_weight: float = Field(0.05, gt=0)
    theta: float = Field(0.3, gt=0)
    num_scales: int = Field(5, ge=1)
    num_warps: int = Field(5, ge=1)
    epsilon: float = Field(0.01, gt=0)
    inner_iterations: int = Field(30, ge=1)
    outer_iterations: int = Field(10, ge=1)
    scale_step: float = Field(0.8, gt=0, lt=1)
    median_filtering: Literal[1, 3, 5] = 5

    def estimator(self) -> Estimator:
        """A function (prev, next) -> flow.

        Raises:
            KinemaError: the installed OpenCV has no `optflow` module.
        """
        create = getattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create", None)
        if create is None:
            raise KinemaError(
                "flow tvl1 needs cv2.optflow.DualTVL1OpticalFlow_create, which the installed "
                f"OpenCV {cv2.__version__} lacks: exactly one OpenCV distribution, "
                "opencv-contrib-python-headless, must be installed (pip uninstall the others, "
                "then reinstall it), or choose flow.name=dis"
            )
        method = create(
            tau=self.tau,
            lambda_=self.data_weight,
            theta=self.theta,
            nscales=self.num_scales,
            warps=self.num_warps,
            epsilon=self.epsilon,
            innnerIterations=self.inner_iterations,  # OpenCV's own spelling
            outerIterations=self.outer_iterations,
            scaleStep=self.scale_step,
            medianFiltering=self.median_filtering,
        )
        return _checked(lambda prev, following: method.calc(prev, following, None))


class DIS(Config):
    """Dense inverse search: some fifty times faster than TV-L1, less exact at boundaries."""

    name: Literal["dis"] = "dis"
    preset: Literal["ultrafast", "fast", "medium"] = "medium"

    def estimator(self) -> Estimator:
        """A function (prev, next) -> flow."""
        method = cv2.DISOpticalFlow.create(DIS_PRESETS[self.preset])
        return _checked(lambda prev, following: method.calc(prev, following, None))  # type: ignore[call-overload]


class Farneback(Config):
    """Polynomial expansion (Farneback 2003), as MME's released extractor used it."""

    name: Literal["farneback"] = "farneback"
    pyramid_scale: float = Field(0.5, gt=0, lt=1)
    num_levels: int = Field(3, ge=1)
    window: int = Field(15, ge=3)
    num_iterations: int = Field(3, ge=1)
    poly_n: Literal[5, 7] = 5
    poly_sigma: float = Field(1.2, gt=0)

    def estimator(self) -> Estimator:
        """A function (prev, next) -> flow."""
        method = cv2.FarnebackOpticalFlow.create(
            numLevels=self.num_levels,
            pyrScale=self.pyramid_scale,
            winSize=self.window,
            numIters=self.num_iterations,
            polyN=self.poly_n,
            polySigma=self.poly_sigma,
        )
        return _checked(lambda prev, following: method.calc(prev, following, None))  # type: ignore[call-overload]


class CodecVectors(Config):
    """The codec's own motion vectors in place of an estimated flow: free, blocky, often wrong.

    Not an estimator: the extractor reads rasterised vectors instead of frames
    (`extract_boxes_from_vectors`).
    """

    name: Literal["vectors"] = "vectors"
    grid: int = Field(8, ge=1, description="side of a cell in px; H.264 blocks are multiples of 4")


class AnnotatedBoxes(Config):
    """Annotated boxes in place of motion that is found (MOFO, Fig. 5b). Not an estimator."""

    name: Literal["annotated"] = "annotated"
    file: str = Field(
        "boxes.parquet",
        description="Parquet of boxes: id, frame, left, top, right, bottom; a path or URI, or a"
        " name beside the manifest",
    )


MotionSource = Annotated[
    TVL1 | DIS | Farneback | CodecVectors | AnnotatedBoxes, Field(discriminator="name")
]


def to_grey(frame: npt.NDArray[np.uint8]) -> Grey:
    """Luma of an RGB frame (H, W, 3) uint8 -> (H, W) uint8."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def _checked(calculate: Callable[[Grey, Grey], Any]) -> Estimator:
    """`calculate` behind checks of what OpenCV would answer with an abort or a wrong flow."""

    def estimate(prev: Grey, following: Grey) -> Flow:
        if prev.ndim != 2 or prev.shape != following.shape:
            raise ValueError(
                f"flow needs two grey frames of one size, got {prev.shape} and {following.shape}"
            )
        if prev.dtype != np.uint8 or following.dtype != np.uint8:
            raise ValueError(f"flow needs uint8 frames, got {prev.dtype} and {following.dtype}")
        return np.asarray(calculate(prev, following), dtype=np.float32)

    return estimate
