"""Every mask: exact counts, reach, determinism, and the MOFO rule."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from kinema.errors import ConfigError
from kinema.masking.grid import Grid, inside_positions
from kinema.masking.masks import (
    BlockMask,
    CubeMask,
    FrameMask,
    Mask,
    MGMMask,
    MotionBoxMask,
    RandomMask,
    SMMMask,
    TubeMask,
    mask_statistics,
)
from kinema.masking.rule import floor_share, round_share
from kinema.motion.clip import ClipBoxes, ClipMotion, SlotField
from kinema.randomness import keyed_rng

VIDEOMAE = Grid(8, 14, 14)
SIZE = (224, 224)
FIXED = [TubeMask, RandomMask, FrameMask, BlockMask, CubeMask, MotionBoxMask]
MOVING = [partial(cls, shape=shape) for cls in (SMMMask, MGMMask) for shape in ("dense", "sparse")]
MASKS = [*FIXED, *MOVING]
TUBES = [TubeMask, BlockMask, MotionBoxMask]
NAMES = [
    *(cls.__name__ for cls in FIXED),
    *(f"{made.func.__name__}-{made.keywords['shape']}" for made in MOVING),
]
every_mask = pytest.mark.parametrize("cls", MASKS, ids=NAMES)

grids = st.builds(Grid, st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
ratios = st.floats(0, 1)
PATCH = 16


def image_size(grid: Grid) -> tuple[int, int]:
    return grid.height * PATCH, grid.width * PATCH


def box_of(corners: tuple[float, float, float, float], grid: Grid) -> np.ndarray:
    """A box from four numbers in [0, 1]."""
    height, width = image_size(grid)
    scaled = np.array(corners) * [width, height, width, height]
    first, second = scaled[:2], scaled[2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)])


unit_boxes = st.tuples(*[st.floats(0, 1)] * 4)


def moving(grid: Grid, rng: np.random.Generator, still: bool = False) -> SlotField:
    """A field of 8 px cells, one of which moves most in every slot."""
    height, width = image_size(grid)
    x, y = np.meshgrid(np.arange(4, width, 8.0), np.arange(4, height, 8.0))
    points = np.stack([x, y], axis=-1).reshape(-1, 2)
    magnitude = rng.random((grid.slots, len(points))) * (not still)
    return SlotField(points, magnitude)


def motion(grid: Grid, box: np.ndarray, field: SlotField | None = None) -> ClipMotion:
    return ClipMotion(ClipBoxes(box, np.tile(box, (grid.slots, 1)), False), field)


def draw(mask: Any, grid: Grid, box: np.ndarray, *key: int | str) -> np.ndarray:
    field = moving(grid, keyed_rng(1, *key))
    return mask.sample(grid, motion(grid, box, field), image_size(grid), keyed_rng(0, *key))


@every_mask
@settings(max_examples=60, deadline=None)
@given(grid=grids, ratio=ratios, inside_ratio=ratios, corners=unit_boxes, key=st.integers(0, 99))
def test_count_is_exact_for_every_grid_ratio_and_box(
    cls, grid, ratio, inside_ratio, corners, key
) -> None:
    settings_ = {"inside_ratio": inside_ratio} if cls is MotionBoxMask else {}
    mask = cls(mask_ratio=ratio, **settings_)
    drawn = draw(mask, grid, box_of(corners, grid), key)
    assert drawn.shape == (grid.slots, grid.positions)
    assert drawn.dtype == np.bool_
    assert drawn.sum() == mask.num_hidden(grid)
    if cls in TUBES:
        assert (drawn == drawn[0]).all()


@every_mask
def test_every_token_can_be_hidden_and_visible(cls) -> None:
    grid = Grid(4, 5, 6)
    mask = cls(mask_ratio=0.25)  # a rectangle of half the grid always covers its middle
    box = np.array([16.0, 16.0, 48.0, 64.0])
    drawn = np.stack([draw(mask, grid, box, i) for i in range(400)])
    assert drawn.any(axis=0).all()
    assert (~drawn).any(axis=0).all()


def test_motion_box_reaches_all_196_positions_at_the_papers_ratios() -> None:
    box = np.array([96.0, 32.0, 160.0, 80.0])
    drawn = np.stack([draw(MotionBoxMask(), VIDEOMAE, box, i)[0] for i in range(500)])
    assert drawn.any(axis=0).all()
    assert (~drawn).any(axis=0).all()


def test_positions_are_hidden_equally_often_outside_the_box() -> None:
    box = np.array([96.0, 32.0, 160.0, 80.0])
    mask = MotionBoxMask()
    inside = inside_positions(VIDEOMAE, box, SIZE)
    frequency = np.mean([draw(mask, VIDEOMAE, box, i)[0] for i in range(2000)], axis=0)
    # 12 inside, 9 of them hidden; 167 of 184 outside. 6 standard deviations either way.
    assert np.abs(frequency[inside] - 9 / 12).max() < 6 * math.sqrt(0.75 * 0.25 / 2000)
    assert np.abs(frequency[~inside] - 167 / 184).max() < 6 * math.sqrt(0.91 * 0.09 / 2000)


@every_mask
def test_same_key_same_mask_and_another_key_another(cls) -> None:
    box = np.array([0.0, 0.0, 64.0, 64.0])
    first, again, other = (draw(cls(mask_ratio=0.5), VIDEOMAE, box, k) for k in ("a", "a", "b"))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("cls", "ratio", "hidden"),
    [
        (TubeMask, 0.9, 8 * 176),
        (MotionBoxMask, 0.9, 8 * 176),
        (BlockMask, 0.75, 8 * 147),
        (MGMMask, 0.75, 1176),  # MGM at 0.75
        (SMMMask, 0.75, 1176),
        (CubeMask, 0.4, 627),
        (RandomMask, 0.9, 1411),
        (FrameMask, 0.9, 7 * 196),
    ],
)
def test_published_counts_on_the_videomae_grid(cls, ratio, hidden) -> None:
    assert cls(mask_ratio=ratio).num_hidden(VIDEOMAE) == hidden


@pytest.mark.parametrize(
    ("ratio", "total", "expected"), [(0.9, 196, 176), (0.7, 10, 7), (0.29, 100, 29), (1 / 3, 3, 1)]
)
def test_floor_survives_binary_fractions(ratio, total, expected) -> None:
    assert floor_share(ratio, total) == expected


@pytest.mark.parametrize(
    ("ratio", "total", "expected"), [(0.75, 6, 5), (0.5, 1, 1), (0.75, 81, 61)]
)
def test_round_takes_halves_up(ratio, total, expected) -> None:
    assert round_share(ratio, total) == expected


@given(ratio=ratios, total=st.integers(0, 4000))
def test_shares_stay_within_the_total(ratio, total) -> None:
    assert 0 <= floor_share(ratio, total) <= round_share(ratio, total) <= total


@settings(max_examples=200, deadline=None)
@given(grid=grids, ratio=ratios, inside_ratio=ratios, corners=unit_boxes, key=st.integers(0, 99))
def test_realised_inside_ratio_is_the_closed_form(grid, ratio, inside_ratio, corners, key) -> None:
    mask = MotionBoxMask(mask_ratio=ratio, inside_ratio=inside_ratio)
    box = box_of(corners, grid)
    inside = inside_positions(grid, box, image_size(grid))
    n, total = int(inside.sum()), grid.positions
    hidden = mask.num_hidden(grid) // grid.slots
    wanted = math.floor(inside_ratio * n + 0.5 + 1e-9)
    feasible = [k for k in range(n + 1) if 0 <= hidden - k <= total - n]
    expected = min(feasible, key=lambda k: abs(k - wanted))
    drawn = draw(mask, grid, box, key)
    assert drawn[0][inside].sum() == expected
    assert mask.quota(n, total) == (expected, expected != wanted)
    realised = mask_statistics(drawn, inside)["inside_ratio"]
    if n == 0:
        assert math.isnan(realised)
    else:
        assert realised == pytest.approx(expected / n)


@pytest.mark.parametrize(
    ("num_inside", "quota"),
    [
        (4, (3, False)),
        (40, (30, False)),
        (80, (60, False)),
        (100, (80, True)),  # outside has 96 positions, so 80 of the 176 must be inside
        (196, (176, True)),
        (0, (0, False)),
    ],
)
def test_quota_at_the_papers_ratios(num_inside, quota) -> None:
    assert MotionBoxMask().quota(num_inside, 196) == quota


def test_quota_is_capped_by_the_whole_mask() -> None:
    assert MotionBoxMask(mask_ratio=0.1, inside_ratio=1.0).quota(50, 196) == (19, True)


@settings(max_examples=60, deadline=None)
@given(row=st.integers(0, 6), column=st.integers(0, 6), dy=st.integers(0, 5), dx=st.integers(0, 5))
def test_mask_moves_with_the_box(row, column, dy, dx) -> None:
    grid = Grid(2, 14, 14)
    mask = MotionBoxMask(mask_ratio=0.5, inside_ratio=1.0)
    box = np.array([column, row, column + 3, row + 2]) * 16.0
    moved = box + np.array([dx, dy, dx, dy]) * 16.0
    for at, i in ((box, 0), (moved, 1)):
        inside = inside_positions(grid, at, SIZE)
        drawn = draw(mask, grid, at, i)
        assert drawn[:, inside].all()
        assert inside.reshape(14, 14)[row + dy * i : row + dy * i + 2, column + dx * i].all()


def test_centre_rule_hides_fewer_positions_of_a_small_overhang() -> None:
    box = np.array([0.0, 0.0, 17.0, 16.0])
    mask = MotionBoxMask(mask_ratio=0.5, inside_ratio=1.0, overlap="centre")
    second = [draw(mask, VIDEOMAE, box, i)[0, 1] for i in range(50)]
    assert not all(second)
    wide = MotionBoxMask(mask_ratio=0.5, inside_ratio=1.0)
    assert all(draw(wide, VIDEOMAE, box, i)[0, 1] for i in range(50))


@pytest.mark.parametrize("known", [None, ClipMotion()])
def test_masks_without_the_motion_they_need_are_refused(known) -> None:
    with pytest.raises(ValueError, match="motion_box mask needs"):
        MotionBoxMask().sample(VIDEOMAE, known, SIZE, keyed_rng(0))
    with pytest.raises(ValueError, match="mgm mask needs"):
        MGMMask().sample(VIDEOMAE, known, SIZE, keyed_rng(0))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.9])
def test_block_is_one_rectangle_but_for_one_column(ratio) -> None:
    for i in range(30):
        hidden = draw(BlockMask(mask_ratio=ratio), VIDEOMAE, np.zeros(4), i)[0].reshape(14, 14)
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        box = hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all(axis=0).sum() >= box.shape[1] - 1


@settings(max_examples=100, deadline=None)
@given(grid=grids, corners=unit_boxes, ratio=st.floats(0.1, 0.9))
def test_statistics_weigh_inside_and_outside_to_the_mask_ratio(grid, corners, ratio) -> None:
    box = box_of(corners, grid)
    inside = inside_positions(grid, box, image_size(grid))
    assume(0 < inside.sum() < grid.positions)
    drawn = draw(RandomMask(mask_ratio=ratio), grid, box, 0)
    got = mask_statistics(drawn, inside)
    outside = mask_statistics(drawn, ~inside)
    assert got["mask_ratio"] == pytest.approx(drawn.sum() / grid.tokens)
    assert got["inside_share"] == pytest.approx(inside.sum() / grid.positions)
    mixed = (
        got["inside_ratio"] * got["inside_share"]
        + outside["inside_ratio"] * outside["inside_share"]
    )
    assert mixed == pytest.approx(got["mask_ratio"])


def test_statistics_take_another_box_for_every_slot() -> None:
    mask = np.array([[True, False], [True, True]])
    inside = np.array([[True, False], [False, True]])
    assert mask_statistics(mask, inside)["inside_ratio"] == 1.0


@pytest.mark.parametrize("field", ["mask_ratio", "inside_ratio"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "most"])
def test_ratios_outside_the_unit_interval_are_refused(field, value) -> None:
    with pytest.raises(ValidationError, match=field):
        MotionBoxMask(**{field: value})


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (TubeMask(mask_ratio=0.001), "hides none"),
        (TubeMask(mask_ratio=1.0), "leaves none visible"),
        (FrameMask(mask_ratio=0.1), "hides none"),
        (RandomMask(mask_ratio=0.0), "hides none"),
    ],
)
def test_check_refuses_masks_that_teach_nothing(mask, what) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        mask.check(VIDEOMAE)
    assert "1568 tokens of a 8 x 14 x 14 grid" in str(caught.value)


@every_mask
def test_check_accepts_the_defaults(cls) -> None:
    cls().check(VIDEOMAE)


def test_union_is_told_apart_by_name_and_lists_the_names() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Mask)
    assert adapter.validate_python({"name": "motion_box"}) == MotionBoxMask(
        mask_ratio=0.9, inside_ratio=0.75
    )
    with pytest.raises(
        ValidationError, match="'tube', 'random', 'frame', 'block', 'cube', 'motion_box'"
    ):
        adapter.validate_python({"name": "tub"})


def test_what_each_mask_reads() -> None:
    needs = {name: set(cls().needs) for name, cls in zip(NAMES, MASKS, strict=True)}
    reading = {name: need for name, need in needs.items() if need}
    assert reading == {
        "MotionBoxMask": {"boxes"},
        "MGMMask-dense": {"vectors"},
        "MGMMask-sparse": {"vectors"},
    }
    assert MGMMask(guide="flow").needs == {"flow"}
    assert MGMMask(guide="vectors_or_flow").needs == {"vectors", "flow"}
