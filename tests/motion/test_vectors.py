from __future__ import annotations

import numpy as np
import pytest

from kinema.motion.vectors import VECTOR_FIELDS, rasterise_vectors

DTYPE = np.dtype([(name, np.int32) for name in VECTOR_FIELDS])


def block(x, y, w, h, motion, source=-1, scale=4) -> tuple[int, ...]:
    return source, w, h, x + w // 2, y + h // 2, motion[0] * scale, motion[1] * scale, scale


def test_blocks_cover_their_cells_and_point_forward_in_time() -> None:
    rows = [block(0, 0, 16, 16, (-3, 2)), block(16, 8, 8, 8, (5, 0), source=1)]
    field = rasterise_vectors(np.array(rows, DTYPE), 32, 44, grid=8)
    assert field.shape == (4, 6, 2)
    assert field[:2, :2].reshape(-1, 2).tolist() == [[3, -2]] * 4
    assert field[1, 2].tolist() == [5, 0]
    assert np.abs(field).sum() == 4 * 5 + 5


def test_cells_under_two_blocks_hold_their_mean() -> None:
    rows = [block(8, 8, 8, 8, (2, 0)), block(8, 8, 8, 8, (4, -2))]
    assert rasterise_vectors(np.array(rows, DTYPE), 32, 32)[1, 1].tolist() == [-3, 1]


def test_blocks_smaller_than_a_cell_and_outside_the_frame() -> None:
    rows = [block(0, 0, 4, 8, (-1, 0)), block(4, 0, 4, 8, (-3, 0)), block(30, -16, 16, 16, (9, 9))]
    field = rasterise_vectors(np.array(rows, DTYPE), 16, 32, grid=8)
    assert field[0, 0].tolist() == [2, 0]
    assert np.abs(field).sum() == 2


@pytest.mark.parametrize("size", [(16, 16), (17, 30)])
def test_no_vectors_no_motion(size) -> None:
    field = rasterise_vectors(np.zeros(0, DTYPE), *size)
    assert field.shape == (-(-size[0] // 8), -(-size[1] // 8), 2)
    assert not field.any()
