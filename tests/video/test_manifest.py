"""From lists, folders and tables to a checked manifest; every mistake is named."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.manifest import (
    SCHEMA,
    Entry,
    IndexConfig,
    Manifest,
    from_folders,
    from_list,
    index,
    probe,
)
from kinema.video.rows import trimmed
from kinema.video.sources import from_table, grouped, named

REAL_DATA = Path(
    os.environ.get("KINEMA_REAL_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)


def write_video(path: Path, num_frames: int = 10, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(num_frames):
            pixels = np.full((48, 64, 3), value + index, dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, two splits; one name twice, one name with everything that needs care."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(
        [
            "train/jump/a.mp4",
            "train/jump/S1 (b) [1], 'x'.mp4",
            "train/run/a.mp4",
            "test/run/S2_c.mp4",
            "test/jump/d.mp4",
        ]
    ):
        write_video(root / name, value=20 * number + 10)
    return root


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_lists_take_paths_with_spaces_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    text = "\ufeffa/x y.mp4 0\r\n\r\n  b\\z\u2028.mp4\t 12 \r\n/abs/c.mp4 3"
    found = from_list(write(tmp_path / "l.csv", text), "/data", "train")
    assert [source.path for source in found] == [
        "/data/a/x y.mp4",
        "/data/b\\z\u2028.mp4",
        "/abs/c.mp4",
    ]
    assert [source.id for source in found] == ["a/x y.mp4", "b\\z\u2028.mp4", "abs/c.mp4"]
    assert [source.label for source in found] == [0, 12, 3]
    beside = from_list(write(tmp_path / "l.csv", "v/a.mp4 0\n"), None, "test")[0]
    assert beside.path == str(tmp_path / "v/a.mp4")


def test_an_id_is_the_same_however_the_path_is_written(tmp_path: Path) -> None:
    for path in ("v/a.mp4", "./v/a.mp4", "v//a.mp4", "v/w/../a.mp4", "/data/v/a.mp4"):
        assert from_list(write(tmp_path / "l", f"{path} 0"), "/data", "train")[0].id == "v/a.mp4"
    remote = from_list(write(tmp_path / "l", "v/a.mp4 0"), "s3://bucket/root", "train")[0]
    assert (remote.id, remote.path) == ("v/a.mp4", "s3://bucket/root/v/a.mp4")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a.mp4 0\n\na.mp4\n", ":3: expected 'path label', got 'a.mp4'"),
        ("a.mp4,0\n", ":1: expected 'path label'"),
        ("a.mp4 run\n", ":1: label 'run' is not a whole number"),
        ("a.mp4 0\nb.mp4 -1\n", ":2: label '-1' is not a whole number"),
        ("a.mp4 1.0\n", ":1: label '1.0'"),
        ("a.mp4 0\nb.mp4 0\n./a.mp4 1\n", ":3: './a.mp4' is listed already in line 1"),
        ("../a.mp4 0\n", ":1: '../a.mp4' leads out of the root"),
        ("\n\n", "lists no videos"),
        (b"\xff\xfea\x00", "is not UTF-8 text"),
    ],
)
def test_malformed_lists_name_file_and_line(tmp_path: Path, text: str | bytes, why: str) -> None:
    file = write(tmp_path / "list.csv", text)
    with pytest.raises(ManifestError) as caught:
        from_list(file, "/data", "train")
    assert str(caught.value).startswith(file)
    assert why in str(caught.value)


def test_folders_give_splits_and_classes(data_set: Path) -> None:
    found = {source.id: source for source in from_folders(str(data_set))}
    assert len(found) == 5
    assert found["train/jump/a.mp4"].label == found["test/jump/d.mp4"].label == 0
    assert found["train/run/a.mp4"].label_name == "run"
    assert found["train/run/a.mp4"].label == 1
    assert found["test/run/S2_c.mp4"].split == "test"
    only_train = from_folders(str(data_set / "train"))
    assert {source.split for source in only_train} == {"train"}
    assert {source.id for source in only_train} >= {"jump/a.mp4", "run/a.mp4"}
    renamed = from_folders(str(data_set), {"train": "train", "test": "validation"})
    assert {source.split for source in renamed} == {"train", "validation"}


def test_folders_of_images_are_videos(tmp_path: Path) -> None:
    for name in ("run/clip 1/1.jpg", "run/clip 1/2.jpg", "jump/clip/0001.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = from_folders(str(tmp_path))
    assert [(s.id, s.label_name) for s in found] == [("jump/clip", "jump"), ("run/clip 1", "run")]


def test_folders_that_do_not_fit_are_named(tmp_path: Path, data_set: Path) -> None:
    with pytest.raises(ManifestError, match="no videos under"):
        from_folders(str(tmp_path))
    (tmp_path / "train/run").mkdir(parents=True)
    (tmp_path / "train/run/a.mp4").touch()
    (tmp_path / "train/loose.mp4").touch()
    with pytest.raises(ManifestError, match=r"1 of 2 videos .* such as train/loose\.mp4"):
        from_folders(str(tmp_path))
    with pytest.raises(ManifestError, match=r"no videos under .*/dev"):
        from_folders(str(data_set), {"train": "train", "test": "test", "dev": "validation"})


def test_tables_keep_ids_groups_and_trimming(tmp_path: Path) -> None:
    text = "id,path,split,label,group,start_s,end_s\nx,a.mp4,train,0,S1,0.5,\n,b.mp4,test,,,,2\n"
    found = from_table(write(tmp_path / "t.csv", text), "/data")
    assert [(s.id, s.path, s.group, s.start_s, s.end_s, s.label) for s in found] == [
        ("x", "/data/a.mp4", "S1", 0.5, None, 0),
        ("b.mp4", "/data/b.mp4", None, None, 2.0, None),
    ]
    rows = pa.table({"path": ["a.mp4"], "split": ["train"], "label": pa.array([3], pa.int64())})
    storage.write_table(str(tmp_path / "t.parquet"), rows)
    assert from_table(str(tmp_path / "t.parquet"), "/data")[0].label == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("path,label\na.mp4,0\n", "no column 'split'"),
        ("path,split\na.mp4,dev\n", "row 2: split 'dev' is none of"),
        ("path,split,label\na.mp4,train,0\nb.mp4,train,x\n", "row 3: label 'x' is not a number"),
        ("path,split,label\na.mp4,train,-1\n", "row 2: label '-1' is not a whole number"),
        ("path,split\n,train\n", "row 2: no path"),
    ],
)
def test_malformed_tables_name_row_and_column(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        from_table(write(tmp_path / "t.csv", text), None)


def test_names_and_groups(tmp_path: Path) -> None:
    found = from_list(write(tmp_path / "l", "S1_a.mp4 0\nS2_b.mp4 1\n"), "/d", "train")
    assert [s.label_name for s in named(found, ["run", "jump"])] == ["run", "jump"]
    with pytest.raises(ManifestError, match="label 1 has no name"):
        named(found, ["run"])
    assert [s.group for s in grouped(found, r"(S\d)_")] == ["S1", "S2"]
    assert [s.group for s in grouped(found, r"S\d")] == ["S1", "S2"]
    with pytest.raises(ManifestError, match=r"matches nothing in 'S1_a\.mp4'"):
        grouped(found, r"P\d")


def test_probing_measures_and_reports_failures(tmp_path: Path, data_set: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    text = f"{data_set}/train/jump/a.mp4 0\nempty.mp4 0\ngone.mp4 1\n{data_set}/train/run/a.mp4 1\n"
    manifest, failures = probe(from_list(write(tmp_path / "l", text), None, "train"), 2)
    assert len(manifest) == 2
    entry = manifest.rows()[0]
    assert (entry.width, entry.height, entry.num_frames, entry.fps) == (64, 48, 10, 10.0)
    assert entry.path == f"{data_set}/train/jump/a.mp4"
    assert manifest.table["digest"][0].as_py() == storage.content_digest(entry.path)
    assert manifest.table["codec"].to_pylist() == ["h264", "h264"]
    assert failures.to_pylist() == [
        {
            "id": "empty.mp4",
            "path": str(tmp_path / "empty.mp4"),
            "split": "train",
            "why": "is empty (0 bytes)",
        },
        {
            "id": "gone.mp4",
            "path": str(tmp_path / "gone.mp4"),
            "split": "train",
            "why": "does not exist",
        },
    ]


def test_a_part_that_the_video_does_not_have_is_a_failure(tmp_path: Path, data_set: Path) -> None:
    path = data_set / "train/jump/a.mp4"
    text = f"id,path,split,start_s,end_s\nin,{path},train,0.2,0.6\nout,{path},train,3,4\n"
    manifest, failures = probe(from_table(write(tmp_path / "t.csv", text), None))
    assert manifest.rows()[0].frame_range() == range(2, 6)
    assert failures["why"].to_pylist() == ["3 to 4 s is 0 frames of 1.00 s"]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, range(30)),
        (0.1, 0.7, range(3, 21)),
        (0.11, 0.69, range(3, 21)),
        (None, 99.0, range(30)),
        (0.3, None, range(9, 30)),
    ],
)
def test_frame_range_covers_what_is_shown(start, end, expected) -> None:
    assert trimmed(30, 30.0, start, end) == expected
    entry = Entry("a", "a.mp4", "train", 0, None, start, end, 64, 48, 30, 30.0)
    assert entry.frame_range() == expected
    assert trimmed(100, 25.0, 0.0, 2.2) == range(55)  # 2.2 * 25 is more than 55 in floats


def table(**columns: list[object]) -> pa.Table:
    count = len(next(iter(columns.values())))
    row = {
        "id": [f"v{i}" for i in range(count)],
        "path": [f"/data/v{i}.mp4" for i in range(count)],
        "split": ["train"] * count,
        "label": [0] * count,
        "width": [64] * count,
        "height": [48] * count,
        "num_frames": [10] * count,
        "fps": [10.0] * count,
        "codec": ["h264"] * count,
        "digest": ["0" * 64] * count,
    } | columns
    empty = {name: [None] * count for name in SCHEMA.names if name not in row}
    return pa.table({name: pa.array(values) for name, values in (row | empty).items()})


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"label": [0, 1, 4]}, "labels run to 4, but no video has 2, 3;"),
        ({"label": [1, 2]}, "no video has 0"),
        ({"label": [-1, 0]}, "label -1 is negative"),
        ({"id": ["a", "b", "a"], "split": ["train", "train", "test"]}, "'a' .in test, train."),
        ({"split": ["train", "dev"]}, "splits 'dev' are none of"),
        ({"num_frames": [10, None]}, "column 'num_frames' has 1 empty rows"),
        ({"fps": ["fast"]}, "a column has the wrong type"),
    ],
)
def test_manifests_are_checked(tmp_path: Path, columns: dict[str, list[object]], why: str) -> None:
    uri = str(tmp_path / "m.parquet")
    storage.write_table(uri, table(**columns))
    with pytest.raises(ManifestError, match=why) as caught:
        Manifest.read(uri)
    assert str(caught.value).startswith(uri)


def test_missing_manifests_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.parquet does not exist"):
        Manifest.read(str(tmp_path / "none.parquet"))
    with pytest.raises(ManifestError, match="columns are missing: path, fps"):
        Manifest(table(label=[0]).drop_columns(["path", "fps"]))


def test_manifest_round_trip_selection_and_extra_columns(tmp_path: Path) -> None:
    extra = table(label=[0, 1, None], split=["train", "test", "train"], verb=["a", "b", "c"])
    manifest = Manifest(extra)
    uri = str(tmp_path / "m.parquet")
    manifest.write(uri)
    read = Manifest.read(uri)
    assert read.table.equals(manifest.table)
    assert read.digest == manifest.digest
    assert read.table["verb"].to_pylist() == ["a", "b", "c"]
    assert read.num_classes == 2
    assert [entry.label for entry in read.select("train").rows()] == [0, None]
    assert read.select("test").rows()[0].id == "v1"  # label 1 alone is no gap in a part
    assert len(read.select("validation")) == 0
    with pytest.raises(ManifestError, match="no video of the manifest has a label"):
        _ = Manifest(table(label=[None, None])).num_classes


def test_digest_follows_what_decides_a_run_and_not_where_files_lie() -> None:
    plain = Manifest(table(label=[0, 1])).digest
    assert Manifest(table(label=[0, 1], path=["/else/a", "/else/b"])).digest == plain
    for changed in (
        {"label": [1, 0]},
        {"label": [0, 1], "split": ["train", "test"]},
        {"label": [0, 1], "digest": ["0" * 64, "1" * 64]},
        {"label": [0, 1], "start_s": [None, 0.5]},
        {"label": [0, 1], "group": ["a", "b"]},
        {"label": [0, 1], "id": ["v1", "v0"]},
    ):
        assert Manifest(table(**changed)).digest != plain


def test_index_writes_manifest_and_failures(
    tmp_path: Path, data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.parquet"
    config = IndexConfig(format="folders", source=str(data_set), output=str(output))
    assert index(config) == 0
    manifest = Manifest.read(str(output))
    assert len(manifest) == 5
    assert "3 train, 2 test" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "m.failures.parquet").num_rows == 0
    again = IndexConfig(format="manifest", source=str(output), output=str(tmp_path / "n.parquet"))
    assert index(again) == 0
    assert Manifest.read(str(tmp_path / "n.parquet")).digest == manifest.digest


def test_index_of_lists_takes_names_groups_and_few_failures(tmp_path: Path, data_set: Path) -> None:
    train = write(tmp_path / "train.csv", "train/jump/a.mp4 1\ntrain/run/a.mp4 0\n")
    test = write(tmp_path / "test.csv", "test/run/S2_c.mp4 0\ntest/run/gone.mp4 0\n")
    settings = {
        "format": "list",
        "lists": {"train": train, "test": test},
        "root": str(data_set),
        "classes": write(tmp_path / "names.txt", "run\njump\n"),
        "group": r"(\w+)/",
        "output": str(tmp_path / "m.parquet"),
    }
    with pytest.raises(ManifestError, match=r"1 of 4 videos .*gone\.mp4: does not exist") as caught:
        index(IndexConfig(**settings))
    assert "max_failure_ratio=0.25" in str(caught.value)
    assert not (tmp_path / "m.parquet").exists()
    assert pq.read_table(tmp_path / "m.failures.parquet")["id"].to_pylist() == ["test/run/gone.mp4"]
    assert index(IndexConfig(**settings, max_failure_ratio=0.3)) == 0
    rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert [row["label_name"] for row in rows] == ["jump", "run", "run"]
    assert [row["group"] for row in rows] == ["train", "train", "test"]


def test_a_video_in_two_splits_is_refused(tmp_path: Path, data_set: Path) -> None:
    lists = {split: write(tmp_path / split, "train/jump/a.mp4 0\n") for split in ("train", "test")}
    config = IndexConfig(
        format="list", lists=lists, root=str(data_set), output=str(tmp_path / "m.parquet")
    )
    with pytest.raises(ManifestError, match=r"train/jump/a\.mp4' \(in test, train\)"):
        index(config)


def test_a_wrong_root_is_one_error(tmp_path: Path, data_set: Path) -> None:
    lists = {"train": write(tmp_path / "l", "a.mp4 0\nb.mp4 0\n")}
    config = IndexConfig(
        format="list", lists=lists, root=str(data_set), output=str(tmp_path / "m.parquet")
    )
    with pytest.raises(ManifestError, match="none of the 2 videos of split 'train'") as caught:
        index(config)
    assert f"searched under {data_set}" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"format": "list"}, "needs lists.train=FILE"),
        ({"format": "folders"}, "needs source="),
        ({"format": "list", "lists": {"dev": "x"}}, "lists"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        IndexConfig(**settings, output="m.parquet")


@pytest.mark.real
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data in {REAL_DATA}")
def test_the_gesture_lists_index(tmp_path: Path) -> None:
    folder = REAL_DATA / "iri_gesture"
    config = IndexConfig(
        format="list",
        lists={"train": str(folder / "train.csv"), "test": str(folder / "test.csv")},
        classes=str(folder / "classes.txt"),
        group=r"(S\d)_",
        output=str(tmp_path / "m.parquet"),
        decode_all=False,
    )
    assert index(config) == 0
    manifest = Manifest.read(str(tmp_path / "m.parquet"))
    assert (len(manifest.select("train")), len(manifest.select("test"))) == (225, 90)
    assert manifest.num_classes == 15
    assert set(manifest.select("test").table["group"].to_pylist()) == {"S6", "S7"}
