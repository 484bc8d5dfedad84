"""Trajectories through flows whose integral is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema.geometry import Transform
from kinema.motion.fields import FlowRun
from kinema.motion.tracks import patch_points, sample_flow, track

SIZE = (60, 80)
WHOLE = Transform.identity(SIZE)


def run(flow: np.ndarray, cameras: np.ndarray | None = None, first: int = 0) -> FlowRun:
    """Flow (F, rows, columns, 2) over the whole of SIZE."""
    count, rows, columns = flow.shape[:3]
    cameras = np.tile(np.eye(3), (count, 1, 1)) if cameras is None else cameras
    frames = np.arange(first, first + count)
    cell = (SIZE[1] / columns, SIZE[0] / rows)
    return FlowRun(frames, flow.astype(np.float32), cameras, cell)


def uniform(motions: list[tuple[float, float]]) -> np.ndarray:
    """(F, 15, 20, 2), every frame with one motion."""
    return np.broadcast_to(np.array(motions)[:, None, None], (len(motions), 15, 20, 2))


def test_a_point_moves_with_the_sum_of_the_flows() -> None:
    motions = [(1.0, 0.5), (2.0, -1.0), (0.25, 0.0), (-1.0, 2.0)]
    points = np.array([[20.0, 30.0], [40.5, 12.25]])
    tracks = track(run(uniform(motions)), np.array([0, 1]), points, 3, 1, WHOLE)
    assert tracks.positions.shape == (2, 2, 4, 2)
    for slot in (0, 1):
        expected = np.cumsum([(0, 0), *motions[slot : slot + 3]], axis=0)
        np.testing.assert_allclose(tracks.positions[slot], points[:, None] + expected)
        np.testing.assert_allclose(
            tracks.displacements[slot], np.broadcast_to(motions[slot : slot + 3], (2, 3, 2))
        )
    assert tracks.valid.all()


def test_a_rotating_flow_carries_points_round() -> None:
    """Against the closed form: rotation about the middle by 2 degrees per step."""
    angle = np.deg2rad(2.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([40.0, 30.0])
    x, y = np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5)
    at = np.stack([x, y], axis=-1)
    flow = (at - middle) @ turn.T + middle - at
    points = np.array([[55.0, 30.0], [40.0, 12.0], [33.3, 41.7]])
    tracks = track(run(np.stack([flow] * 6)), np.array([0]), points, 6, 1, WHOLE)
    ends = (points - middle) @ np.linalg.matrix_power(turn, 6).T + middle
    np.testing.assert_allclose(tracks.positions[0, :, -1], ends, atol=1e-3)


def test_raw_follows_the_object_and_stabilised_leaves_the_camera_out() -> None:
    camera = np.array([[1, 0, -3.0], [0, 1, 0], [0, 0, 1]])
    flow = run(uniform([(1.0, 0.0)] * 6), np.stack([camera] * 6))
    point = np.array([[60.0, 30.0]])
    raw = track(flow, np.array([0]), point, 6, 1, WHOLE, "raw")
    literal = track(flow, np.array([0]), point, 6, 1, WHOLE, "stabilised")
    np.testing.assert_allclose(raw.positions[0, 0, -1], [60 - 2 * 6, 30])
    np.testing.assert_allclose(literal.positions[0, 0, -1], [60 + 6, 30])
    for tracks in (raw, literal):
        np.testing.assert_allclose(tracks.displacements[0, 0], np.tile([1.0, 0.0], (6, 1)))


def test_a_point_that_leaves_is_not_counted() -> None:
    flow = run(uniform([(5.0, 0.0)] * 6))
    points = np.array([[10.0, 30.0], [49.0, 30.0], [51.0, 30.0], [79.0, 1.0]])
    tracks = track(flow, np.array([0]), points, 6, 1, WHOLE)
    assert tracks.valid[0].tolist() == [True, True, False, False]


def test_what_leaves_the_crop_leaves_the_clip() -> None:
    flow = run(uniform([(5.0, 0.0)] * 6))
    cropped = WHOLE.crop([0, 0, 40, 40]).resize((32, 32))
    tracks = track(flow, np.array([0]), np.array([[7.0, 16.0], [9.0, 16.0]]), 6, 1, cropped)
    assert tracks.valid[0].tolist() == [True, False]  # 30 px are 24 of the input's


def test_a_trajectory_past_the_end_of_the_video_is_not_counted() -> None:
    flow = run(uniform([(1.0, 0.0)] * 6), first=10)
    tracks = track(flow, np.array([10, 11]), np.array([[30.0, 30.0]]), 6, 1, WHOLE)
    assert tracks.valid[:, 0].tolist() == [True, False]
    assert np.isfinite(tracks.positions).all()
    apart = track(flow, np.array([10, 11]), np.array([[30.0, 30.0]]), 2, 5, WHOLE)
    assert apart.valid[:, 0].tolist() == [True, False]


@given(
    flip=st.booleans(),
    size=st.sampled_from([(48, 48), (30, 64), (96, 72)]),
    left=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
def test_tracks_follow_crop_resize_and_flip(flip, size, left, seed) -> None:
    """Tracks of the input's points are the images of the source points' tracks."""
    rng = np.random.default_rng(seed)
    flow = run(rng.normal(0, 2, (6, 15, 20, 2)))
    transform = WHOLE.crop([left, 5, left + 50, 55]).resize(size)
    transform = transform.hflip() if flip else transform
    points = rng.uniform([5, 5], [size[1] - 5, size[0] - 5], (7, 2))
    back = np.linalg.inv(transform.matrix)
    source = points @ back[:2, :2].T + back[:2, 2]
    here = track(flow, np.array([0, 2]), points, 4, 1, transform)
    there = track(flow, np.array([0, 2]), source, 4, 1, WHOLE)
    np.testing.assert_allclose(here.positions, transform.points(there.positions), atol=1e-3)
    np.testing.assert_allclose(
        here.displacements, transform.displacements(there.displacements), atol=1e-3
    )


def test_flow_between_cells_is_linear_and_constant_beyond_the_outermost() -> None:
    flow = np.zeros((1, 2, 3, 2), np.float32)
    flow[0, ..., 0] = [[0, 10, 20], [30, 40, 50]]
    points = np.array([[[5, 5], [10, 5], [5, 10], [12.5, 7.5], [0, 0], [30, 20]]])
    got = sample_flow(flow, (10.0, 10.0), np.array([0]), points)
    assert got[0, :, 0].tolist() == [0, 5, 15, 7.5 + 7.5, 0, 50]


@pytest.mark.parametrize("per_patch", [1, 4, 16])
def test_points_are_spread_evenly_patch_by_patch(per_patch: int) -> None:
    points = patch_points(32, 16, per_patch)
    assert points.shape == (4 * per_patch, 2)
    patches = points.reshape(4, per_patch, 2)
    corners = np.array([[0, 0], [16, 0], [0, 16], [16, 16]])
    np.testing.assert_allclose(patches.mean(axis=1), corners + 8)
    assert ((patches >= corners[:, None]) & (patches < corners[:, None] + 16)).all()
    if per_patch == 4:
        assert points[:4].tolist() == [[4, 4], [12, 4], [4, 12], [12, 12]]
