from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from kinema.errors import KinemaError
from kinema.motion.flow import DIS, TVL1, Farneback, MotionSource, to_grey

BACKENDS = [TVL1(), TVL1(data_weight=0.15), DIS(), DIS(preset="ultrafast"), Farneback()]
MIDDLEBURY = {  # tvl1 with OpenCV's defaults, dis fast, dis medium
    "RubberWhale": (0.156, 0.438, 0.223),
    "Grove2": (0.157, 0.396, 0.324),
    "Dimetrodon": (0.180, 0.302, 0.153),
    "Venus": (0.306, 0.573, 0.391),
}


def shifted_pair(dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.standard_normal((128, 128)).astype(np.float32), (0, 0), 2)
    scene = np.clip(128 + 300 * noise, 0, 255).astype(np.uint8)
    return scene[20:100, 20:100].copy(), scene[20 - dy : 100 - dy, 20 - dx : 100 - dx].copy()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: f"{b.name}")
def test_flow_of_a_shift_is_the_shift(backend) -> None:
    flow = backend.estimator()(*shifted_pair(3, -2))
    assert flow.shape == (80, 80, 2)
    assert flow.dtype == np.float32
    inner = flow[12:-12, 12:-12].reshape(-1, 2)
    assert np.median(inner, axis=0) == pytest.approx([3, -2], abs=0.15)


def test_backends_are_chosen_by_name() -> None:
    parse = TypeAdapter(MotionSource).validate_python
    assert parse({"name": "tvl1"}) == TVL1()
    assert parse({"name": "dis", "preset": "fast"}) == DIS(preset="fast")
    with pytest.raises(ValidationError, match="farneback"):
        parse({"name": "raft"})


def test_missing_contrib_module_says_what_to_install(monkeypatch) -> None:
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(KinemaError, match="opencv-contrib-python-headless"):
        TVL1().estimator()


def test_frames_of_two_sizes_are_refused() -> None:
    estimate = DIS().estimator()
    with pytest.raises(ValueError, match=r"\(80, 80\) and \(80, 79\)"):
        estimate(np.zeros((80, 80), np.uint8), np.zeros((80, 79), np.uint8))


def test_grey_is_luma_of_rgb() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert to_grey(red)[0, 0] == 76  # 0.299 * 255


@pytest.mark.real
@pytest.mark.parametrize("pair", MIDDLEBURY)
def test_end_point_error_on_middlebury(real_data: Path, pair: str) -> None:
    folder = real_data / "flow" / pair
    greys = [cv2.imread(str(folder / f"frame1{i}.png"), cv2.IMREAD_GRAYSCALE) for i in (0, 1)]
    truth = cv2.readOpticalFlow(str(folder / "flow10.flo"))
    known = (np.abs(truth) < 1e9).all(axis=2)
    backends = TVL1(data_weight=0.15), DIS(preset="fast"), DIS(preset="medium")
    for backend, expected in zip(backends, MIDDLEBURY[pair], strict=True):
        error = np.linalg.norm(backend.estimator()(*greys) - truth, axis=2)[known].mean()
        assert error == pytest.approx(expected, abs=0.002), backend
