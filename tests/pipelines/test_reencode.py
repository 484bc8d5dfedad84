"""Re-encoding and reporting a manifest on a cluster: complete, resumable, verified by digest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from moving_square import entry_of, write_manifest, write_video

from kinema import storage
from kinema.errors import KinemaError, ManifestError
from kinema.motion.vectors import GRID, vector_fields
from kinema.pipelines.ledger import Done, Ledger
from kinema.pipelines.report import measure_one
from kinema.pipelines.videos import (
    ReencodeConfig,
    ReportConfig,
    reencode_videos,
    report_videos,
)
from kinema.video.decode import iterate_vectors, probe
from kinema.video.manifest import Manifest
from kinema.video.rows import with_classes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")


@pytest.fixture(autouse=True)
def own_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the storage of whoever runs the tests."""
    monkeypatch.setenv("KINEMA_STORAGE", str(tmp_path / "storage"))


def change(uri: str, **columns: pa.Array) -> str:
    """The manifest with other columns."""
    table = storage.read_table(uri)
    for name, values in columns.items():
        table = table.drop_columns([name] if name in table.column_names else [])
        table = table.append_column(name, values)
    storage.write_table(uri, table)
    return uri


def written(folder: Path) -> dict[str, int]:
    """When each video was written."""
    return {path.name: os.stat(path).st_mtime_ns for path in folder.glob("videos/**/*.mp4")}


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_data_set_is_re_encoded_once_and_what_changed_again(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{name}.mp4", 12, step=2 + i) for i, name in enumerate("abc")]
    uri = write_manifest(tmp_path / "all.parquet", paths)
    change(
        uri,
        id=pa.array(["x/a.mp4", "x/b.avi", "c"]),
        num_frames=pa.array([12] * 3, pa.int32()),
        start_s=pa.array([None, None, 0.3]),
        end_s=pa.array([None, None, 0.9]),
        mine=pa.array([7, 8, 9]),
    )
    storage.write_table(uri, with_classes(storage.read_table(uri), ["right", "never seen"]))
    out = tmp_path / "out"
    config = ReencodeConfig(
        data={"manifest": uri}, output=str(out), encode={"short_side": 64}, num_cpus=1
    )
    made = Manifest.read(reencode_videos(config))
    assert [row["path"] for row in made.table.to_pylist()] == [
        str(out / "videos" / name) for name in ("x/a.mp4", "x/b.avi.mp4", "c.mp4")
    ]
    assert made.table["mine"].to_pylist() == [7, 8, 9]
    assert made.classes == ("right", "never seen")
    assert made.table["num_frames"].to_pylist() == [12, 12, 6]
    assert made.table["start_s"].to_pylist() == [None] * 3
    for row in made.table.to_pylist():
        info = probe(row["path"])
        assert (info.width, info.height, info.num_frames) == (64, 64, row["num_frames"])
        assert row["digest"] == storage.content_digest(row["path"])

    before = written(out)
    assert Manifest.read(reencode_videos(config)).digest == made.digest
    assert written(out) == before

    (out / "videos/c.mp4").write_bytes(b"damaged")
    write_video(paths[0], 12, step=5)
    again = Manifest.read(reencode_videos(config))
    after = written(out)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"a.mp4", "c.mp4"}
    assert again.table["digest"][2] == made.table["digest"][2]  # the same bytes again
    assert again.table["digest"][0] != made.table["digest"][0]

    smaller = config.model_copy(update={"encode": config.encode.model_copy(update={"gop": 4})})
    reencode_videos(smaller)
    assert all(written(out)[name] != after[name] for name in after)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_videos_that_fail_are_listed_and_the_others_done(tmp_path: Path) -> None:
    good, bad = write_video(tmp_path / "good.mp4"), tmp_path / "bad.mp4"
    bad.write_bytes(b"text\n" * 100)
    short = write_video(tmp_path / "short.mp4", num_frames=5)
    uri = write_manifest(tmp_path / "all.parquet", [good, bad, short])
    out = tmp_path / "out"
    config = ReencodeConfig(data={"manifest": uri}, output=str(out), num_cpus=1)
    with pytest.raises(KinemaError, match="2 of 3 videos failed"):
        reencode_videos(config)
    why = {row["id"]: row["why"]
           for row in storage.read_table(str(out / "failures.parquet")).to_pylist()}  # fmt: skip
    assert set(why) == {"bad", "short"}
    assert "has 5 of the 8 frames" in why["short"]
    before = written(out)
    made = Manifest.read(reencode_videos(config.model_copy(update={"max_failure_ratio": 0.7})))
    assert made.table["id"].to_pylist() == ["good"]
    assert written(out) == before


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("ids", "message"),
    [(["a", "a.mp4"], "would both be"), (["../a", "b"], "leads out of the output folder")],
)
def test_ids_that_make_no_file_names(ids: list[str], message: str, tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{name}.mp4") for name in "ab"]
    uri = change(write_manifest(tmp_path / "all.parquet", paths), id=pa.array(ids))
    with pytest.raises(ManifestError, match=message):
        reencode_videos(ReencodeConfig(data={"manifest": uri}, output=str(tmp_path / "out")))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_report_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_video(tmp_path / f"{name}.mp4", 12) for name in "ab"]
    uri = write_manifest(tmp_path / "all.parquet", paths)
    change(uri, num_frames=pa.array([12] * 2, pa.int32()))
    rows = [("a", frame, 8 + 4 * frame, 30, 32 + 4 * frame, 54) for frame in range(12)]
    boxes = str(tmp_path / "boxes.parquet")
    names = ("id", "frame", "left", "top", "right", "bottom")
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    storage.write_table(boxes, table)
    out = str(tmp_path / "out")
    settings = {"data": {"manifest": uri}, "boxes": boxes, "output": out, "num_cpus": 1}
    found = report_videos(ReportConfig(**settings))
    assert found == json.loads((tmp_path / "out/report.json").read_text())
    h264 = found["codecs"]["h264"]
    assert (h264["videos"], h264["frames"], h264["exact"]) == (2, 24, 0)
    assert found["saliency"]["videos"] == 1
    assert found["saliency"]["value"] > 3  # the square moves, nothing else does
    assert "saliency score" in capsys.readouterr().out
    assert report_videos(ReportConfig(**settings)) == found
    assert "2 done before, 0 to do" in capsys.readouterr().out
    storage.write_table(boxes, table.slice(0, 3))
    report_videos(ReportConfig(**settings))
    assert "1 done before, 1 to do" in capsys.readouterr().out


def test_measures_of_one_video_are_those_of_direct_loops(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 12)
    entry = entry_of(path, num_frames=12)
    boxes = {frame: [(8.0, 30.0, 40.0, 54.0), (50.0, 0.0, 60.0, 10.0)] for frame in (2, 5, 6)}
    measures = measure_one(entry, {"a": boxes}).result
    frames = list(iterate_vectors(str(path)))
    for picture in "IPB":
        assert measures[picture] == sum(frame.picture == picture for frame in frames)
    assert measures["with_vectors"] == sum(len(frame.rows) > 0 for frame in frames)
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for index, field in zip(*vector_fields(frames), strict=True):
        for row, column in np.ndindex(field.shape[:2]):
            x, y = (column + 0.5) * GRID, (row + 0.5) * GRID
            inside = any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes.get(index, []))
            if index in boxes:
                sums[inside] += float(np.hypot(*field[row, column]))
                counts[inside] += 1
    assert measures["inside"] == pytest.approx(sums[True] / counts[True])
    assert measures["outside"] == pytest.approx(sums[False] / counts[False])


def test_images_have_no_vectors_and_say_why(tmp_path: Path) -> None:
    import cv2

    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((16, 16, 3), np.uint8))
    measures = measure_one(entry_of(tmp_path, num_frames=3), {}).result
    assert "no motion vectors" in measures["why_none"]
    assert (measures["frames"], measures["with_vectors"]) == (3, 0)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_boxes_of_other_videos_are_an_error(tmp_path: Path) -> None:
    uri = write_manifest(tmp_path / "all.parquet", [write_video(tmp_path / "a.mp4")])
    boxes = str(tmp_path / "boxes.parquet")
    table = pa.table({"id": ["b"], "frame": [0], "left": [0], "top": [0], "right": [1]})
    storage.write_table(boxes, table)
    config = ReportConfig(data={"manifest": uri}, boxes=boxes, output=str(tmp_path / "out"))
    with pytest.raises(KinemaError, match="no column 'bottom'"):
        report_videos(config)
    storage.write_table(boxes, table.append_column("bottom", pa.array([1])))
    with pytest.raises(ManifestError, match="none of its 1 videos is in the manifest"):
        report_videos(config)


def test_ledger_forgets_what_is_done_anew(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    assert ledger.read() == {}
    rows = [Done(id, f"digest-{id}", {"n": i}) for i, id in enumerate("abc")]
    ledger.write(rows[:2], "one")
    ledger.write(rows[2:], "two")
    assert ledger.read() == {row.id: row for row in rows}
    ledger.drop(["a", "c"])
    assert ledger.read() == {"b": rows[1]}
    assert len(storage.list_files(str(tmp_path))) == 1
