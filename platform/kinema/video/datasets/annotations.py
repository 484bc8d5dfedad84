"""Annotation files read strictly: every row or entry comes with its `file:line`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from kinema.errors import ManifestError
from kinema.video.sources import read_text

T = TypeVar("T")
S = TypeVar("S")
_MOST_SHOWN = 10
_BETWEEN = re.compile(r"[ \t\r\n,]*")


class Places:
    """Remembers where each name was listed, so that none is listed twice."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def add(self, name: str, where: str) -> None:
        """Note that `name` is listed at `where`.

        Raises:
            ManifestError: it was listed before; names both places.
        """
        if name in self._first:
            raise ManifestError(
                f"{where}: {name!r} is listed already in {self._first[name]}; list every video once"
            )
        self._first[name] = where


def each(lines: Iterable[tuple[str, T]], read: Callable[[str, T], S]) -> list[S]:
    """What `read` makes of every line or entry.

    Args:
        lines: `file:line` and content of each.
        read: called with both; raises ManifestError for what is malformed.

    Raises:
        ManifestError: naming all that are malformed, the first ten in full.
    """
    found, wrong = [], []
    for where, content in lines:
        try:
            found.append(read(where, content))
        except ManifestError as error:
            wrong.append(str(error))
    if len(wrong) == 1:
        raise ManifestError(wrong[0])
    if wrong:
        shown = [f"  - {text}" for text in wrong[:_MOST_SHOWN]]
        rest = len(wrong) - len(shown)
        shown += [f"  and {rest} more"] if rest else []
        raise ManifestError("\n".join([f"{len(wrong)} malformed lines", *shown]))
    return found


def read_csv(file: str, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """`file:line` and fields of every row of a CSV file with a header.

    Args:
        file: path or URI; UTF-8, with or without a byte order mark, any line ends.
        columns: that must be there and filled; others are kept.

    Raises:
        ManifestError: a column is missing or a field of it empty, a row has more or fewer fields
            than the header, quotes are not closed, or there are no rows.
    """
    records = _records(file)
    start, header = next(records, (f"{file}:1", []))
    absent = [column for column in columns if column not in header]
    if absent:
        raise ManifestError(
            f"{start}: no column {', '.join(map(repr, absent))}; it has {', '.join(header)}"
        )

    def read(where: str, fields: list[str]) -> tuple[str, dict[str, str]]:
        if len(fields) != len(header):
            raise ManifestError(
                f"{where}: not the {len(header)} fields of the header, but {len(fields)}"
            )
        row = dict(zip(header, fields, strict=True))
        empty = [column for column in columns if not row[column].strip()]
        if empty:
            raise ManifestError(f"{where}: no {empty[0]}")
        return where, row

    rows = each(records, read)
    if not rows:
        raise ManifestError(f"{file}: lists no videos")
    return rows


def read_json(file: str) -> Any:
    """The value of a JSON file, in whose objects no key is twice.

    Raises:
        ManifestError: naming the line where it is not JSON, or the key that is twice.
    """
    return _parse(file, read_text(file))


def read_entries(file: str, kinds: Mapping[str, type]) -> list[tuple[str, dict[str, Any]]]:
    """`file:line` and value of every entry of a JSON list of objects.

    Args:
        file: path or URI.
        kinds: type of each key that must be there; others are kept.

    Raises:
        ManifestError: it is not such a list, an entry lacks a key or has one of another type, or
            the list is empty.
    """
    text = read_text(file)
    entries = _parse(file, text)
    if not isinstance(entries, list) or not entries:
        raise ManifestError(f"{file}: expected a list of videos")

    def read(where: str, entry: Any) -> tuple[str, dict[str, Any]]:
        if not isinstance(entry, dict):
            raise ManifestError(f"{where}: expected an object with {', '.join(kinds)}")
        for key, kind in kinds.items():
            # bool is an int in Python, and not in an annotation.
            if key not in entry or type(entry[key]) is not kind:
                raise ManifestError(f"{where}: expected '{key}' to be there as {kind.__name__}")
        return where, entry

    places = (f"{file}:{line}" for line in _item_lines(text, len(entries)))
    return each(zip(places, entries, strict=True), read)


def whole_number(text: str, what: str, where: str) -> int:
    """A number written in digits only.

    Raises:
        ManifestError: it is something else, such as a negative number or one with a point.
    """
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise ManifestError(f"{where}: {what} {text!r} is not a whole number from 0 up")
    return int(text)


def in_range(label: int, classes: Sequence[str], where: str) -> int:
    """The label.

    Raises:
        ManifestError: it names none of `classes`.
    """
    if not 0 <= label < len(classes):
        raise ManifestError(f"{where}: class {label} is none of the {len(classes)} classes")
    return label


def class_index(name: str, labels: Mapping[str, int], where: str) -> int:
    """The label of a class.

    Raises:
        ManifestError: there is no such class.
    """
    if name not in labels:
        raise ManifestError(f"{where}: {name!r} is none of the {len(labels)} classes")
    return labels[name]


def check_pattern(pattern: str, example: Mapping[str, object]) -> None:
    """Refuse a pattern of a path that the fields of `example` do not fill.

    Raises:
        ValueError: naming the pattern and the fields it may have.
    """
    try:
        pattern.format(**example)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        fields = ", ".join(f"{{{name}}}" for name in example)
        raise ValueError(f"pattern {pattern!r} is not a path made of {fields}: {error}") from error


def _records(file: str) -> Iterator[tuple[str, list[str]]]:
    """Records that are not blank, each with the line it begins on."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    while True:
        where = f"{file}:{reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ManifestError(f"{where}: {error}") from error
        if fields is None:
            return
        if fields:
            yield where, fields


def _parse(file: str, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        if len(counts) < len(pairs):
            raise ManifestError(f"{file}: key {counts.most_common(1)[0][0]!r} is there twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{file}:{error.lineno}: not JSON: {error.msg}") from error


def _item_lines(text: str, count: int) -> Iterator[int]:
    """Lines on which the items of a well-formed JSON list begin; the parser does not tell."""
    decoder = json.JSONDecoder()
    line, counted, end = 1, 0, text.index("[") + 1
    for _ in range(count):
        start = end + len(_BETWEEN.match(text, end)[0])  # type: ignore[index]
        line, counted = line + text.count("\n", counted, start), start
        yield line
        end = decoder.raw_decode(text, start)[1]
