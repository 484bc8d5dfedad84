"""Diving48: a class without videos, and numbers of frames that are claims."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_data_sets import make_diving48, put_json
from real_annotations import ANNOTATIONS, counts, needs_annotations, used
from tiny_videos import write

from kinema.errors import ManifestError
from kinema.video.datasets.diving48 import Diving48

ENTRY = {"vid_name": "-m_q0_00155", "label": 1, "start_frame": 0, "end_frame": 48}
OTHER = ENTRY | {"vid_name": "-m_q0_00156"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_diving48(tmp_path)
    return tmp_path / "a"


def diving(folder: Path, **more: object) -> Diving48:
    return Diving48(annotations=str(folder), videos="/v", **more)


def test_dives_are_grouped_by_competition(folder: Path) -> None:
    put_json(folder / "Diving48_V2_train.json", [ENTRY | {"vid_name": "caf\u00e9 1_00001"}, ENTRY])
    listing = diving(folder, suffix=".avi").read()
    assert listing.classes == ("Back TUCK", "Back PIKE", "Unused")
    first, second = listing.sources[:2]
    assert (first.id, first.path) == ("caf\u00e9 1_00001", "/v/caf\u00e9 1_00001.avi")
    assert (second.group, second.label_name) == ("-m_q0", "Back PIKE")
    assert (second.split, second.claimed_frames) == ("train", 48)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"label": 3}, "class 3 is none of the 3 classes"),
        ({"label": -1}, "class -1 is none of the 3 classes"),
        ({"label": "1"}, "expected 'label' to be there as int"),
        ({"label": True}, "expected 'label' to be there as int"),
        ({"start_frame": 3}, "frames 3 to 48; a dive is a file of its own"),
        ({"end_frame": 0}, "frames 0 to 0"),
        ({"vid_name": "abc"}, "expected a vid_name VIDEO_NUMBER, got 'abc'"),
        ({"vid_name": "../a_1"}, "leads out of the root"),
        ({"vid_name": "-m_q0_00155"}, "is listed already in"),
    ],
)
def test_malformed_entries_name_file_and_line(
    folder: Path, change: dict[str, object], why: str
) -> None:
    put_json(folder / "Diving48_V2_train.json", [ENTRY, OTHER | change])
    # One key per line, and the list's bracket.
    with pytest.raises(ManifestError, match=r"Diving48_V2_train\.json:8: ") as caught:
        diving(folder).read()
    assert why in str(caught.value)


def test_a_damaged_vocabulary_is_named(folder: Path) -> None:
    for text in ('["Back"]', '{"0": ["Back"]}', "[[1]]"):
        write(folder / "Diving48_vocab.json", text)
        with pytest.raises(ManifestError, match=r"vocab\.json: expected a list of lists of words"):
            diving(folder).read()


@pytest.mark.real
@needs_annotations
def test_the_official_files() -> None:
    listing = diving(ANNOTATIONS / "diving48").read()
    assert counts(listing) == {"train": 15_027, "test": 1_970}
    assert listing.classes is not None
    assert len(listing.classes) == 48
    assert used(listing) == set(range(48)) - {30}
    groups = {
        split: {source.group for source in listing.sources if source.split == split}
        for split in ("train", "test")
    }
    assert not groups["train"] & groups["test"]
    assert all(source.claimed_frames for source in listing.sources)
