from __future__ import annotations

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from kinema.config import vary
from kinema.errors import KinemaError
from kinema.motion import extractor
from kinema.motion.extractor import (
    FrameBoxes,
    MotionConfig,
    extract_boxes,
    extract_boxes_from_vectors,
)
from kinema.motion.flow import DIS, TVL1, CodecVectors

DIS_CONFIG = MotionConfig(flow=DIS())


def noise(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(drawn, (0, 0), 2)
    return np.clip(128 + 350 * blurred, 0, 255).astype(np.uint8)


def moving_square(num_frames: int, scale: int = 1, speed: int = 2) -> tuple[list, np.ndarray]:
    """A textured square of 40 px that moves right over a texture panning left, and its boxes."""
    background, square = noise(120 * scale, 220 * scale, 1), noise(40 * scale, 40 * scale, 2)
    frames, boxes = [], []
    for index in range(num_frames):
        shift, x, y = index * scale, (40 + speed * index) * scale, 45 * scale
        frame = background[:, shift : shift + 160 * scale].copy()
        frame[y : y + 40 * scale, x : x + 40 * scale] = square
        frames.append(frame)
        boxes.append([x, y, x + 40 * scale, y + 40 * scale])
    return frames, np.array(boxes, dtype=np.float64)


@pytest.mark.parametrize("flow", [TVL1(), DIS()], ids=["tvl1", "dis"])
def test_boxes_follow_the_object_under_a_panning_camera(flow) -> None:
    frames, truth = moving_square(4)
    found = extract_boxes(iter(frames), MotionConfig(flow=flow))
    assert found.frames.tolist() == [0, 1, 2]
    assert found.frames.dtype == np.int32
    assert found.boxes.dtype == found.peaks.dtype == np.float32
    assert np.abs(found.boxes - truth[:3]).max() < 12
    assert np.median(found.peaks) == pytest.approx(3, abs=1)  # 2 px right over 1 px left


def test_boxes_are_in_source_pixels_whatever_the_flow_size() -> None:
    frames, truth = moving_square(3, scale=2)
    found = extract_boxes(frames, MotionConfig(flow=DIS(), flow_short_side=120))
    assert np.abs(found.boxes - truth[:2]).max() < 24


def test_small_frames_are_not_enlarged() -> None:
    frames, _ = moving_square(3)
    larger, same = (
        extract_boxes(frames, MotionConfig(flow=DIS(), flow_short_side=s)) for s in (500, 120)
    )
    assert larger.boxes.tolist() == same.boxes.tolist()


def test_step_pairs_frames_apart_and_counts_motion_per_frame() -> None:
    frames, truth = moving_square(7, speed=1)
    found = extract_boxes(frames, MotionConfig(flow=DIS(), step=2))
    assert found.frames.tolist() == [0, 2, 4]
    assert np.abs(found.boxes - truth[[0, 2, 4]]).max() < 12
    assert found.peaks == pytest.approx(2, abs=1)


def test_frames_without_motion_have_no_box() -> None:
    frames, _ = moving_square(3)
    found = extract_boxes([frames[0], frames[0], frames[1]], DIS_CONFIG)
    assert np.isnan(found.boxes[0]).all()
    assert not np.isnan(found.boxes[1]).any()


@pytest.mark.parametrize(("step", "count"), [(1, 1), (1, 0), (3, 3)])
def test_too_few_frames_are_an_error(step, count) -> None:
    frames, _ = moving_square(count)
    with pytest.raises(KinemaError, match=f"needs {step + 1} frames, got {count}"):
        extract_boxes(frames, MotionConfig(flow=DIS(), step=step))


def test_frames_of_different_sizes_are_an_error() -> None:
    frames, _ = moving_square(2)
    with pytest.raises(KinemaError, match=r"frame 2 is \(100, 160\)"):
        extract_boxes([*frames, frames[0][:100]], DIS_CONFIG)


def test_opencv_threads_are_left_as_they_were() -> None:
    before = cv2.getNumThreads()
    extract_boxes(moving_square(2)[0], DIS_CONFIG)
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize("window", [2, 3, 8])
def test_window_averages_neighbours_and_shrinks_at_the_ends(window) -> None:
    values = [float(value) for value in range(6)]
    averaged = extractor._averaged((np.full((1, 1, 2), v) for v in values), window)
    before, ahead = window // 2, window - 1 - window // 2
    expected = [np.mean(values[max(i - before, 0) : i + ahead + 1]) for i in range(6)]
    assert [float(flow[0, 0, 0]) for flow in averaged] == expected


def test_codec_vectors_give_boxes_in_source_pixels() -> None:
    field = np.zeros((30, 54, 2), np.float32)  # 240 x 427 at 8 px
    field[10:20, 20:40] = (4, 0)
    cfg = MotionConfig(flow=CodecVectors(), border=0)
    found = extract_boxes_from_vectors([field, 0 * field], 240, 427, cfg)
    assert found.frames.tolist() == [0, 1]
    assert np.abs(found.boxes[0] - [160, 80, 320, 160]).max() <= 16
    assert np.isnan(found.boxes[1]).all()
    assert found.peaks[0] > 2


def test_codec_vectors_stay_inside_the_frame() -> None:
    field = np.zeros((30, 54, 2), np.float32)
    field[20:, 40:] = (4, 0)
    cfg = MotionConfig(flow=CodecVectors(), border=0)
    box = extract_boxes_from_vectors([field], 236, 427, cfg).boxes[0]
    assert box[2:].tolist() == [427, 236]


def test_frames_and_vectors_are_not_confused() -> None:
    with pytest.raises(KinemaError, match="vectors"):
        extract_boxes(moving_square(2)[0], MotionConfig(flow=CodecVectors()))
    with pytest.raises(KinemaError, match=r"flow\.name is dis"):
        extract_boxes_from_vectors([], 10, 10, DIS_CONFIG)
    with pytest.raises(ValidationError, match="step must be 1"):
        MotionConfig(flow=CodecVectors(), step=2)


def test_a_preset_can_be_chosen_over_another_one() -> None:
    paper, released = MotionConfig(), MotionConfig(preset="released")
    assert vary(paper, {"preset": "released"}) == released
    assert vary(released, {"preset": "paper"}) == paper
    assert vary(released, {"step": 2}) == MotionConfig(preset="released", step=2)
    given = MotionConfig(preset="released", window=3, fields={})
    assert vary(given, {"step": 2}) == given.model_copy(update={"step": 2})
    assert vary(given, {"preset": "paper"}) == MotionConfig(window=3, fields={})
    assert vary(released, {"flow.data_weight": 0.3}).flow == TVL1(data_weight=0.3)
    assert MotionConfig.model_validate(released.model_dump(mode="json")) == released


def test_released_preset_uses_opencvs_own_flow() -> None:
    assert MotionConfig(preset="released").flow == TVL1(data_weight=0.15)
    assert MotionConfig(preset="released").window == 8
    frames, truth = moving_square(4)
    found = extract_boxes(frames, MotionConfig(preset="released", flow=DIS()))
    low, high = truth[:3, :2].min(axis=0), truth[:3, 2:].max(axis=0)
    assert (found.boxes[:, :2] <= low).all()
    assert (found.boxes[:, 2:] >= high).all()


def test_frame_boxes_must_agree_in_length() -> None:
    with pytest.raises(ValueError, match="2 frames"):
        FrameBoxes(np.zeros(2, np.int32), np.zeros((3, 4), np.float32), np.zeros(2, np.float32))
