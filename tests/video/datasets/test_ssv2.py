"""Something-Something V2: templates to labels, at full size and in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_data_sets import put_json
from real_annotations import ANNOTATIONS, counts, needs_annotations, used
from tiny_videos import write

from kinema.errors import ManifestError
from kinema.video.datasets.ssv2 import SSv2
from kinema.video.sources import Listing

LABELS = {"Moving something, slowly": "1", "Caf\u00e9 something": "0", "a": "2"}


def read(folder: Path, **more: object) -> Listing:
    return SSv2(annotations=str(folder), videos="/v", splits=["validation"], **more).read()


def put(folder: Path, text: str, labels: object = LABELS) -> None:
    put_json(folder / "something-something-v2-labels.json", labels)
    write(folder / "something-something-v2-validation.json", text)


def test_templates_lose_their_brackets(tmp_path: Path) -> None:
    put(
        tmp_path,
        '\ufeff[\r\n{"id":"7","template":"Moving [something], slowly","placeholders":["[x]"]},\r\n'
        '{"id":"8","template":"Caf\u00e9 [something]"}\r\n]\r\n',
    )
    listing = read(tmp_path)
    assert listing.classes == ("Caf\u00e9 something", "Moving something, slowly", "a")
    assert [(s.id, s.path, s.label, s.label_name) for s in listing.sources] == [
        ("7", "/v/7.webm", 1, "Moving something, slowly"),
        ("8", "/v/8.webm", 0, "Caf\u00e9 something"),
    ]
    encoded = read(tmp_path, suffix=".mp4")
    assert [(s.id, s.path) for s in encoded.sources] == [("7", "/v/7.mp4"), ("8", "/v/8.mp4")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            '[\n{"id":"7","template":"Cafe\u0301 [something]"}]',
            ":2: 'Cafe\u0301 something' is none",
        ),
        ('[\n{"id":7,"template":"x"}]', ":2: expected 'id' to be there as str"),
        ('[\n\n{"id":"7"}]', ":3: expected 'template' to be there as str"),
        ('[\n["7"]]', ":2: expected an object with id, template"),
        ('[{"id":"7","template":"a"},\n{"id":"7","template":"a"}]', ":2: '7' is listed already"),
        ('[\n{"id":"../7","template":"Caf\u00e9 something"}]', ":2: '../7.webm' leads out"),
        ('[\n{"id":"7",\n}]', ":3: not JSON"),
        ("[]", ": expected a list of videos"),
        ("{}", ": expected a list of videos"),
    ],
)
def test_malformed_entries_name_file_and_line(tmp_path: Path, text: str, why: str) -> None:
    put(tmp_path, text)
    with pytest.raises(ManifestError) as caught:
        read(tmp_path)
    start = f"{tmp_path}/something-something-v2-validation.json{why}"
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"a": "0", "b": "2"}, "the labels are not the numbers 0 to 1"),
        ({"a": "0", "b": "0"}, "the labels are not the numbers 0 to 1"),
        ({"a": "-1"}, "label of 'a' '-1' is not a whole number"),
        ({"a": 0}, "expected an object of label numbers in quotes"),
        (["a"], "expected an object of label numbers in quotes"),
    ],
)
def test_malformed_labels_are_named(tmp_path: Path, labels: object, why: str) -> None:
    put(tmp_path, '[{"id":"7","template":"a"}]', labels)
    with pytest.raises(ManifestError, match=rf"labels\.json: {why}"):
        read(tmp_path)


def test_a_label_that_is_there_twice_is_named(tmp_path: Path) -> None:
    put(tmp_path, '[{"id":"7","template":"a"}]')
    write(tmp_path / "something-something-v2-labels.json", '{"a": "0", "b": "1", "a": "2"}')
    with pytest.raises(ManifestError, match="key 'a' is there twice"):
        read(tmp_path)


@pytest.mark.real
@needs_annotations
def test_the_official_files() -> None:
    folder = str(ANNOTATIONS / "ssv2")
    listing = SSv2(annotations=folder, videos="/v", splits=["validation", "test"]).read()
    assert counts(listing) == {"validation": 24_777, "test": 27_157}
    assert used(listing) == {None, *range(174)}
    assert listing.classes is not None
    assert len(listing.classes) == 174
    assert listing.classes[0] == "Approaching something with your camera"
    spinning = listing.sources[0]
    assert (spinning.id, spinning.label) == ("74225", 140)
    assert listing.classes[140] == "Spinning something that quickly stops spinning"
    with pytest.raises(ManifestError, match=r"train\.json does not exist; .*splits=\[validation\]"):
        SSv2(annotations=folder, videos="/v").read()
