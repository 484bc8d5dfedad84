"""VideoMAE's lists in every layout; every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_videos import write

from kinema.errors import ManifestError
from kinema.video.datasets.lists import Lists, from_list


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
        ("a.mp4 0\nb.mp4 0\n./a.mp4 1\n", ":3: 'a.mp4' is listed already in "),
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


def test_malformed_lines_are_told_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "l", "a 0\nb\nc x\n")
    with pytest.raises(ManifestError) as caught:
        from_list(file, "/d", "train")
    assert str(caught.value).splitlines() == [
        "2 malformed lines",
        f"  - {file}:2: expected 'path label', got 'b'",
        f"  - {file}:3: label 'x' is not a whole number from 0 up",
    ]
    with pytest.raises(ManifestError, match=r"^13 malformed lines\n") as caught:
        from_list(write(tmp_path / "l", "a\n" * 13), "/d", "train")
    assert len(str(caught.value).splitlines()) == 12
    assert str(caught.value).endswith("\n  and 3 more")


def test_a_video_of_two_lists_is_named_with_both_lines(tmp_path: Path) -> None:
    lists = {split: write(tmp_path / split, "a 0\n") for split in ("train", "test")}
    with pytest.raises(ManifestError) as caught:
        Lists(lists=lists).read()
    assert str(caught.value) == (
        f"{lists['test']}:1: 'a' is listed already in {lists['train']}:1; list every video once"
    )


def test_layouts_tell_spaces_of_a_path_from_fields(tmp_path: Path) -> None:
    text = "my run 0 3.mp4 1\r\nb 0 -1\r\n"
    with pytest.raises(ManifestError, match=r":2: label '-1' is not a whole number"):
        from_list(write(tmp_path / "l", text), "/d", "train")
    text = "my run 0 3.mp4 0 -1\r\nfolder 2 0 60\n\ufeffx 1 25\n"
    found = from_list(write(tmp_path / "l", text), "/d", "train", "path_start_total")
    assert [(s.id, s.label, s.claimed_frames) for s in found] == [
        ("my run 0 3.mp4", None, None),
        ("folder 2", None, 60),
        ("\ufeffx", None, 25),
    ]
    found = from_list(write(tmp_path / "l", "folder 2 60 7\n"), "/d", "train", "path_total_label")
    assert [(s.id, s.label, s.claimed_frames) for s in found] == [("folder 2", 7, 60)]


@pytest.mark.parametrize(
    ("layout", "line", "why"),
    [
        ("path_start_total", "a.mp4 0", "expected 'path start total'"),
        ("path_start_total", "a.mp4 1 -1", "starts at 1, and only whole videos"),
        ("path_start_total", "a 30 60", "starts at 30, and only whole videos"),
        ("path_start_total", "a 0 -2", "total '-2' is not a whole number"),
        ("path_start_total", "a x 60", "start 'x' is not a whole number"),
        ("path_total_label", "a 60 -1", "label '-1'"),
        ("path_total_label", "a -1 3", "total '-1'"),
    ],
)
def test_malformed_lines_of_other_layouts_are_named(
    tmp_path: Path, layout: str, line: str, why: str
) -> None:
    file = write(tmp_path / "l", f"\n{line}\n")
    with pytest.raises(ManifestError) as caught:
        from_list(file, "/d", "train", layout)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert why in str(caught.value)


def test_unicode_forms_of_a_path_stay_two_videos(tmp_path: Path) -> None:
    text = "caf\u00e9.mp4 0\ncafe\u0301.mp4 0\n"
    found = Lists(lists={"train": write(tmp_path / "l", text)}).read().sources
    assert [source.id for source in found] == ["caf\u00e9.mp4", "cafe\u0301.mp4"]
    with pytest.raises(ValidationError, match="lists"):
        Lists(lists={})
