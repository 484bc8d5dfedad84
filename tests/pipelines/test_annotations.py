"""From published annotations to the table of a manifest's boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from moving_square import write_manifest
from pydantic import ValidationError

from kinema import storage
from kinema.errors import KinemaError, ManifestError
from kinema.motion.annotated import read_boxes
from kinema.pipelines.annotations import IndexBoxesConfig, index_boxes

BOX = {"x1": 10, "y1": 20, "x2": 30, "y2": 40}


def something_else(path: Path, *videos: str, num_images: int = 8, **box: float) -> str:
    """One box per image of every video."""
    label = {"standard_category": "hand", "box2d": BOX | box}
    annotation = {
        video: [{"name": f"{video}/{n + 1:04d}.jpg", "labels": [label]} for n in range(num_images)]
        for video in videos
    }
    path.write_text(json.dumps(annotation))
    return str(path)


def manifest(tmp_path: Path, *names: str, **columns: Any) -> str:
    """Of files that nobody opens; `columns` replace or add some."""
    uri = write_manifest(tmp_path / "manifest.parquet", [tmp_path / name for name in names])
    table = storage.read_table(uri)
    columns = {"fps": pa.array([12.0] * len(names))} | columns
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns(name)
        table = table.append_column(name, values)
    storage.write_table(uri, table)
    return uri


def indexed(tmp_path: Path, files: list[str], **settings: Any) -> str:
    output = str(tmp_path / "boxes.parquet")
    known = {"annotation": {"name": "something_else"}, "files": files, "output": output}
    assert index_boxes(IndexBoxesConfig.model_validate(known | settings)) == 0
    return output


def test_boxes_get_the_ids_of_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = manifest(tmp_path, "1.webm", "2.webm", "3.webm", id=pa.array(["a/1", "b/2", "c/3"]))
    files = [something_else(tmp_path / "p1", "1"), something_else(tmp_path / "p2", "2", "9")]
    found = read_boxes(indexed(tmp_path, files, manifest=uri))
    assert found.keys() == {"a/1", "b/2"}
    assert found["a/1"].tolist() == [[frame, 10, 20, 30, 40] for frame in range(8)]
    printed = capsys.readouterr().out
    assert "16 boxes of 2 videos, 66.7% of the manifest's" in printed
    assert "1 annotated video not listed" in printed


def test_without_manifest_the_names_are_the_annotations(tmp_path: Path) -> None:
    files = [something_else(tmp_path / "p1", "1", num_images=2)]
    assert read_boxes(indexed(tmp_path, files)).keys() == {"1"}


def test_every_segment_of_a_file_gets_the_boxes_of_its_frames(tmp_path: Path) -> None:
    path = str(tmp_path / "P01_01.MP4")
    uri = manifest(
        tmp_path,
        "s0",
        "s1",
        path=pa.array([path, path]),
        start_s=pa.array([0.0, 0.5]),
        end_s=pa.array([0.25, None]),
    )
    found = read_boxes(indexed(tmp_path, [something_else(tmp_path / "p", "P01_01")], manifest=uri))
    assert found["s0"][:, 0].tolist() == [0, 1, 2]
    assert found["s1"][:, 0].tolist() == [6, 7]


def test_a_column_video_id_names_the_video(tmp_path: Path) -> None:
    uri = manifest(tmp_path, "x.mp4", video_id=pa.array(["P01_01"]))
    found = read_boxes(indexed(tmp_path, [something_else(tmp_path / "p", "P01_01")], manifest=uri))
    assert found.keys() == {"x"}


def test_rate_and_size_of_the_annotated_images(tmp_path: Path) -> None:
    uri = manifest(tmp_path, "1.webm", fps=pa.array([24.0]), num_frames=pa.array([16], pa.int32()))
    files = [something_else(tmp_path / "p", "1", x2=192, y2=96)]
    with pytest.raises(KinemaError, match=r"runs at 24 frames per second.*set fps=12"):
        indexed(tmp_path, files, manifest=uri)
    with pytest.raises(KinemaError, match=r"8 of 8 boxes reach past the frames.*set size="):
        indexed(tmp_path, files, manifest=uri, fps=12)
    found = read_boxes(indexed(tmp_path, files, manifest=uri, fps=12, size=[192, 96]))
    assert found["1"].tolist() == [[2 * image, 5, 20, 96, 96] for image in range(8)]


def test_images_in_a_folder_are_the_annotated_ones_whatever_their_rate(tmp_path: Path) -> None:
    uri = manifest(tmp_path, "1", fps=pa.array([24.0]), codec=pa.array(["images"]))
    found = read_boxes(indexed(tmp_path, [something_else(tmp_path / "p", "1")], manifest=uri))
    assert found["1"][:, 0].tolist() == list(range(8))


def test_boxes_without_area_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = manifest(tmp_path, "1.webm", "2.webm")
    files = [something_else(tmp_path / "p1", "1", x2=10), something_else(tmp_path / "p2", "2")]
    assert read_boxes(indexed(tmp_path, files, manifest=uri)).keys() == {"2"}
    assert "8 boxes without area left out" in capsys.readouterr().out


def test_what_does_not_fit_the_manifest_leaves_no_table(tmp_path: Path) -> None:
    uri = manifest(tmp_path, "1.webm", "2.webm", "3.webm")
    files = [something_else(tmp_path / "p", "1")]
    with pytest.raises(KinemaError, match=r"33.3% of the videos.*names like '1'.*min_matched"):
        indexed(tmp_path, files, manifest=uri)
    assert not (tmp_path / "boxes.parquet").exists()
    indexed(tmp_path, files, manifest=uri, min_matched=0.3)
    with pytest.raises(KinemaError, match="video '1' is in a file before it"):
        indexed(tmp_path, files * 2, manifest=uri)


def test_a_name_that_means_several_files_is_refused(tmp_path: Path) -> None:
    uri = manifest(tmp_path, "a.mp4", "b.mp4", video_id=pa.array(["P01_01"] * 2))
    with pytest.raises(ManifestError, match="'P01_01' names 2 files"):
        indexed(tmp_path, [something_else(tmp_path / "p", "P01_01")], manifest=uri)


def test_rate_and_size_need_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="give manifest="):
        indexed(tmp_path, ["x.json"], fps=12)
