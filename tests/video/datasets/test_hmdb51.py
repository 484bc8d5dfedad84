"""HMDB51: a file per class, names with everything in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_data_sets import put
from real_annotations import ANNOTATIONS, counts, needs_annotations, used

from kinema.errors import ManifestError
from kinema.video.datasets.hmdb51 import HMDB51, film_of
from kinema.video.sources import Listing

ODD = "(HQ)_#4!_[x]+&;~@ caf\u00e9_ride_bike_u_nm_np1_ba_goo_0.avi"
OTHER_FORM = ODD.replace("\u00e9", "e\u0301")


def read(folder: Path, *lines: str) -> Listing:
    for name in ["ride_bike", *(f"x{number:02}" for number in range(50))]:
        put(folder / f"{name}_test_split3.txt", lines if name == "ride_bike" else [], "\r\n")
    put(folder / "ride_bike_test_split1.txt", ["of another split 1"])
    return HMDB51(annotations=str(folder), videos="/v", fold=3).read()


def test_odd_names_survive_and_unused_videos_are_left_out(tmp_path: Path) -> None:
    unused = "a_ride_bike_ride_bike_f_cm_np1_le_bad_3.avi"
    listing = read(tmp_path, f"\ufeff{ODD} 1 ", f"{OTHER_FORM} 2", f"{unused} 0 ")
    assert [(s.id, s.path, s.split, s.group) for s in listing.sources] == [
        (f"ride_bike/{ODD}", f"/v/ride_bike/{ODD}", "train", ODD.partition("_ride")[0]),
        (f"ride_bike/{OTHER_FORM}", f"/v/ride_bike/{OTHER_FORM}", "test", OTHER_FORM[:23]),
    ]
    assert listing.classes is not None
    assert (len(listing.classes), listing.sources[0].label_name) == (51, "ride_bike")
    assert film_of(unused, "ride_bike", "") == "a_ride_bike"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a_ride_bike_u_0.avi 3", "expected 'name.avi 0', 1 or 2"),
        ("a_ride_bike_u_0.avi", "expected 'name.avi 0', 1 or 2"),
        ("a_walk_u_0.avi 1", "expected FILM_ride_bike_...avi, got 'a_walk_u_0.avi'"),
        ("_ride_bike_u_0.avi 0", "expected FILM_ride_bike_...avi"),
        ("../../a_ride_bike_u_0.avi 1", "leads out of the root"),
        (f"{ODD} 0", "is listed already in"),
    ],
)
def test_malformed_lines_name_file_and_line(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(ManifestError, match=r"ride_bike_test_split3\.txt:3: ") as caught:
        read(tmp_path, f"{ODD} 1", "", line)
    assert why in str(caught.value)


def test_missing_class_files_are_counted(tmp_path: Path) -> None:
    read(tmp_path, f"{ODD} 1")
    with pytest.raises(ManifestError, match=r"\*_test_split2\.txt of 0 classes, not of the 51"):
        HMDB51(annotations=str(tmp_path), videos="/v", fold=2).read()
    (tmp_path / "x07_test_split3.txt").unlink()
    with pytest.raises(ManifestError, match=r"\*_test_split3\.txt of 50 classes"):
        HMDB51(annotations=str(tmp_path), videos="/v", fold=3).read()


@pytest.mark.real
@needs_annotations
def test_the_official_first_split() -> None:
    listing = HMDB51(annotations=str(ANNOTATIONS / "hmdb51"), videos="/v").read()
    assert counts(listing) == {"train": 3_570, "test": 1_530}
    assert used(listing) == set(range(51))
    ids = {source.id for source in listing.sources}
    characters = set("".join(ids))
    assert characters >= set("!()[]#&+;@-")
    assert (
        "climb/(HQ)_Rock_Climbing_-_Free_Solo_Speed_Climb_-_Dan_Osman_climb_f_cm_np1_ba_med_0.avi"
        in ids
    )
