"""Camera motion against homographies that are known, and flow from which it was removed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema.motion.camera import camera_motion, move, stabilised_flow
from kinema.motion.flow import DIS

SIZE = 160


def texture(seed: int, sigma: float = 2.0) -> np.ndarray:
    """Grey noise (2 SIZE, 2 SIZE) with detail that flow can follow."""
    noise = np.random.default_rng(seed).standard_normal((2 * SIZE, 2 * SIZE)).astype(np.float32)
    blurred = np.asarray(cv2.GaussianBlur(noise, (0, 0), sigma))
    return np.clip(128 + 45 * blurred / blurred.std(), 0, 255).astype(np.float32)


def seen_by(scene: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """The frame in which scene point x, y of the first frame lies at camera @ (x, y)."""
    middle = np.array([[1, 0, SIZE / 2], [0, 1, SIZE / 2], [0, 0, 1.0]])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    to_scene = np.linalg.inv(half) @ middle @ np.linalg.inv(camera) @ half
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    frame = cv2.warpPerspective(scene, to_scene, (SIZE, SIZE), flags=flags)
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


CAMERAS = {
    "pan": np.array([[1, 0, 3.3], [0, 1, -1.7], [0, 0, 1]]),
    "zoom": np.array([[1.02, 0, -1.6], [0, 1.02, -1.6], [0, 0, 1]]),
    "roll": np.array([[0.9998, -0.02, 1.5], [0.02, 0.9998, -1.5], [0, 0, 1]]),
    "tilt": np.array([[1.01, 0, 1.0], [0, 1, 0.5], [1e-4, -5e-5, 1]]),
}
CORNERS = np.array([[0, 0], [SIZE, 0], [0, SIZE], [SIZE, SIZE], [SIZE / 2, SIZE / 2]])


@pytest.mark.parametrize("features", ["orb", "sift"])
@pytest.mark.parametrize("name", CAMERAS)
def test_a_known_camera_motion_is_found(name: str, features) -> None:
    scene, camera = texture(1), CAMERAS[name]
    prev, following = seen_by(scene, np.eye(3)), seen_by(scene, camera)
    flow = DIS().estimator()(prev, following)
    found = camera_motion(prev, following, flow, features=features)
    assert np.abs(move(CORNERS, found) - move(CORNERS, camera)).max() < 0.5
    again = camera_motion(prev, following, flow, features=features)
    np.testing.assert_array_equal(found, again)


def test_a_moving_object_does_not_mislead_it() -> None:
    scene, camera = texture(2), CAMERAS["pan"]
    prev, following = seen_by(scene, np.eye(3)), seen_by(scene, camera)
    patch = texture(3)[:60, :60].astype(np.uint8)
    prev[40:100, 40:100], following[50:110, 30:90] = patch, patch
    flow = DIS().estimator()(prev, following)
    found = camera_motion(prev, following, flow)
    assert np.abs(move(CORNERS, found) - move(CORNERS, camera)).max() < 0.5


@pytest.mark.parametrize("level", [0, 127])
def test_frames_without_detail_have_no_camera_motion(level: int) -> None:
    flat = np.full((64, 64), level, np.uint8)
    flow = np.full((64, 64, 2), 3.0, np.float32)
    np.testing.assert_array_equal(camera_motion(flat, flat, flow), np.eye(3))


def test_too_few_points_that_agree_are_no_camera_motion() -> None:
    scene = texture(4)
    prev, following = seen_by(scene, np.eye(3)), seen_by(scene, CAMERAS["pan"])
    flow = DIS().estimator()(prev, following)
    assert not np.array_equal(camera_motion(prev, following, flow), np.eye(3))
    np.testing.assert_array_equal(
        camera_motion(prev, following, flow, min_inliers=100_000), np.eye(3)
    )


def test_stabilised_flow_is_still_where_the_scene_is() -> None:
    scene, camera = texture(5), CAMERAS["pan"]
    prev, following = seen_by(scene, np.eye(3)), seen_by(scene, camera)
    estimate = DIS().estimator()
    raw = estimate(prev, following)
    still = stabilised_flow(prev, following, camera, estimate, raw)
    assert np.linalg.norm(raw, axis=-1).mean() > 3
    assert np.linalg.norm(still, axis=-1).mean() < 0.1
    assert np.abs(still[:, -4:]).max() < 1  # what the second frame does not show does not move


def test_a_camera_at_rest_leaves_the_flow_as_it_is() -> None:
    raw = np.ones((8, 8, 2), np.float32)
    grey = np.zeros((8, 8), np.uint8)
    assert stabilised_flow(grey, grey, np.eye(3), DIS().estimator(), raw) is raw


@given(st.integers(0, 10**6))
def test_move_is_the_homography(seed: int) -> None:
    rng = np.random.default_rng(seed)
    camera = np.eye(3) + rng.normal(0, 0.01, (3, 3))
    points = rng.uniform(0, 100, (4, 5, 2))
    expected = cv2.perspectiveTransform(points.reshape(-1, 1, 2), camera).reshape(4, 5, 2)
    np.testing.assert_allclose(move(points, camera), expected, rtol=1e-9)
    several = np.stack([camera] * 4)[:, None]
    np.testing.assert_allclose(move(points, several), expected, rtol=1e-9)
