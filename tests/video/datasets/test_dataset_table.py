"""Tables of videos, and manifests that are measured anew."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from tiny_videos import write

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.table import Table, from_table
from kinema.video.rows import with_classes


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
        ("path,label\na.mp4,0\n", r"t\.csv:1: no column 'split'"),
        ("path,split\na.mp4,dev\n", r"t\.csv:2: split 'dev' is none of"),
        (
            "path,split,label\na.mp4,train,0\nb.mp4,train,x\n",
            r"t\.csv:3: label 'x' is not a number",
        ),
        ("path,split,label\na.mp4,train,-1\n", r"t\.csv:2: label '-1' is not a whole number"),
        ("path,split\n,train\n", r"t\.csv:2: no path"),
        ("path,split\na,train\nb\n", r"t\.csv:3: not the 2 fields"),
        ("path,split\na,b,train\n", r"t\.csv:2: not the 2 fields"),
        ('path,split\n"a,train\n', r"t\.csv:2: unexpected end"),
        ("path,split\na,train\na,test\n", r"t\.csv:3: 'a' is listed already in .*t\.csv:2;"),
        (
            "path,split\na,dev\n../b,test\n",
            r"^2 malformed lines\n.*:2: split .*\n.*:3: .* leads out",
        ),
    ],
)
def test_malformed_tables_name_row_and_column(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        from_table(write(tmp_path / "t.csv", text), None)


def test_other_columns_and_classes_survive(tmp_path: Path) -> None:
    text = '\ufeffpath,split,verb,label\r\n"a, b.mp4",train,NA,0\r\n'
    csv = Table(source=write(tmp_path / "t.csv", text)).read()
    assert csv.classes is None
    assert csv.sources[0].id == "a, b.mp4"
    assert csv.sources[0].extra == {"verb": "NA"}
    rows = pa.table({"path": ["a.mp4"], "split": ["train"], "label": [1], "noun": [7]})
    file = str(tmp_path / "t.parquet")
    storage.write_table(file, with_classes(rows, ["run", "jump", "swim"]))
    parquet = Table(source=file).read()
    assert parquet.classes == ("run", "jump", "swim")
    assert parquet.sources[0].extra == {"noun": 7}
    renamed = Table(source=file, classes=write(tmp_path / "n.txt", "a\nb\n")).read()
    assert (renamed.classes, renamed.sources[0].label_name) == (("a", "b"), "b")
