from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema import geometry
from kinema.geometry import Transform
from kinema.motion.clip import centred_box, clip_boxes, slot_boxes, slot_field
from kinema.motion.extractor import FrameBoxes

NOTHING = [np.nan] * 4
SIZE = (100, 200)
IDENTITY = Transform.identity(SIZE)


def video(boxes: list[list[float]], step: int = 1) -> FrameBoxes:
    return FrameBoxes(
        np.arange(len(boxes), dtype=np.int32) * step,
        np.array(boxes, dtype=np.float32),
        np.ones(len(boxes), np.float32),
    )


def sliding(count: int) -> FrameBoxes:
    """Pair i has the box [10 i, 10, 10 i + 10, 20]."""
    return video([[10 * i, 10, 10 * i + 10, 20] for i in range(count)])


def test_a_clip_spans_the_pairs_from_its_first_to_its_last_frame() -> None:
    motion = clip_boxes(sliding(15), np.array([2, 4, 6, 8]), IDENTITY, tubelet_size=2)
    assert motion.box.tolist() == [20, 10, 80, 20]  # pairs 2 to 7: the last ends at frame 8
    assert motion.boxes.tolist() == [[20, 10, 60, 20], [60, 10, 80, 20]]
    assert not motion.fallback


def test_reductions() -> None:
    indices = np.array([2, 3, 4, 5])
    boxes = sliding(15)
    rules = ("clip", "video", "median")
    by_name = {rule: clip_boxes(boxes, indices, IDENTITY, 2, rule).box for rule in rules}
    assert by_name["clip"].tolist() == [20, 10, 50, 20]
    assert by_name["video"].tolist() == [0, 10, 150, 20]
    assert by_name["median"].tolist() == [30, 10, 40, 20]


def test_padded_clip_repeats_the_last_pair() -> None:
    motion = clip_boxes(sliding(5), np.array([3, 5, 5, 5]), IDENTITY, tubelet_size=2)
    assert motion.box.tolist() == [30, 10, 50, 20]
    assert motion.boxes.tolist() == [[30, 10, 50, 20], [40, 10, 50, 20]]


def test_pairs_of_a_larger_step_count_when_they_overlap_the_clip() -> None:
    boxes = video([[10 * i, 10, 10 * i + 10, 20] for i in range(5)], step=3)
    motion = clip_boxes(boxes, np.array([4, 5, 6, 7]), IDENTITY, tubelet_size=2)
    assert motion.box.tolist() == [10, 10, 30, 20]  # frames 3 to 6 and 6 to 9


def test_slots_without_motion_hold_the_clips_box() -> None:
    boxes = video([[10, 10, 20, 20], NOTHING, NOTHING, [50, 10, 60, 20]])
    motion = clip_boxes(boxes, np.arange(4), IDENTITY, tubelet_size=1)
    assert motion.box.tolist() == [10, 10, 20, 20]
    assert (motion.boxes == motion.box).all()
    own = slot_boxes(boxes, np.arange(4), IDENTITY, tubelet_size=1)
    assert own[0].tolist() == [10, 10, 20, 20]
    assert np.isnan(own[1:]).all()


@pytest.mark.parametrize("reduce", ["clip", "video", "median"])
def test_no_motion_in_view_falls_back_to_a_centred_box(reduce) -> None:
    still = video([NOTHING] * 6)
    outside = video([[180, 80, 195, 95]] * 6)
    for boxes in (still, outside):
        transform = Transform.identity(SIZE).crop([0, 0, 64, 64]).resize((32, 32))
        motion = clip_boxes(boxes, np.arange(4), transform, 2, reduce)
        assert motion.fallback
        assert motion.box.tolist() == [8, 8, 24, 24]
        assert motion.boxes.tolist() == [[8, 8, 24, 24]] * 2


def test_motion_outside_the_crop_does_not_stretch_the_box() -> None:
    boxes = video([[10, 10, 20, 20], [150, 10, 160, 20]])
    motion = clip_boxes(boxes, np.arange(2), Transform.identity(SIZE).crop([0, 0, 100, 100]), 1)
    assert motion.box.tolist() == [10, 10, 20, 20]


def test_boxes_follow_crop_resize_and_flip() -> None:
    transform = Transform.identity(SIZE).crop([100, 0, 200, 100]).resize((50, 50)).hflip()
    motion = clip_boxes(video([[120, 20, 140, 60]]), np.array([0, 1]), transform, 2)
    assert motion.box == pytest.approx([30, 10, 40, 30])


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.tuples(*(st.integers(*r) for r in ((0, 150), (0, 60), (5, 50), (5, 40)))),
        ),
        min_size=4,
        max_size=12,
    ),
    st.integers(0, 8),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
)
def test_the_clips_box_holds_every_slots_box(shapes, start, stride, tubelet_size) -> None:
    corners = [s and [s[0], s[1], s[0] + s[2], s[1] + s[3]] for s in shapes]
    boxes = video([NOTHING if box is None else box for box in corners])
    indices = np.minimum(start + stride * np.arange(8), len(shapes))
    motion = clip_boxes(boxes, indices, Transform.identity(SIZE).hflip(), tubelet_size)
    assert not np.isnan(motion.box).any()
    assert geometry.union(np.vstack([motion.box, motion.boxes])).tolist() == motion.box.tolist()


def test_centred_box_has_half_the_side() -> None:
    assert centred_box((100, 200)).tolist() == [50, 25, 150, 75]


def test_indices_must_fill_slots() -> None:
    with pytest.raises(ValueError, match="3 frames do not fill slots of 2"):
        clip_boxes(sliding(5), np.arange(3), IDENTITY, 2)


def moving_cell(frames: int, row: int, column: int, motion: tuple[float, float]) -> np.ndarray:
    """Fields (F, 4, 6, 2) in which one cell of 10 px moves, each frame as the one before."""
    fields = np.zeros((frames, 4, 6, 2), np.float32)
    fields[:, row, column] = motion
    return fields


def test_a_slot_sums_the_motion_of_its_raw_frames() -> None:
    fields = moving_cell(20, 1, 2, (3, 4)) * np.arange(20, dtype=np.float32)[:, None, None, None]
    indices = np.array([2, 5, 8, 11])  # stride 3, two frames per slot
    field = slot_field(
        np.arange(20), fields, (10, 10), indices, Transform.identity((40, 60)), tubelet_size=2
    )
    assert field.points.shape == (24, 2)
    assert field.points[1 * 6 + 2].tolist() == [25, 15]
    assert field.magnitude[:, 8].tolist() == [5 * sum(range(3, 9)), 5 * sum(range(9, 12))]
    assert np.count_nonzero(field.magnitude) == 2
    assert not field.still


def test_a_clip_of_repeated_frames_takes_the_last_field() -> None:
    fields = moving_cell(6, 0, 0, (1, 0)) * np.arange(6, dtype=np.float32)[:, None, None, None]
    indices = np.array([4, 5, 5, 5])
    field = slot_field(np.arange(6), fields, (10, 10), indices, Transform.identity((40, 60)), 2)
    assert field.magnitude[:, 0].tolist() == [5, 5]


@given(
    row=st.integers(0, 3),
    column=st.integers(0, 5),
    flip=st.booleans(),
    size=st.sampled_from([(40, 60), (80, 30), (20, 120)]),
)
def test_fields_follow_crop_resize_and_flip(row, column, flip, size) -> None:
    """The same as a field drawn where the cell's pixels are to be seen."""
    fields = moving_cell(4, row, column, (2, -1))
    transform = Transform.identity((40, 60)).crop([10, 0, 60, 30]).resize(size)
    transform = transform.hflip() if flip else transform
    field = slot_field(np.arange(4), fields, (10, 10), np.array([0, 3]), transform, 2)
    moving = field.magnitude[0] > 0
    assert moving.any() == (column >= 1 and row < 3)
    assert len(field.points) == 15
    if moving.any():
        scale = np.array([size[1] / 50, size[0] / 30])
        centre = (np.array([column, row]) * 10 + 5 - [10, 0]) * scale
        if flip:
            centre[0] = size[1] - centre[0]
        np.testing.assert_allclose(field.points[moving], [centre])
        np.testing.assert_allclose(
            field.magnitude[0, moving], 3 * np.linalg.norm(np.array([2, -1]) * scale)
        )


def test_cells_past_the_frames_edge_are_not_seen() -> None:
    fields = np.ones((2, 2, 2, 2), np.float32)  # 16 px cells over 20 x 30 px
    field = slot_field(
        np.arange(2), fields, (16, 16), np.array([0, 1]), Transform.identity((20, 30)), 2
    )
    assert field.points.tolist() == [[8, 8], [24, 8]]
