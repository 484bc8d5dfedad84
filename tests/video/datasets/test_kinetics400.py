"""Kinetics-400: names of clips, label maps and subsets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from real_annotations import ANNOTATIONS, counts, needs_annotations, used
from tiny_videos import write

from kinema.errors import ManifestError
from kinema.video.datasets.kinetics400 import Kinetics400

HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
ROWS = (
    "tying knot (not on a tie),-abc_defghi,7,17,train,0",
    '"a, ""b""",--cdefghijk,0,10,validate,1',
    "NA,x0123456789,120,130,test,0",
)


def kinetics(folder: Path, *rows: str, **more: object) -> Kinetics400:
    file = write(folder / "k.csv", "\ufeff" + "".join(f"{row}\r\n" for row in (HEADER, *rows)))
    return Kinetics400(annotations=[file], videos="/v", **more)


def test_clips_are_named_as_published(tmp_path: Path) -> None:
    listing = kinetics(tmp_path, *ROWS).read()
    assert listing.classes == ("NA", 'a, "b"', "tying knot (not on a tie)")
    assert [(s.id, s.path, s.split, s.label, s.claimed_s) for s in listing.sources] == [
        ("-abc_defghi_000007_000017", "/v/-abc_defghi_000007_000017.mp4", "train", 2, 10.0),
        ("--cdefghijk_000000_000010", "/v/--cdefghijk_000000_000010.mp4", "validation", 1, 10.0),
        ("x0123456789_000120_000130", "/v/x0123456789_000120_000130.mp4", "test", 0, 10.0),
    ]
    foldered = kinetics(tmp_path, *ROWS, class_folders=True).read().sources[1]
    assert foldered.path == '/v/a, "b"/--cdefghijk_000000_000010.mp4'
    pattern = "{split}/{youtube_id}.webm"
    assert kinetics(tmp_path, *ROWS, pattern=pattern).read().sources[1].path == (
        "/v/validate/--cdefghijk.webm"
    )


def test_a_test_without_labels_has_none(tmp_path: Path) -> None:
    row = ",x0123456789,120,130,test,0"
    listing = kinetics(tmp_path, *ROWS, row.replace("x", "y")).read()
    assert (listing.sources[-1].label, listing.sources[-1].label_name) == (None, None)
    for settings, broken in (({}, row.replace("test", "val")), ({"class_folders": True}, row)):
        with pytest.raises(ManifestError, match=r"k\.csv:2: no label"):
            kinetics(tmp_path, broken, **settings).read()


def test_a_label_map_orders_or_renames(tmp_path: Path) -> None:
    rows = [f"{name},{name}0123456789,0,10,train,0" for name in "cab"]

    def numbers(text: str) -> list[tuple[int | None, str | None]]:
        label_map = write(tmp_path / "map.txt", text)
        sources = kinetics(tmp_path, *rows, label_map=label_map).read().sources
        return [(source.label, source.label_name) for source in sources]

    assert numbers("b\nc\na\n") == [(1, "c"), (2, "a"), (0, "b")]
    assert numbers("b\nc\nmore\na\n") == [(1, "c"), (3, "a"), (0, "b")]
    assert numbers("a\nnew b\nc\n") == [(2, "c"), (0, "a"), (1, "new b")]
    for unclear in ("c\nnew b\na\n", "a\nc\n", "a\nc\nnew\n"):
        with pytest.raises(ManifestError, match=r"map\.txt lacks 1 classes .* such as 'b'"):
            numbers(unclear)


def test_a_subset_is_numbered_anew(tmp_path: Path) -> None:
    rows = [f"{name},{name}0123456789,0,10,train,0" for name in "dcab"]
    subset = write(tmp_path / "s.txt", "d\r\na\r\n")
    listing = kinetics(tmp_path, *rows, subset=subset).read()
    assert listing.classes == ("a", "d")
    assert [(s.label_name, s.label) for s in listing.sources] == [("d", 1), ("a", 0)]
    with pytest.raises(ManifestError, match=r"s\.txt:2: 'e' is none of the 4 classes"):
        kinetics(tmp_path, *rows, subset=write(tmp_path / "s.txt", "d\ne\n")).read()
    with pytest.raises(ManifestError, match="names no classes"):
        kinetics(tmp_path, *rows, subset=write(tmp_path / "s.txt", "\n")).read()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("a,x,7,17,dev,0", "split 'dev' is none of train, val"),
        ("a,x,7.5,17,train,0", "time_start '7.5' is not a whole number"),
        ("a,x,17,7,train,0", "ends at 7 s, before its start at 17 s"),
        ("a,,7,17,train,0", "no youtube_id"),
        ("a,x,7,17,train", "not the 6 fields of the header"),
        ("a,../x,7,17,train,0", "leads out of the root"),
        (ROWS[0], "is listed already in"),
    ],
)
def test_malformed_rows_name_file_and_line(tmp_path: Path, row: str, why: str) -> None:
    with pytest.raises(ManifestError, match=r"k\.csv:3: ") as caught:
        kinetics(tmp_path, ROWS[0], row).read()
    assert why in str(caught.value)


def test_a_pattern_of_unknown_fields_is_refused(tmp_path: Path) -> None:
    for pattern in ("{id}.mp4", "{start:x}}.mp4", "{0}.mp4"):
        with pytest.raises(ValidationError, match="is not a path made of"):
            kinetics(tmp_path, pattern=pattern)
    with pytest.raises(ManifestError, match=r"k\.csv: lists no videos"):
        kinetics(tmp_path).read()


@pytest.mark.real
@needs_annotations
def test_the_official_validation_list(tmp_path: Path) -> None:
    folder = ANNOTATIONS / "kinetics400"
    files = {"annotations": [str(folder / "kinetics-400_val.csv")], "videos": "/v"}
    plain = Kinetics400(**files).read()
    assert counts(plain) == {"validation": 19_906}
    assert used(plain) == set(range(400))
    assert plain.classes is not None
    assert list(plain.classes) == sorted(plain.classes)
    renamed = Kinetics400(**files, label_map=str(folder / "label_map_k400.txt")).read()
    assert renamed.classes is not None
    assert [s.label for s in renamed.sources] == [s.label for s in plain.sources]
    assert sum(a != b for a, b in zip(plain.classes, renamed.classes, strict=True)) == 13
    assert renamed.classes[12] == "inflating balloons"
    assert plain.classes[12] == "balloon blowing"
    subset = write(tmp_path / "mini.txt", "\n".join(plain.classes[::2]))
    assert used(Kinetics400(**files, subset=subset).read()) == set(range(200))
