"""A manifest is checked, keeps what it is given, and names what decides a run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from tiny_videos import write

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.lists import from_list
from kinema.video.datasets.table import from_table
from kinema.video.manifest import SCHEMA, Entry, Manifest, probe
from kinema.video.rows import CLASSES_KEY, trimmed, with_classes


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


def defining(names: list[str], **columns: list[object]) -> pa.Table:
    return with_classes(table(**columns), names)


def test_defined_classes_are_kept_and_counted(tmp_path: Path) -> None:
    names = ["run", "caf\u00e9", "swim", "never seen"]
    made = Manifest(defining(names, label=[0, 2, None], split=["train", "test", "train"]))
    made.write(str(tmp_path / "m.parquet"))
    read = Manifest.read(str(tmp_path / "m.parquet"))
    for manifest in (read, read.select("train"), read.select("validation")):
        assert manifest.classes == tuple(names)
        assert manifest.num_classes == 4
    assert read.digest == made.digest
    assert Manifest(table(label=[0, 1])).classes is None


def test_the_digest_follows_the_number_of_classes_where_the_rows_do_not_tell_it() -> None:
    plain = Manifest(table(label=[0, 1]))
    assert plain.digest == "c512bc1c6467d4f9"
    assert Manifest(defining(["a", "b"], label=[0, 1])).digest == plain.digest
    more = Manifest(defining(["a", "b", "c"], label=[0, 1])).digest
    assert more != plain.digest
    assert Manifest(defining(["x", "y", "z"], label=[0, 1])).digest == more


@pytest.mark.parametrize(
    ("names", "columns", "why"),
    [
        (["a"], {"label": [0, 1]}, "label 1 is none of the 1 classes"),
        (["a"], {"label": [-1]}, "label -1 is none of the 1 classes"),
        (["a", "b"], {"label": [1], "label_name": ["a"]}, "label 1 is called 'a'.* as 'b'"),
    ],
)
def test_labels_that_are_no_class_are_refused(
    names: list[str], columns: dict[str, list[object]], why: str
) -> None:
    with pytest.raises(ManifestError, match=why):
        Manifest(defining(names, **columns))


@pytest.mark.parametrize("text", [b"run, jump", b'{"run": 0}', b"[1]"])
def test_damaged_class_names_are_named(text: bytes) -> None:
    damaged = table(label=[0]).replace_schema_metadata({CLASSES_KEY: text})
    with pytest.raises(ManifestError, match=r"kinema\.classes is not a JSON list of names"):
        Manifest(damaged)
