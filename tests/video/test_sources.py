"""Names, groups and paths of what a data set names."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_videos import write

from kinema.errors import ManifestError
from kinema.video.datasets.lists import from_list
from kinema.video.sources import grouped, named, read_names


def test_names_and_groups(tmp_path: Path) -> None:
    found = from_list(write(tmp_path / "l", "S1_a.mp4 0\nS2_b.mp4 1\n"), "/d", "train")
    assert [s.label_name for s in named(found, ["run", "jump"])] == ["run", "jump"]
    with pytest.raises(ManifestError, match="label 1 has no name"):
        named(found, ["run"])
    assert [s.group for s in grouped(found, r"(S\d)_")] == ["S1", "S2"]
    assert [s.group for s in grouped(found, r"S\d")] == ["S1", "S2"]
    with pytest.raises(ManifestError, match=r"matches nothing in 'S1_a\.mp4'"):
        grouped(found, r"P\d")


def test_names_of_classes_are_read_once(tmp_path: Path) -> None:
    file = write(tmp_path / "n.txt", "\ufeffride bike\r\n\r\nNA\r\n")
    assert read_names(file) == ["ride bike", "NA"]
    file = write(tmp_path / "n.txt", "a\nb\na\n")
    with pytest.raises(ManifestError, match=r"n\.txt:3: class 'a' is there already, in .*:1"):
        read_names(file)
    with pytest.raises(ManifestError, match="names no classes"):
        read_names(write(tmp_path / "n.txt", "\n"))
