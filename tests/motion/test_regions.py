from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.motion.regions import (
    RELEASED,
    RegionConfig,
    find_box,
    find_box_and_peak,
    motion_map,
    smooth,
)

RAMPS = st.floats(-2, 2, allow_nan=False)


def linear_flow(a: float, b: float, c: float, d: float) -> np.ndarray:
    y, x = np.mgrid[0:20, 0:30].astype(np.float32)
    return np.stack([a * x + b * y + 3, c * x + d * y - 7], axis=-1)


def object_flow(box: tuple[int, int, int, int], step=(3.0, 1.0), camera=(0.0, 0.0)) -> np.ndarray:
    flow = np.tile(np.array(camera, np.float32), (120, 160, 1))
    x0, y0, x1, y1 = box
    flow[y0:y1, x0:x1] += np.array(step, np.float32)
    return flow


@given(RAMPS, RAMPS, RAMPS, RAMPS)
def test_map_of_a_linear_flow_is_the_norm_of_its_slopes(a, b, c, d) -> None:
    flow = linear_flow(a, b, c, d)
    joint, mean = math.hypot(a, b, c, d), (math.hypot(a, b) + math.hypot(c, d)) / 2
    for derivative in ("central", "prewitt"):
        inner = (slice(1, -1), slice(1, -1))
        assert motion_map(flow, derivative)[inner] == pytest.approx(joint, abs=1e-4)
        assert motion_map(flow, derivative, "mean")[inner] == pytest.approx(mean, abs=1e-4)


def test_uniform_camera_motion_leaves_no_map_and_no_box() -> None:
    flow = np.tile(np.array([7.0, -4.0], np.float32), (60, 80, 1))
    assert motion_map(flow).max() == 0
    assert np.isnan(find_box(motion_map(flow), RegionConfig(min_motion=0))).all()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(15, 80),
    st.integers(15, 60),
    st.integers(25, 60),
    st.integers(25, 40),
    st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
)
def test_box_surrounds_the_moving_object_whatever_the_camera(x, y, width, height, camera) -> None:
    truth = np.array([x, y, x + width, y + height])
    found = find_box(motion_map(object_flow(tuple(truth), camera=camera)), RegionConfig())
    # the Gaussian of 2.4 px widens the box by at most some three deviations
    assert np.abs(found - truth).max() <= 8
    assert (found[:2] <= truth[:2]).all()
    assert (found[2:] >= truth[2:]).all()


@given(st.floats(0.3, 20))
def test_peak_is_the_flow_step_in_pixels(step) -> None:
    flow = np.zeros((200, 200, 2), np.float32)
    flow[:, 100:, 0] = step
    _, peak = find_box_and_peak(motion_map(flow), RegionConfig())
    assert peak == pytest.approx(step, rel=0.02)


def test_a_step_below_min_motion_is_no_motion() -> None:
    weak = motion_map(object_flow((40, 40, 90, 90), step=(0.15, 0.0)))
    assert np.isnan(find_box(weak, RegionConfig(min_motion=0.2))).all()
    assert not np.isnan(find_box(weak, RegionConfig(min_motion=0.1))).any()


def test_only_the_largest_regions_count() -> None:
    big, middle, small = (10, 10, 60, 60), (90, 20, 120, 50), (140, 100, 150, 110)
    flow = object_flow(big) + object_flow(middle) + object_flow(small)
    two, one = (find_box(motion_map(flow), RegionConfig(max_contours=n)) for n in (2, 1))
    assert one[2] < 75
    assert 115 < two[2] < 130
    assert two[3] < 75


def test_max_distance_drops_a_second_region_far_away() -> None:
    flow = object_flow((10, 10, 50, 50)) + object_flow((130, 90, 150, 110))
    near = find_box(motion_map(flow), RegionConfig(max_distance=0.4))
    assert near[2] < 60
    assert find_box(motion_map(flow), RegionConfig(max_distance=0.9))[2] > 145


def test_border_ignores_flow_errors_at_the_frame_edge() -> None:
    flow = object_flow((60, 40, 100, 80))
    flow[:1] += 10
    with_rim = find_box(motion_map(flow), RegionConfig(border=0))
    assert with_rim[1] == 0
    assert find_box(motion_map(flow), RegionConfig(border=0.02))[1] > 30


def test_threshold_is_a_multiple_of_the_deviation_of_the_smoothed_map() -> None:
    cfg = RegionConfig(border=0, max_contours=1000)
    motion = motion_map(object_flow((60, 40, 100, 80)))
    smoothed = smooth(motion, cfg.sigma)
    rows, columns = np.nonzero(smoothed >= 1.5 * smoothed.std())
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert find_box(motion, cfg).tolist() == expected


def test_smoothing_is_the_papers_gaussian() -> None:
    impulse = np.zeros((101, 101), np.float32)
    impulse[50, 50] = 1
    sigma = 3.0
    y, x = np.mgrid[-50:51, -50:51]
    gaussian = np.exp(-(x**2 + y**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    assert np.abs(smooth(impulse, sigma / 101) - gaussian).max() < 1e-4


def test_released_preset_fills_defaults_and_gives_way_to_settings() -> None:
    cfg = RegionConfig(preset="released", max_cut=0.3)
    assert cfg.max_cut == 0.3
    assert cfg.window == RELEASED["window"] == 8
    assert RegionConfig().second_sigma == 0


def test_released_preset_inflates_the_box() -> None:
    motion = motion_map(object_flow((70, 50, 90, 70)), "prewitt", "mean")
    paper, released = (find_box(motion, RegionConfig(preset=p)) for p in ("paper", "released"))
    assert released[2] - released[0] > 1.5 * (paper[2] - paper[0])


def test_released_floor_is_one_of_its_eight_bit_levels() -> None:
    flow = np.zeros((40, 40, 2), np.float32)
    flow[20:, :, 1] = 1
    level = motion_map(flow, "prewitt", "mean").max() / 76.5
    assert RELEASED["second_floor"] == pytest.approx(level, rel=0.01)


def test_flow_of_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        motion_map(np.zeros((4, 5)))


def test_boxes_are_half_open_in_map_pixels() -> None:
    motion = np.zeros((100, 100), np.float32)
    motion[40:60, 30:70] = 1
    cfg = RegionConfig(sigma=0.002, min_motion=0)
    assert find_box(cv2.GaussianBlur(motion, (1, 1), 0), cfg).tolist() == [30, 40, 70, 60]
