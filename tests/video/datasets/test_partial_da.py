"""Partial domain adaptation: two trees, the source's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_data_sets import make_partial_da, put
from real_annotations import ANNOTATIONS, counts, needs_annotations

from kinema.errors import ManifestError, StorageError
from kinema.video.datasets.partial_da import Direction, PartialDA
from kinema.video.sources import Listing

SAME = {
    ("Archery", "shoot_bow"),
    ("Basketball", "shoot_ball"),
    ("Biking", "ride_bike"),
    ("Diving", "dive"),
    ("Fencing", "fencing"),
    ("GolfSwing", "golf"),
    ("HandstandWalking", "handstand"),
    ("HorseRiding", "ride_horse"),
    ("PullUps", "pullup"),
    ("Punch", "punch"),
    ("PushUps", "pushup"),
    ("RockClimbingIndoor", "climb"),
    ("SoccerPenalty", "kick_ball"),
    ("WalkingWithDog", "walk"),
}
"""The classes that the two data sets share, by the names of their folders."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_partial_da(tmp_path)
    return tmp_path / "a"


def read(folder: Path, direction: Direction = "ucf14_hmdb7", **more: object) -> Listing:
    return PartialDA(
        annotations=str(folder), direction=direction, ucf101="/u", hmdb51="/h", **more
    ).read()


def test_the_target_carries_the_sources_numbers_and_names(folder: Path) -> None:
    listing = read(folder)
    assert listing.classes == ("Biking", "Punch", "PullUps")
    source, target = listing.sources[0], listing.sources[-1]
    assert (source.split, source.extra, source.group) == (
        "train",
        {"domain": "source"},
        "Biking_g00",
    )
    assert (target.split, target.extra) == ("test", {"domain": "target"})
    assert (target.label, target.label_name) == (0, "Biking")
    assert target.path.startswith("/h/ride_bike/")
    assert target.group == "#4_(A)_[B]!+&_last"


def test_more_parts_get_the_splits_asked_for(folder: Path) -> None:
    put(folder / "ucf101_test_uh.txt", ["\ufeff0\t1\tPunch/v_Punch_g11_c01.avi"], "\r\n")
    put(folder / "hmdb51_train_uh.txt", ["0\t1\tpunch/caf\u00e9 x_punch_u_0.avi"])
    listing = read(folder, source_test="validation", target_train="train")
    added = [(s.id, s.split) for s in listing.sources if "g11" in s.id or "caf" in s.id]
    assert added == [
        ("ucf101/Punch/v_Punch_g11_c01.avi", "validation"),
        ("hmdb51/punch/caf\u00e9 x_punch_u_0.avi", "train"),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("3\t0\tride_bike/a_ride_bike_0.avi", "index 3, expected 2"),
        ("2 0 ride_bike/a_ride_bike_0.avi", "expected index, label and path with tabs between"),
        ("2\t3\twalk/a_walk_0.avi", "the source has no class 3"),
        ("2\t0\twalk/a_walk_0.avi", "class 0 is 'ride_bike', not 'walk'"),
        ("2\t2\tpunch/a_punch_0.avi", "'punch' is class 1, not 2"),
        ("2\t-1\tpunch/a_punch_0.avi", "label '-1' is not a whole number"),
        ("2\t1\tpunch/a_walk_0.avi", "expected FILM_punch_...avi"),
        ("2\t1\t../punch/a_punch_0.avi", "leads out of the root"),
    ],
)
def test_malformed_lines_name_file_and_line(folder: Path, line: str, why: str) -> None:
    file = folder / "hmdb51_test_uh.txt"
    lines = file.read_text().splitlines()[:2]
    put(file, [lines[0], lines[1], line])
    with pytest.raises(ManifestError, match=r"hmdb51_test_uh\.txt:3: ") as caught:
        read(folder)
    assert why in str(caught.value)


def test_gaps_and_missing_lists_are_named(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"hmdb51_train_hu\.txt does not exist"):
        read(folder, "hmdb14_ucf7")
    put(folder / "ucf101_train_uh.txt", ["0\t1\tPunch/v_Punch_g11_c01.avi"])
    put(folder / "hmdb51_test_uh.txt", ["0\t1\tpunch/a_punch_0.avi"])
    with pytest.raises(ManifestError, match=r"the source's labels are \[1\], not the numbers"):
        read(folder)


@pytest.mark.real
@needs_annotations
@pytest.mark.parametrize(
    ("direction", "sizes"),
    [
        ("ucf14_hmdb7", {"train": 1_324, "validation": 490, "test": 210}),
        ("hmdb14_ucf7", {"train": 980, "validation": 658, "test": 266}),
    ],
)
def test_the_official_lists(direction: Direction, sizes: dict[str, int]) -> None:
    listing = read(ANNOTATIONS / "partial_da", direction, target_train="validation")
    assert counts(listing) == sizes
    assert listing.classes is not None
    assert len(listing.classes) == 14
    pairs = set()
    for source in listing.sources:
        tree, folder, _ = source.id.split("/")
        pair = (folder, source.label_name) if tree == "ucf101" else (source.label_name, folder)
        if source.extra["domain"] == "target":
            pairs.add(pair)
        else:
            assert folder == source.label_name
    assert len(pairs) == 7
    assert pairs <= SAME
