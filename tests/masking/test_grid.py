"""Which positions of the token grid a box covers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema.masking.grid import Grid, inside_positions

VIDEOMAE = Grid(8, 14, 14)
SIZE = (224, 224)


def coordinates(limit: float) -> st.SearchStrategy[float]:
    return st.floats(-20, limit, allow_nan=False).map(lambda x: round(x, 2))


def test_counts_of_the_videomae_grid() -> None:
    assert (VIDEOMAE.positions, VIDEOMAE.tokens) == (196, 1568)


def test_mofos_text_gives_392_tokens() -> None:
    assert Grid(16 // 8, 14, 14).tokens == 392


def test_box_on_token_borders_covers_exactly_its_tokens() -> None:
    # x 96..160 is columns 6..9, y 32..80 rows 2..4: a half-open box touches no neighbour.
    inside = inside_positions(VIDEOMAE, (96, 32, 160, 80), SIZE).reshape(14, 14)
    expected = np.zeros((14, 14), dtype=bool)
    expected[2:5, 6:10] = True
    assert (inside == expected).all()
    assert inside.sum() == 12


def test_x_is_the_column_on_a_grid_that_is_not_square() -> None:
    inside = inside_positions(Grid(1, 2, 4), (30, 0, 40, 10), (20, 40)).reshape(2, 4)
    assert np.argwhere(inside).tolist() == [[0, 3]]


def test_one_pixel_over_the_border_counts_as_overlap_but_not_by_centre() -> None:
    box = (0, 0, 17, 16)
    assert inside_positions(VIDEOMAE, box, SIZE).sum() == 2
    assert inside_positions(VIDEOMAE, box, SIZE, "centre").sum() == 1


@pytest.mark.parametrize("box", [(8, 8, 8, 40), (40, 8, 8, 40), (np.nan,) * 4, (300, 0, 400, 50)])
@pytest.mark.parametrize("overlap", ["overlap", "centre"])
def test_no_position_is_inside_a_box_without_area_on_the_frame(box, overlap) -> None:
    assert not inside_positions(VIDEOMAE, box, SIZE, overlap).any()


def test_boxes_per_slot_give_one_row_per_slot() -> None:
    boxes = np.array([[0, 0, 16, 16], [208, 208, 224, 224]], dtype=np.float64)
    inside = inside_positions(Grid(2, 14, 14), boxes, SIZE)
    assert inside.shape == (2, 196)
    assert np.flatnonzero(inside[0]).tolist() == [0]
    assert np.flatnonzero(inside[1]).tolist() == [195]


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    patch=st.sampled_from([4, 16]),
    corners=st.tuples(*[coordinates(110)] * 4),
    centre=st.booleans(),
)
def test_agrees_with_a_loop_over_positions(height, width, patch, corners, centre) -> None:
    box = (min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2]))
    expected = []
    for row in range(height):
        for column in range(width):
            left, top = column * patch, row * patch
            if centre:
                x, y = left + patch / 2, top + patch / 2
                expected.append(box[0] <= x < box[2] and box[1] <= y < box[3])
            else:
                shared_x = min(left + patch, box[2]) - max(left, box[0])
                shared_y = min(top + patch, box[3]) - max(top, box[1])
                expected.append(shared_x > 0 and shared_y > 0)
    inside = inside_positions(
        Grid(1, height, width),
        box,
        (height * patch, width * patch),
        "centre" if centre else "overlap",
    )
    assert inside.tolist() == expected
