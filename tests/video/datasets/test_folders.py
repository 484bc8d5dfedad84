"""Class folders to splits and labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_videos import write

from kinema.errors import ManifestError
from kinema.video.datasets.folders import Folders, from_folders


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
    with pytest.raises(ManifestError, match=r"no such folder: .*/elsewhere"):
        from_folders(str(tmp_path / "elsewhere"))
    (tmp_path / "train/run").mkdir(parents=True)
    (tmp_path / "train/run/a.mp4").touch()
    (tmp_path / "train/loose.mp4").touch()
    with pytest.raises(ManifestError, match=r"1 of 2 videos .* such as train/loose\.mp4"):
        from_folders(str(tmp_path))
    with pytest.raises(ManifestError, match=r"no videos under .*/dev"):
        from_folders(str(data_set), {"train": "train", "test": "test", "dev": "validation"})


def test_a_class_file_numbers_the_folders(tmp_path: Path, data_set: Path) -> None:
    names = write(tmp_path / "names.txt", "run\r\nswim\r\njump\r\n")
    listing = Folders(source=str(data_set), classes=names).read()
    assert listing.classes == ("run", "swim", "jump")
    assert {(s.label, s.label_name) for s in listing.sources} == {(0, "run"), (2, "jump")}
    with pytest.raises(ManifestError, match="1 folders are none of the 1 classes, such as 'run'"):
        Folders(source=str(data_set), classes=write(tmp_path / "n.txt", "jump\n")).read()
