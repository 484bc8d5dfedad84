"""EPIC-KITCHENS-100: segments of long videos, three kinds of label."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from made_data_sets import make_epic100, put_csv
from pydantic import ValidationError
from real_annotations import ANNOTATIONS, counts, needs_annotations, used
from tiny_videos import write

from kinema.errors import ManifestError
from kinema.video.datasets.epic100 import Epic100

HEADER = (
    "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,"
    "verb_class,noun_class"
)
ROW = "P01_1_0,P01,P01_1,00:00:01.5,01:02:03.25,take,0,3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_epic100(tmp_path)
    return tmp_path / "a"


def epic(folder: Path, **more: object) -> Epic100:
    return Epic100(annotations=str(folder), videos="/v", **more)


def test_segments_have_times_groups_and_both_classes(folder: Path) -> None:
    text = f'\ufeff{HEADER}\r\nx!,P01,P01_1,00:00:01.5,01:02:03.25,"put, ""here""\r\nnow",1,2\r\n'
    write(folder / "EPIC_100_train.csv", text + ROW.replace("P01_1_0", "caf\u00e9"))
    first, second = epic(folder, lists={"train": "EPIC_100_train.csv"}).read().sources
    assert (first.id, first.path) == ("x!", "/v/P01/videos/P01_1.MP4")
    assert (first.start_s, first.end_s, first.claimed_s) == (1.5, 3723.25, 1.0)
    assert (first.group, first.extra) == ("P01", {"verb": 1, "noun": 2})
    assert second.id == "caf\u00e9"


def test_an_action_is_a_pair_that_is_there(folder: Path) -> None:
    rows = [ROW, ROW.replace("_1_0", "_1_1").replace("0,3", "1,0")]
    rows += [ROW.replace("_1_0", "_1_2").replace("0,3", "0,1")]
    write(folder / "EPIC_100_train.csv", "\n".join([HEADER, *rows]))
    expected = {
        "verb": (("take", "put"), [0, 1, 0]),
        "noun": (("n0", "n1", "n2", "n3"), [3, 0, 1]),
        "action": (("take n1", "take n3", "put n0"), [1, 2, 0]),
    }
    for label, (names, numbers) in expected.items():
        listing = epic(folder, label=label, lists={"train": "EPIC_100_train.csv"}).read()
        assert listing.classes == names
        assert [source.label for source in listing.sources] == numbers
        assert [source.label_name for source in listing.sources] == [names[n] for n in numbers]
        assert [source.extra["verb"] for source in listing.sources] == [0, 1, 0]


def test_trimmed_segments_are_files(folder: Path) -> None:
    found = epic(folder, trimmed=True).read().sources[0]
    assert (found.id, found.path) == ("P01_0_0", "/v/P01_0_0.mp4")
    assert (found.start_s, found.end_s, found.claimed_s) == (None, None, 0.95)
    pattern = "{participant}/{video_id}/{narration_id}.webm"
    found = epic(folder, trimmed=True, pattern=pattern).read().sources[0]
    assert found.path == "/v/P01/P01_0/P01_0_0.webm"
    assert epic(folder, pattern="{video_id}.mp4").read().sources[0].path == "/v/P01_0.mp4"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"pattern": "{narration_id}.mp4"}, "does not fit trimmed=false"),
        ({"pattern": "{video_id}.mp4", "trimmed": True}, "does not fit trimmed=true"),
        ({"pattern": "{video}.mp4"}, "is not a path made of {participant}, {video_id}"),
        ({"pattern": "{video_id.mp4"}, "is not a path made of"),
        ({"lists": {}}, "lists"),
        ({"label": "hand"}, "label"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        epic(Path("a"), **settings)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (ROW.replace("00:00:01.5", "0:00:01.5"), "time '0:00:01.5' is not HH:MM:SS.ff"),
        (ROW.replace("00:00:01.5", "00:61:01.5"), "time '00:61:01.5' is not"),
        (ROW.replace("00:00:01.5", "01:02:03.25"), "stops at 3723.25 s, before its start"),
        (ROW.replace("0,3", "2,3"), "class 2 is none of the 2 classes"),
        (ROW.replace("0,3", "0,NA"), "noun_class 'NA' is not a whole number"),
        (ROW.replace(",P01_1,", ",P01_99,"), "EPIC_100_video_info.csv has no video 'P01_99'"),
        (ROW.replace("P01_1_0", ""), "no narration_id"),
        (ROW + ",x", "not the 8 fields of the header, but 9"),
        (ROW + "\n" + ROW, "'P01_1_0' is listed already in"),
    ],
)
def test_malformed_rows_name_file_and_line(folder: Path, row: str, why: str) -> None:
    file = write(folder / "EPIC_100_train.csv", f"{HEADER}\n{row}\n")
    with pytest.raises(ManifestError) as caught:
        epic(folder, lists={"train": "EPIC_100_train.csv"}).read()
    line = 2 + row.count("\n")
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert why in str(caught.value)


def test_lists_without_classes_have_no_labels(folder: Path) -> None:
    header, row = HEADER.removesuffix(",verb_class,noun_class"), ROW.removesuffix(",0,3")
    write(folder / "test.csv", f"{header}\n{row}\n")
    found = epic(folder, lists={"test": "test.csv"}, label="action").read()
    assert found.classes == ()
    assert (found.sources[0].label, found.sources[0].extra) == (None, {"verb": None, "noun": None})
    write(folder / "test.csv", f"{header},verb_class\n{row},0\n")
    with pytest.raises(ManifestError, match="has no column 'noun_class'"):
        epic(folder, lists={"test": "test.csv"}).read()


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "EPIC_100_train.csv").unlink()
    with pytest.raises(ManifestError, match=r"train\.csv does not exist; .*lists={validation: E"):
        epic(folder).read()
    put_csv(folder / "EPIC_100_verb_classes.csv", ("id", "key"), [(1, "take")])
    with pytest.raises(ManifestError, match=r"verb_classes\.csv:2: id 1, expected 0"):
        epic(folder).read()


@pytest.mark.real
@needs_annotations
@pytest.mark.parametrize(
    ("label", "defined", "num_used"), [("verb", 97, 78), ("noun", 300, 211), ("action", 1352, 1352)]
)
def test_the_official_validation(label: str, defined: int, num_used: int) -> None:
    folder = ANNOTATIONS / "epic100"
    listing = epic(folder, label=label, lists={"validation": "EPIC_100_validation.csv"}).read()
    assert counts(listing) == {"validation": 9_668}
    assert listing.classes is not None
    assert len(listing.classes) == defined
    assert len(used(listing)) == num_used
    with (folder / "EPIC_100_validation.csv").open(newline="") as file:
        rows = {row["narration_id"]: row for row in csv.DictReader(file)}
    for source in listing.sources:
        row = rows[source.id]
        assert source.extra == {"verb": int(row["verb_class"]), "noun": int(row["noun_class"])}
        assert source.group == row["participant_id"]
        assert source.start_s is not None
        # The publishers number images that they took at 60 per second, whatever the video's rate.
        assert abs(60 * source.start_s - int(row["start_frame"])) < 1.5


@pytest.mark.real
@needs_annotations
def test_the_official_domain_adaptation_list() -> None:
    lists = {
        "train": "EPIC_100_uda_source_train.csv",
        "validation": "EPIC_100_validation.csv",
    }
    listing = epic(ANNOTATIONS / "epic100", lists=lists).read()
    assert counts(listing) == {"train": 16_115, "validation": 9_668}
    assert len(used(listing)) == 90
