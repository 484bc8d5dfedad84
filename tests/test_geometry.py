"""One transform moves frames, boxes, fields and points alike."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema import geometry
from kinema.geometry import Transform

NO_BOX = [np.nan] * 4


@st.composite
def cuts(draw, upright=True):
    """A transform as augmentation makes them: crop, resize, maybe flip, maybe turned."""
    height, width = draw(st.integers(40, 90)), draw(st.integers(40, 90))
    x0, y0 = draw(st.integers(0, width // 3)), draw(st.integers(0, height // 3))
    x1, y1 = draw(st.integers(x0 + 16, width)), draw(st.integers(y0 + 16, height))
    made = Transform.identity((height, width)).crop((x0, y0, x1, y1))
    made = made.resize((draw(st.integers(24, 96)), draw(st.integers(24, 96))))
    if draw(st.booleans()):
        made = made.hflip()
    if not upright:
        made = made.rotate(draw(st.floats(-30, 30))).shear(draw(st.floats(-0.3, 0.3)))
        made = made.translate(draw(st.floats(-8, 8)), draw(st.floats(-8, 8)))
    return made


@st.composite
def boxes_in(draw, size):
    height, width = size
    x0, y0 = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    return (x0, y0, draw(st.integers(x0 + 6, width)), draw(st.integers(y0 + 6, height)))


def drawing(box, size):
    """A white box on black, (1, H, W, 3)."""
    frame = np.zeros((1, *size, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    frame[:, y0:y1, x0:x1] = 255
    return frame


def extent(weights):
    """Smallest box around the pixels of (H, W) bool."""
    rows, columns = np.flatnonzero(weights.any(axis=1)), np.flatnonzero(weights.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)


@given(st.data())
def test_drawing_of_a_box_moves_as_the_box(data):
    transform = data.draw(cuts())
    box = data.draw(boxes_in(transform.source_size))
    moved = transform.boxes(box)
    drawn = transform.frames(drawing(box, transform.source_size))[0, ..., 0] > 127
    if np.isnan(moved).any():
        assert not drawn.any()
    elif (moved[2:] - moved[:2]).min() >= 2:
        np.testing.assert_allclose(extent(drawn), moved, atol=1.0)


@given(st.data())
def test_turned_drawing_lies_in_the_turned_box(data):
    transform = data.draw(cuts(upright=False))
    box = data.draw(boxes_in(transform.source_size))
    moved = transform.boxes(box)
    black = transform.frames(np.zeros((1, *transform.source_size, 3), np.uint8))[0, ..., 0]
    white = transform.frames(drawing(box, transform.source_size))[0, ..., 0]
    drawn = white.astype(int) - black > 127
    if drawn.any():
        found = extent(drawn)
        assert (found[:2] >= moved[:2] - 1).all()
        assert (found[2:] <= moved[2:] + 1).all()


@given(st.data())
def test_a_dot_lands_where_its_point_does(data):
    transform = data.draw(cuts(upright=False))
    height, width = transform.source_size
    centre = np.array([data.draw(st.floats(8, width - 8)), data.draw(st.floats(8, height - 8))])
    y, x = np.mgrid[:height, :width] + 0.5
    # Smooth and wide, so that its weighted centre survives any resampling.
    dot = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 2.5**2))
    frames = np.repeat(np.rint(255 * dot).astype(np.uint8)[None, ..., None], 3, axis=3)
    fill = transform.frames(np.zeros_like(frames))[0, ..., 0].astype(float)
    seen = np.maximum(transform.frames(frames)[0, ..., 0] - fill, 0.0)
    target = transform.points(centre)
    margin = 10 * np.abs(transform.matrix[:2, :2]).sum(axis=1)
    size = np.array(transform.size[::-1])
    if (target < margin).any() or (target > size - margin).any():
        return
    y, x = np.mgrid[: transform.size[0], : transform.size[1]] + 0.5
    found = np.array([(seen * x).sum(), (seen * y).sum()]) / seen.sum()
    np.testing.assert_allclose(found, target, atol=0.35)


@given(st.data())
def test_field_of_a_linear_motion_is_the_same_motion_seen_through_the_transform(data):
    transform = data.draw(cuts(upright=False))
    height, width = transform.source_size
    motion = np.array([[0.03, -0.02], [0.05, 0.01]])
    offset = np.array([2.0, -1.0])
    y, x = np.mgrid[:height, :width] + 0.5
    field = (np.stack([x, y], axis=-1) @ motion.T + offset)[None].astype(np.float32)
    moved = transform.field(field)[0]
    y, x = np.mgrid[: transform.size[0], : transform.size[1]] + 0.5
    back = np.linalg.inv(transform.matrix)
    source = np.stack([x, y], axis=-1) @ back[:2, :2].T + back[:2, 2]
    expected = transform.displacements(source @ motion.T + offset)
    # Sampling is exact where neither the source nor the crop (one source pixel) ends nearby.
    reach = np.maximum(np.abs(back[:2, :2]).sum(axis=1), 1.0) + 1.0
    known = ((source > reach) & (source < np.array([width, height]) - reach)).all(axis=-1)
    margin = np.abs(transform.matrix[:2, :2]).sum(axis=1)
    seen = np.stack([x, y], axis=-1)
    known &= ((seen > margin) & (seen < np.array(transform.size[::-1]) - margin)).all(axis=-1)
    # OpenCV samples on a grid of 1/32 px; an error there grows with the transform's zoom.
    zoom = np.linalg.norm(transform.matrix[:2, :2], 2)
    np.testing.assert_allclose(moved[known], expected[known], atol=0.02 * max(1.0, zoom))


@given(st.data())
def test_displaced_point_is_the_point_displaced(data):
    transform = data.draw(cuts(upright=False))
    floats = st.floats(-50, 50)
    point = np.array([data.draw(floats), data.draw(floats)])
    step = np.array([data.draw(floats), data.draw(floats)])
    np.testing.assert_allclose(
        transform.points(point + step) - transform.points(point),
        transform.displacements(step),
        atol=1e-9,
    )


@given(st.data())
def test_steps_compose(data):
    first = data.draw(cuts(upright=False))
    second = Transform.identity(first.size).hflip().resize((30, 50)).rotate(10)
    both = first.then(second)
    chained = first.hflip().resize((30, 50)).rotate(10)
    np.testing.assert_allclose(both.matrix, chained.matrix, atol=1e-9)
    assert both.size == (30, 50)
    assert both.source_size == first.source_size
    points = np.array([[3.0, 4.0], [10.0, 20.0]])
    np.testing.assert_allclose(both.points(points), second.points(first.points(points)))


@given(cuts(upright=False))
def test_flipping_twice_changes_nothing(transform):
    np.testing.assert_allclose(transform.hflip().hflip().matrix, transform.matrix, atol=1e-9)


def test_flip_mirrors_pixels_boxes_and_x_displacements():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 6, 10, 3), dtype=np.uint8)
    flip = Transform.identity((6, 10)).hflip()
    np.testing.assert_array_equal(flip.frames(frames), frames[:, :, ::-1])
    np.testing.assert_allclose(flip.boxes([1, 2, 4, 5]), [6, 2, 9, 5])
    np.testing.assert_allclose(flip.displacements([3.0, -2.0]), [-3.0, -2.0])
    field = rng.normal(size=(1, 6, 10, 2)).astype(np.float32)
    np.testing.assert_allclose(flip.field(field), field[:, :, ::-1] * [-1, 1])


def test_crop_without_scaling_is_a_slice():
    frames = np.random.default_rng(1).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    cropped = Transform.identity((20, 30)).crop((3, 5, 23, 17)).frames(frames)
    np.testing.assert_array_equal(cropped, frames[:, 5:17, 3:23])


def test_crop_and_resize_sample_as_opencv_does():
    frame = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    cut = Transform.identity((60, 80)).crop((10, 20, 50, 60))
    smaller = cv2.resize(frame[20:60, 10:50], (20, 20), interpolation=cv2.INTER_AREA)
    larger = cv2.resize(frame[20:60, 10:50], (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(cut.resize((20, 20)).frames(frame[None])[0], smaller)
    np.testing.assert_array_equal(cut.resize((64, 64)).frames(frame[None])[0], larger)


def test_shrinking_averages_also_when_turned():
    stripes = np.zeros((1, 128, 128, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 255
    upright = Transform.identity((128, 128)).resize((16, 16))
    assert np.ptp(upright.frames(stripes).astype(int)) <= 1
    turned = upright.rotate(5).frames(stripes)[0, 4:-4, 4:-4].astype(int)
    assert np.abs(turned - 127).max() <= 2


def test_rotation_is_counter_clockwise_as_seen():
    turned = Transform.identity((10, 10)).rotate(90)
    np.testing.assert_allclose(turned.points([10.0, 5.0]), [5.0, 0.0], atol=1e-12)
    frame = np.zeros((1, 10, 10, 3), dtype=np.uint8)
    frame[:, 5, 8] = 255
    assert turned.frames(frame)[0, 1, 5, 0] == 255


def test_field_on_a_grid_of_cells_counts_cells_from_the_corner():
    # 20 px wide, cells of 8 px: the third column reaches 4 px past the frame.
    field = np.zeros((1, 2, 3, 2), dtype=np.float32)
    field[0, :, 2] = [4.0, 2.0]
    identity = Transform.identity((16, 20))
    seen = identity.field(field, cell=8.0)[0]
    assert seen.shape == (16, 20, 2)
    np.testing.assert_allclose(seen[8, 19], [3.75, 1.875], atol=0.01)
    stretched = identity.field(field)[0]
    np.testing.assert_allclose(stretched[8, 19], [4.0, 2.0], atol=0.01)


def test_boxes_outside_the_output_are_none():
    cut = Transform.identity((100, 100)).crop((50, 50, 100, 100))
    moved = cut.boxes([[0, 0, 50, 50], [40, 40, 60, 70], NO_BOX, [70, 80, 60, 90]])
    np.testing.assert_allclose(moved, [NO_BOX, [0, 0, 10, 20], NO_BOX, NO_BOX])
    assert np.isnan(cut.hflip().boxes([90, 60, 60, 90])).all()
    assert cut.boxes(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("box", [(0, 0, 101, 50), (5, 5, 5, 9), (0.5, 0, 9, 9), (-1, 0, 9, 9)])
def test_impossible_crops_are_refused(box):
    with pytest.raises(ValueError, match="crop"):
        Transform.identity((100, 100)).crop(box)


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match="frames"):
        Transform.identity((10, 10)).frames(np.zeros((1, 10, 11, 3), dtype=np.uint8))


def test_box_arithmetic():
    a, b = np.array([0.0, 0, 10, 10]), np.array([5.0, 5, 15, 15])
    assert geometry.area(a) == 100
    assert geometry.iou(a, b) == pytest.approx(25 / 175)
    np.testing.assert_allclose(geometry.intersect(a, b), [5, 5, 10, 10])
    np.testing.assert_allclose(geometry.union(np.stack([a, NO_BOX, b])), [0, 0, 15, 15])
    assert np.isnan(geometry.union(np.array([NO_BOX]))).all()
    assert np.isnan(geometry.union(np.zeros((0, 4)))).all()
    assert geometry.iou(a, NO_BOX) == 0
    assert geometry.iou(NO_BOX, NO_BOX) == 0
    assert geometry.area(NO_BOX) == 0
    assert np.isnan(geometry.intersect(a, [10, 0, 20, 10])).all()
    np.testing.assert_allclose(geometry.clip_boxes([-5, 2, 30, 8], 6, 20), [0, 2, 20, 6])
    assert geometry.iou(np.stack([a, b]), np.stack([a, a])).shape == (2,)


@settings(max_examples=50)
@given(st.data())
def test_iou_is_symmetric_and_bounded(data):
    a, b = data.draw(boxes_in((50, 50))), data.draw(boxes_in((50, 50)))
    assert geometry.iou(a, b) == geometry.iou(b, a)
    assert 0 <= geometry.iou(a, b) <= 1
    assert geometry.iou(a, a) == 1
