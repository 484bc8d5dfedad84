"""UCF101: official lists, groups that belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_data_sets import put
from real_annotations import ANNOTATIONS, counts, needs_annotations, used

from kinema.errors import ManifestError
from kinema.video.datasets.ucf101 import UCF101, group_of
from kinema.video.sources import Listing

TRAIN = "Archery/v_Archery_g08_c01.avi 1"
TEST = "YoYo/v_YoYo_g01_c02.avi"


def read(
    folder: Path,
    train: list[str],
    test: list[str],
    classes: tuple[str, ...] = ("1 Archery", "2 YoYo"),
) -> Listing:
    put(folder / "classInd.txt", ["\ufeff" + classes[0], *classes[1:], ""], "\r\n")
    put(folder / "trainlist02.txt", ["\ufeff" + train[0], "", *train[1:]], "\r\n")
    put(folder / "testlist02.txt", test, "\r\n")
    return UCF101(annotations=str(folder), videos="/v", fold=2).read()


def test_test_lists_have_no_labels_and_groups_are_of_a_class(tmp_path: Path) -> None:
    listing = read(tmp_path, [TRAIN, "YoYo/v_YoYo_g08_c01.avi 2"], [TEST])
    assert listing.classes == ("Archery", "YoYo")
    assert [(s.id, s.split, s.label, s.label_name, s.group) for s in listing.sources] == [
        ("Archery/v_Archery_g08_c01.avi", "train", 0, "Archery", "Archery_g08"),
        ("YoYo/v_YoYo_g08_c01.avi", "train", 1, "YoYo", "YoYo_g08"),
        ("YoYo/v_YoYo_g01_c02.avi", "test", 1, "YoYo", "YoYo_g01"),
    ]
    assert group_of("HandstandPushups/v_HandStandPushups_g08_c01.avi", "") == "HandStandPushups_g08"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Archery/v_Archery_g08_c02.avi 2", "class number 2, but Archery is 1 in classInd.txt"),
        ("Archery/v_Archery_g08_c02.avi", "class number '' is not a whole number"),
        ("Archery/v_Archery_g08_c02.avi\t1", "class number '' is not a whole number"),
        ("Diving/v_Diving_g08_c02.avi 1", "'Diving' is none of the 2 classes"),
        ("Archery/Archery_8_2.avi 1", "expected Class/v_Class_gNN_cNN.avi"),
        ("../v_Archery_g08_c02.avi 1", "leads out of the root"),
        (TRAIN, "is listed already in"),
    ],
)
def test_malformed_lines_name_file_and_line(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(ManifestError, match=r"trainlist02\.txt:3: ") as caught:
        read(tmp_path, [TRAIN, line], [TEST])
    assert why in str(caught.value)


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"testlist02\.txt:1: .* already in .*trainlist02.*:1"):
        read(tmp_path, [TRAIN], [TRAIN.removesuffix(" 1")])
    with pytest.raises(ManifestError, match=r"testlist02\.txt: lists no videos"):
        read(tmp_path, [TRAIN], [])
    with pytest.raises(ManifestError, match=r"classInd\.txt:2: expected '2 Class', got '3 YoYo'"):
        read(tmp_path, [TRAIN], [TEST], ("1 Archery", "3 YoYo"))
    with pytest.raises(ManifestError, match=r"classInd\.txt:2: class 'Archery' is there already"):
        read(tmp_path, [TRAIN], [TEST], ("1 Archery", "2 Archery"))


@pytest.mark.real
@needs_annotations
def test_the_official_first_split() -> None:
    listing = UCF101(annotations=str(ANNOTATIONS / "ucf101"), videos="/v").read()
    assert counts(listing) == {"train": 9_537, "test": 3_783}
    assert used(listing) == set(range(101))
    groups = {
        split: {source.group for source in listing.sources if source.split == split}
        for split in ("train", "test")
    }
    assert not groups["train"] & groups["test"]
    assert len(groups["train"]) == 101 * 18
    assert len(groups["test"]) == 101 * 7
