"""Published annotations of boxes: what is read, where it lands, and what is refused."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema import storage
from kinema.errors import KinemaError
from kinema.motion.annotated import BOX_COLUMNS, read_boxes
from kinema.motion.box_formats import (
    EpicObjects,
    SomethingElse,
    box_table,
    cut,
    place,
    reaches_out,
    read_annotation,
)

EVERYTHING = range(10_000)


def image(number: int, *labels: tuple[str, list[float]], video: str = "7") -> dict[str, Any]:
    """One annotated image as Something-Else writes it."""
    return {
        "name": f"{video}/{number:04d}.jpg",
        "labels": [
            {
                "standard_category": kind,
                "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            }
            for kind, box in labels
        ],
    }


HAND, OBJECT = ("hand", [1.5, 2, 30, 40]), ("0000", [10.0, 20, 50, 60])


def written(path: Path, annotation: Any) -> str:
    path.write_text(json.dumps(annotation))
    return str(path)


def test_something_else_by_hand(tmp_path: Path) -> None:
    annotation = {"7": [image(1, HAND, OBJECT), image(2), image(3, HAND)], "8": [image(1)]}
    file = written(tmp_path / "a.json", annotation)
    found = read_annotation(file, SomethingElse())
    assert found["7"].tolist() == [[0, *HAND[1]], [0, *OBJECT[1]], [2, *HAND[1]]]
    assert found["8"].shape == (0, 5)
    hands = read_annotation(file, SomethingElse(labels="hands"))["7"]
    objects = read_annotation(file, SomethingElse(labels="objects"))["7"]
    assert hands[:, 0].tolist() == [0, 2]
    assert objects.tolist() == [[0, *OBJECT[1]]]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ([1], "not a mapping of videos"),
        ({"7": {"name": "x"}}, "not a mapping of videos"),
        ({"7": [{"name": "7/0001.jpg"}]}, r"image '7/0001.jpg' of video '7'.*'labels'"),
        ({"7": [image(0)]}, "does not end in a number from 1 up"),
        ({"7": [{"name": "7/first.jpg", "labels": []}]}, "does not end in a number"),
        ({"7": [{"name": "7/0002.jpg", "labels": [{"standard_category": "hand"}]}]}, "'box2d'"),
        ({"7": [None]}, "image 'None' of video '7'"),
    ],
)
def test_what_is_no_something_else_is_named(annotation: Any, message: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", annotation)
    with pytest.raises(KinemaError, match=message) as caught:
        read_annotation(file, SomethingElse())
    assert "a.json" in str(caught.value)


EPIC_HEADER = ["noun_class", "noun", "participant_id", "video_id", "frame", "bounding_boxes"]


def epic(path: Path, *lines: tuple[str, str, str], header: list[str] = EPIC_HEADER) -> str:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(["20", "bag", "P01", *line] for line in lines)
    return str(path)


def test_epic_boxes_by_hand(tmp_path: Path) -> None:
    file = epic(
        tmp_path / "EPIC_train_object_labels.csv",
        ("P01_01", "056581", "[(76, 1260, 462, 186)]"),
        ("P01_01", "056611", "[(0, 10, 5, 6), (872, 958, 210, 140)]"),
        ("P01_02", "1", "[]"),
    )
    found = read_annotation(file, EpicObjects())
    assert found["P01_01"].tolist() == [
        [56580, 1260, 76, 1446, 538],
        [56610, 10, 0, 16, 5],
        [56610, 958, 872, 1098, 1082],
    ]
    assert found["P01_02"].shape == (0, 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("P01_01", "1", "[(1, 2, 3)]"), r"\.csv:2: bounding_boxes '\[\(1, 2, 3\)\]'"),
        (("P01_01", "1", "__import__('os')"), "bounding_boxes"),
        (("P01_01", "0", "[]"), "frame '0' is not a number from 1 up"),
        (("P01_01", "late", "[]"), "frame 'late'"),
    ],
)
def test_broken_epic_lines_are_named(
    line: tuple[str, str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(KinemaError, match=message):
        read_annotation(epic(tmp_path / "objects.csv", line), EpicObjects())


def test_other_tables_are_no_epic_boxes(tmp_path: Path) -> None:
    file = epic(tmp_path / "x.csv", header=["video", "frame", "bounding_boxes"])
    with pytest.raises(KinemaError, match="has no column 'video_id'"):
        read_annotation(file, EpicObjects())
    (tmp_path / "y.csv").write_bytes(b"video_id,frame,bounding_boxes\n\xff,1,[]\n")
    with pytest.raises(KinemaError, match="not UTF-8"):
        read_annotation(str(tmp_path / "y.csv"), EpicObjects())


class Trap:
    """Would leave a file behind if it were ever unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.file,)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    detections = tmp_path / "P01_01.pkl"
    detections.write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    with pytest.raises(KinemaError, match=r"P01_01.pkl is a pickle.*id, frame, left"):
        read_annotation(str(detections), EpicObjects())
    assert not (tmp_path / "opened").exists()


def rows_of(*images: float) -> np.ndarray:
    rows = [[number, 10, 20, 30, 40] for number in images]
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def test_every_image_is_a_frame_of_the_same_size_by_default() -> None:
    rows = rows_of(0, 1, 1, 5)
    assert place(rows, range(6), 1.0, (240, 320), (240, 320)).tolist() == rows.tolist()
    assert place(rows, range(1, 5), 1.0, (240, 320), (240, 320))[:, 0].tolist() == [1, 1]


def test_images_land_on_the_frame_nearest_in_time() -> None:
    at_30_of_12 = place(rows_of(0, 1, 2, 3), EVERYTHING, 2.5, (2, 2), (2, 2))
    assert at_30_of_12[:, 0].tolist() == [0, 3, 5, 8]


def test_epic_counts_frames_at_the_videos_own_rate() -> None:
    """Pairs of frames resampled to 60 per second and of objects that EPIC-KITCHENS publishes."""
    resampled, objects = np.array([33635, 56638, 16007]), [33601, 56581, 15991]
    rate = 60_000 / 1001 / 60
    placed = place(rows_of(*(resampled - 1)), range(10**6), rate, (2, 2), (2, 2))
    assert sorted(placed[:, 0] + 1) == sorted(objects)


@given(st.lists(st.integers(0, 500), max_size=60), st.floats(0.1, 0.99))
def test_of_several_images_of_a_frame_the_nearest_counts(images: list[int], rate: float) -> None:
    placed = place(rows_of(*images), EVERYTHING, rate, (2, 2), (2, 2))
    expected: dict[int, float] = {}
    for number in images:
        frame = int(np.floor(number * rate + 0.5))
        expected[frame] = min(expected.get(frame, 1.0), abs(number * rate - frame))
    assert sorted(set(placed[:, 0].tolist())) == sorted(expected)
    counts = {
        frame: sum(
            abs(number * rate - frame) <= distance
            for number in images
            if int(np.floor(number * rate + 0.5)) == frame
        )
        for frame, distance in expected.items()
    }
    assert len(placed) == sum(counts.values())


def test_boxes_are_scaled_and_cut_to_the_frame() -> None:
    rows = np.array([[0, 1260, 76, 1446, 538], [1, 958, 872, 1098, 1082], [2, 1930, 0, 1950, 9]])
    placed = place(rows.astype(np.float64), EVERYTHING, 1.0, (1080, 1920), (256, 480))
    np.testing.assert_allclose(placed[0, 1:], np.array([315, 18.0148, 361.5, 127.526]), atol=1e-3)
    assert reaches_out(placed, (256, 480)).tolist() == [False, False, False]  # by 2 px of 1080
    assert reaches_out(rows.astype(np.float64), (256, 480)).tolist() == [True, True, True]
    whole = cut(placed, (256, 480))
    assert whole[:, 0].tolist() == [0, 1]
    assert whole[1, 4] == 256


def test_table_holds_what_the_reader_of_tables_reads(tmp_path: Path) -> None:
    uri = str(tmp_path / "boxes.parquet")
    videos = {"b": rows_of(3, 1), "none": rows_of(), "a": rows_of(2)}
    storage.write_table(uri, box_table(videos))
    assert tuple(storage.read_table(uri).column_names) == BOX_COLUMNS
    found = read_boxes(uri)
    assert found["a"].tolist() == videos["a"].tolist()
    assert found["b"][:, 0].tolist() == [1, 3]


@pytest.mark.real
def test_published_something_else_as_the_benchmark_reads_it(
    real_data: Path, something_else: list
) -> None:
    found = read_annotation(str(real_data / "ssv2_boxes/annotations.json"), SomethingElse())
    assert found.keys() == {video.name for video in something_else}
    for video in something_else:
        rows = found[video.name]
        for frame, box in enumerate(video.boxes):
            here = rows[rows[:, 0] == frame]
            if np.isnan(box).any():
                assert len(here) == 0
            else:
                around = [*here[:, 1:3].min(axis=0), *here[:, 3:].max(axis=0)]
                np.testing.assert_allclose(around, box)
