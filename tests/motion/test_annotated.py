"""Annotated boxes in place of motion: the table, what a store holds of it, and its errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kinema import storage
from kinema.errors import KinemaError
from kinema.motion.annotated import (
    BOX_COLUMNS,
    boxes_by_frame,
    frame_boxes,
    located,
    read_boxes,
)
from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import AnnotatedBoxes
from kinema.pipelines.one_video import extract_one, motion_digest
from kinema.video.manifest import Manifest
from kinema.video.synthetic import SyntheticConfig, load_truth, make

ROWS = [
    ("b", 7, 1.0, 2.0, 3.0, 4.0),
    ("a", 3, 10.0, 10.0, 20.0, 30.0),
    ("a", 1, 0.0, 5.0, 8.0, 9.0),
    ("a", 3, 5.0, 12.0, 15.0, 40.0),
]


def table(rows: list[tuple]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(BOX_COLUMNS, row, strict=True)) for row in rows])


def written(path: Path, rows: list[tuple]) -> str:
    storage.write_table(str(path), table(rows))
    return str(path)


def test_boxes_are_read_by_video_and_frame(tmp_path: Path) -> None:
    found = read_boxes(written(tmp_path / "boxes.parquet", ROWS))
    assert set(found) == {"a", "b"}
    assert found["a"][:, 0].tolist() == [1, 3, 3]
    by_frame = boxes_by_frame(found["a"])
    assert by_frame[1] == [(0, 5, 8, 9)]
    assert sorted(by_frame[3]) == [(5, 12, 15, 40), (10, 10, 20, 30)]


def test_a_table_without_rows_has_no_videos(tmp_path: Path) -> None:
    uri = str(tmp_path / "boxes.parquet")
    storage.write_table(uri, table(ROWS).slice(0, 0))
    assert read_boxes(uri) == {}


def test_a_frames_box_is_around_all_of_its_boxes(tmp_path: Path) -> None:
    rows = read_boxes(written(tmp_path / "boxes.parquet", ROWS))["a"]
    boxes = frame_boxes(rows, range(1, 5))
    assert boxes.frames.tolist() == [1, 2, 3, 4]
    expected = [[0, 5, 8, 9], [np.nan] * 4, [5, 10, 20, 40], [np.nan] * 4]
    np.testing.assert_array_equal(boxes.boxes, expected)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (table(ROWS).drop_columns("top"), "has no column 'top'"),
        (table([("a", 0, 5.0, 0.0, 5.0, 9.0)]), r"the box of a, \[0.0, 5.0.* is empty"),
        (table([("a", 0, float("nan"), 0.0, 5.0, 9.0)]), "is empty"),
    ],
)
def test_broken_tables_are_named(broken: pa.Table, message: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "boxes.parquet")
    storage.write_table(uri, broken)
    with pytest.raises(KinemaError, match=message) as caught:
        read_boxes(uri)
    assert "boxes.parquet" in str(caught.value)


def test_known_answer_set_comes_with_its_true_boxes(tmp_path: Path) -> None:
    small = SyntheticConfig(num_train=2, num_validation=0, num_test=1)
    uri = make(small, str(tmp_path / "set"))
    config = MotionConfig(flow=AnnotatedBoxes())
    work = located(config, uri)
    for entry in Manifest.read(uri).rows():
        row = extract_one(entry, work)
        truth = load_truth(str(tmp_path / "set"), entry.split, entry.id).boxes
        np.testing.assert_allclose(row.boxes.boxes, truth, rtol=1e-6)
        assert row.video_digest == motion_digest(entry, work)
        assert row.fields is None


def test_another_annotation_is_another_digest(tmp_path: Path) -> None:
    uri = make(SyntheticConfig(num_train=1, num_validation=0, num_test=0), str(tmp_path / "set"))
    (entry,) = Manifest.read(uri).rows()
    digests = []
    for shift in (0.0, 1.0):
        file = written(tmp_path / f"{shift}.parquet", [(entry.id, 0, shift, 0.0, 9.0, 9.0)])
        digests.append(
            motion_digest(
                entry, located(MotionConfig(flow={"name": "annotated", "file": file}), uri)
            )
        )
    assert len(set(digests)) == 2


def test_video_without_annotation_is_an_error(tmp_path: Path) -> None:
    uri = make(SyntheticConfig(num_train=1, num_validation=0, num_test=0), str(tmp_path / "set"))
    (entry,) = Manifest.read(uri).rows()
    config = MotionConfig(flow=AnnotatedBoxes(file=written(tmp_path / "other.parquet", ROWS)))
    with pytest.raises(KinemaError, match=r"other\.parquet has no box of it"):
        extract_one(entry, located(config, uri))


def test_annotation_is_no_dense_flow() -> None:
    with pytest.raises(ValueError, match="annotated is no dense flow"):
        MotionConfig(flow=AnnotatedBoxes(), fields={})
