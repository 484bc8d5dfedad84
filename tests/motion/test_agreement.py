from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from motion_boxes import known_answers

from kinema.motion.agreement import (
    FOUND_COLOUR,
    TRUE_COLOUR,
    Agreement,
    VideoBoxes,
    borrowed_boxes,
    centred_boxes,
    compare,
    contact_sheet,
    format_table,
    mean_iou,
)
from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import DIS

NOTHING = [np.nan] * 4


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def test_missing_boxes_count_zero_and_missing_annotations_do_not_count() -> None:
    annotated = boxes([0, 0, 10, 10], [0, 0, 10, 10], NOTHING)
    found = boxes([0, 0, 10, 5], NOTHING, [0, 0, 10, 10])
    assert mean_iou(found, annotated) == pytest.approx(0.25)
    assert math.isnan(mean_iou(found[2:], annotated[2:]))


def test_centred_boxes_keep_area_and_lie_in_the_middle() -> None:
    found = boxes([0, 0, 20, 5], NOTHING)
    centred = centred_boxes(found, (40, 80))
    sides = centred[0, 2:] - centred[0, :2]
    assert sides.prod() == pytest.approx(100)
    assert sides[0] / sides[1] == pytest.approx(2)
    assert centred[0, :2] + centred[0, 2:] == pytest.approx([80, 40])
    assert mean_iou(centred[1:], boxes([0, 0, 80, 40])) == 0


def test_borrowed_boxes_are_stretched_in_time_and_space() -> None:
    lender = VideoBoxes("a", (10, 20), boxes([0, 0, 2, 2], [4, 4, 6, 6]), np.zeros((2, 4)))
    borrower = VideoBoxes("b", (100, 100), np.zeros((4, 4)), np.zeros((4, 4)))
    borrowed = borrowed_boxes(lender, borrower)
    assert borrowed[0].tolist() == borrowed[1].tolist() == [0, 0, 10, 20]
    assert borrowed[3].tolist() == [20, 40, 30, 60]


def test_comparison_by_hand() -> None:
    left, right = [0, 0, 50, 100], [50, 0, 100, 100]
    one = VideoBoxes("one", (100, 100), boxes(left, left), boxes(left, left))
    two = VideoBoxes("two", (100, 100), boxes(right, NOTHING), boxes(right, right))
    rows = {row.video: row for row in compare([one, two])}
    side = math.sqrt(0.5) * 100
    overlap = (50 - (100 - side) / 2) * side
    equal_area = overlap / (2 * 5000 - overlap)
    equal = pytest.approx(equal_area)
    assert rows["one"] == Agreement("one", 2, 1.0, 0.5, equal, 0.0, 0.0, 1.0, 0.5)
    half = pytest.approx(equal_area / 2)
    assert rows["two"] == Agreement("two", 2, 0.5, 0.5, half, 0.0, 0.5, 1.0, 0.5)
    assert rows["mean"].motion == 0.75
    assert rows["mean"].num_frames == 4


def test_one_video_has_nobody_to_borrow_from() -> None:
    video = VideoBoxes("one", (10, 10), boxes([0, 0, 5, 5]), boxes([0, 0, 5, 5]))
    assert math.isnan(compare([video])[0].shuffled)


def test_some_lenders_are_others_and_always_the_same() -> None:
    """Video k's box overlaps the annotation of j by a share that tells who lent it."""
    videos = [
        VideoBoxes(str(k), (64, 64), boxes([0, 0, 64, 2**k]), boxes([0, 0, 64, 64]))
        for k in range(6)
    ]
    shares = {2.0**k / 64 for k in range(6)}
    seen = set()
    for k, row in enumerate(compare(videos, num_lenders=1)[:-1]):
        assert row.shuffled in shares - {2.0**k / 64}
        seen.add(row.shuffled)
    assert len(seen) > 1
    assert compare(videos, num_lenders=2) == compare(videos, num_lenders=2)
    assert compare(videos, num_lenders=5) == compare(videos) == compare(videos, num_lenders=99)


def test_table_has_a_line_per_row() -> None:
    text = format_table([Agreement("one", 2, 1.0, 0.5, 0.25, math.nan, 0.0, 0.75, 0.5)])
    header, line = text.splitlines()
    assert header.split()[:3] == ["video", "num_frames", "motion"]
    assert line.split() == ["one", "2", "1.000", "0.500", "0.250", "nan", "0.000", "0.750", "0.500"]


def test_contact_sheet_shows_both_boxes_on_evenly_spread_frames() -> None:
    frames = np.full((9, 40, 60, 3), 10, np.uint8)
    frames[-1] = 200
    found, annotated = np.tile(NOTHING, (9, 1)), np.tile(NOTHING, (9, 1))
    found[0], annotated[0] = [10, 5, 30, 25], [35, 10, 60, 40]
    png = contact_sheet(frames, found, annotated, num_columns=2, num_shown=3)
    sheet = cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert sheet.shape == (80, 120, 3)
    assert tuple(sheet[5, 20]) == tuple(sheet[24, 20]) == FOUND_COLOUR
    assert tuple(sheet[20, 59]) == TRUE_COLOUR
    assert (sheet[:40, 60:] == 10).all()
    assert (sheet[40:, :60] == 200).all()
    assert (sheet[40:, 60:] == 0).all()


def check(rows: list[Agreement], at_least: float) -> None:
    mean = rows[-1]
    assert mean.motion >= at_least, format_table(rows)
    assert mean.motion > max(mean.equal_area, mean.shuffled), format_table(rows)


def test_known_answers_are_found_by_dis() -> None:
    rows = compare([video.found(MotionConfig(flow=DIS())) for video in known_answers()])
    check(rows, 0.45)
    assert rows[-1].motion > rows[-1].whole_frame + 0.3


@pytest.mark.slow
def test_known_answers_are_found_by_the_defaults() -> None:
    check(compare([video.found(MotionConfig()) for video in known_answers()]), 0.5)


@pytest.mark.real
def test_boxes_by_dis_on_annotated_videos(something_else, davis) -> None:
    cfg = MotionConfig(flow=DIS())
    # objects fill most of these seven frames, so a centred box does as well as fast flow
    rows = compare([video.found(cfg, 1) for video in something_else])
    assert rows[-1].motion >= 0.36, format_table(rows)
    assert rows[-1].motion > rows[-1].shuffled, format_table(rows)
    check(compare([video.found(cfg, 1) for video in davis]), 0.46)


@pytest.mark.real
@pytest.mark.slow
def test_default_boxes_on_annotated_videos(something_else, davis) -> None:
    check(compare([video.found(MotionConfig(), 4) for video in something_else]), 0.36)
    check(compare([video.found(MotionConfig(), 4) for video in davis]), 0.42)
