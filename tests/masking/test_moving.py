"""Masks that move: they follow motion, keep their shape, and their sides change as they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema.masking.grid import Grid
from kinema.masking.masks import CubeMask, MGMMask, SMMMask
from kinema.motion.clip import ClipMotion, SlotField
from kinema.randomness import keyed_rng

VIDEOMAE = Grid(8, 14, 14)
SIZE = (224, 224)


def at(places: list[tuple[float, float]], strength: float = 1.0) -> ClipMotion:
    """Motion at one place per slot, in pixels, weak motion everywhere else."""
    x, y = np.meshgrid(np.arange(4, 224, 8.0), np.arange(4, 224, 8.0))
    points = np.stack([x, y], axis=-1).reshape(-1, 2)
    magnitude = np.full((len(places), len(points)), 0.1)
    for slot, place in enumerate(places):
        magnitude[slot, np.linalg.norm(points - place, axis=1).argmin()] = 5 * strength
    return ClipMotion(field=SlotField(points, magnitude * strength))


def hidden(mask: np.ndarray, slot: int) -> np.ndarray:
    """Rows and columns (n, 2) of a slot's hidden tokens."""
    return np.argwhere(mask[slot].reshape(14, 14))


def path(count: int = 8) -> list[tuple[float, float]]:
    return [(60 + 12 * slot, 150 - 10 * slot) for slot in range(count)]


@pytest.mark.parametrize("key", range(10))
def test_dense_mgm_is_a_rectangle_around_the_motion_in_every_slot_after_the_first(key) -> None:
    places = path()
    mask = MGMMask(mask_ratio=0.25, jitter=0).sample(VIDEOMAE, at(places), SIZE, keyed_rng(key))
    for slot, (x, y) in enumerate(places):
        tokens = hidden(mask, slot)
        assert len(tokens) == pytest.approx(49, abs=7)
        rows, columns = tokens.T
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert len(tokens) > area - max(np.ptp(rows), np.ptp(columns)) - 2  # but for the last edge
        if slot:
            centre = tokens.mean(axis=0)[::-1] * 16 + 8
            expected = np.clip([x, y], 3.5 * 16, 224 - 3.5 * 16)
            assert np.abs(centre - expected).max() <= 10


def test_the_first_slot_is_at_random_unless_asked_otherwise() -> None:
    motion = at([(120.0, 120.0)] * 8)
    first = {
        rule: np.stack(
            [
                hidden(
                    MGMMask(mask_ratio=0.25, first_slot=rule).sample(
                        VIDEOMAE, motion, SIZE, keyed_rng(key)
                    ),
                    0,
                ).mean(axis=0)
                for key in range(60)
            ]
        )
        for rule in ("random", "motion")
    }
    assert first["random"].std(axis=0).min() > 1.5  # uniform over 7 tokens: 2.0
    assert first["motion"].std(axis=0).max() < 0.5


@pytest.mark.parametrize(("dy", "dx"), [(0, 3), (2, 0), (3, 2)])
@pytest.mark.parametrize("shape", ["dense", "sparse"])
def test_the_mask_moves_with_the_pixels(shape, dy, dx) -> None:
    mask = MGMMask(mask_ratio=0.15, shape=shape, first_slot="motion", jitter=0.3)
    here, there = (
        np.mean(
            [
                mask.sample(
                    VIDEOMAE,
                    at([(84.0 + 16 * dx * step, 84.0 + 16 * dy * step)] * 8),
                    SIZE,
                    keyed_rng(key),
                )
                for key in range(100)
            ],
            axis=(0, 1),
        ).reshape(14, 14)
        for step in (0, 1)
    )
    if shape == "dense":
        # equal but for tokens equally far from the edge, between which chance decides
        np.testing.assert_allclose(here[: 14 - dy, : 14 - dx], there[dy:, dx:], atol=0.05)
    else:  # what falls off the grid on one side is drawn elsewhere
        inner = here[1:8, 1:8]
        np.testing.assert_allclose(inner, there[1 + dy : 8 + dy, 1 + dx : 8 + dx], atol=0.1)


@given(key=st.integers(0, 500), ratio=st.floats(0.05, 0.95), jitter=st.floats(0, 3))
def test_sides_change_by_nothing_in_sum_and_stay_on_the_grid(key, ratio, jitter) -> None:
    for cls in (MGMMask, SMMMask):
        mask = cls(mask_ratio=ratio, jitter=jitter)
        sides = mask._sides(VIDEOMAE, keyed_rng(key))
        assert (sides >= 1).all()
        assert (sides <= 14).all()
        np.testing.assert_allclose(sides[0], max(1.0, 14 * math.sqrt(ratio)))
        if (sides[1:-1] > 1).all() and (sides[1:-1] < 14).all():  # nothing was cut
            np.testing.assert_allclose(sides[-1], sides[0])


def test_simulated_motion_ties_both_sides_and_guided_does_not() -> None:
    simulated = SMMMask(mask_ratio=0.3)._sides(VIDEOMAE, keyed_rng(0))
    np.testing.assert_allclose(simulated[:, 0], simulated[:, 1])
    guided = MGMMask(mask_ratio=0.3)._sides(VIDEOMAE, keyed_rng(0))
    assert not np.allclose(guided[:, 0], guided[:, 1])


def test_simulated_motion_does_not_read_motion() -> None:
    for motion in (None, at(path())):
        drawn = SMMMask().sample(VIDEOMAE, motion, SIZE, keyed_rng(3))
        np.testing.assert_array_equal(drawn, SMMMask().sample(VIDEOMAE, None, SIZE, keyed_rng(3)))


def test_simulated_motion_drifts_at_a_constant_velocity_without_noise() -> None:
    mask = SMMMask(mask_ratio=0.04, jitter=0, noise=0, max_speed=1)
    for key in range(30):
        sides = mask._sides(VIDEOMAE, keyed_rng(key))
        centres = mask._path(VIDEOMAE, None, SIZE, sides, keyed_rng(key))
        steps = np.diff(centres, axis=0)
        inside = ((centres > 1.41) & (centres < 12.59)).all(axis=1)
        free = steps[inside[1:] & inside[:-1]]
        if len(free) > 1:
            np.testing.assert_allclose(free, np.broadcast_to(free[0], free.shape), atol=1e-9)
        assert np.linalg.norm(steps, axis=1).max() <= 1 + 1e-9


def test_a_still_clip_is_masked_as_by_simulated_motion() -> None:
    still = at(path(), strength=0.0)
    assert still.field is not None
    assert still.field.still
    mask = MGMMask(mask_ratio=0.25, jitter=0)
    simulated = SMMMask(mask_ratio=0.25, jitter=0)
    for key in range(5):
        sides = mask._sides(VIDEOMAE, keyed_rng(9))
        np.testing.assert_array_equal(
            mask._path(VIDEOMAE, still, SIZE, sides, keyed_rng(key)),
            simulated._path(VIDEOMAE, None, SIZE, sides, keyed_rng(key)),
        )


def test_a_still_slot_keeps_the_place_of_the_one_before() -> None:
    motion = at(path())
    assert motion.field is not None
    motion.field.magnitude[4] = 0
    mask = MGMMask(mask_ratio=0.1, jitter=0)
    sides = mask._sides(VIDEOMAE, keyed_rng(0))
    centres = mask._path(VIDEOMAE, motion, SIZE, sides, keyed_rng(0))
    np.testing.assert_array_equal(centres[4], centres[3])
    assert (centres[5] != centres[4]).any()


def test_topk_takes_the_mean_of_several_peaks() -> None:
    motion = at([(52.0, 100.0)] * 8)
    assert motion.field is not None
    other = np.linalg.norm(motion.field.points - [164, 100], axis=1).argmin()
    motion.field.magnitude[:, other] = 4.9
    mask = MGMMask(mask_ratio=0.05, jitter=0, topk=2)
    sides = mask._sides(VIDEOMAE, keyed_rng(0))
    centres = mask._path(VIDEOMAE, motion, SIZE, sides, keyed_rng(0))
    np.testing.assert_allclose(centres[1:] * 16, np.broadcast_to([108.0, 100.0], (7, 2)))


def test_sparse_masks_hide_more_near_the_centre_and_reach_everywhere() -> None:
    mask = MGMMask(mask_ratio=0.5, shape="sparse", jitter=0, spread=0.5)
    motion = at([(116.0, 116.0)] * 8)
    share = np.mean(
        [mask.sample(VIDEOMAE, motion, SIZE, keyed_rng(k))[1] for k in range(400)], axis=0
    ).reshape(14, 14)
    assert 0 < share.min() < share.max() < 1
    distance = np.hypot(*(np.indices((14, 14)) - 6.75))
    assert np.corrcoef(distance.reshape(-1), share.reshape(-1))[0, 1] < -0.95
    drawn = mask.sample(VIDEOMAE, motion, SIZE, keyed_rng(0))
    assert (drawn.sum(axis=1) == 98).all()  # equally many in every slot


def test_cubes_span_slots_and_positions() -> None:
    """Neighbours in time and space are hidden together far more often than at random."""
    masks = np.stack(
        [CubeMask().sample(VIDEOMAE, None, SIZE, keyed_rng(k)) for k in range(50)]
    ).reshape(50, 8, 14, 14)
    for axis in (1, 2, 3):
        first = np.take(masks, range(masks.shape[axis] - 1), axis)
        second = np.take(masks, range(1, masks.shape[axis]), axis)
        assert (first & second).mean() / first.mean() > 0.75  # at random: 0.4
    assert masks.mean() == pytest.approx(0.4, abs=1e-3)
