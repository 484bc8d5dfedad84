"""Which videos a data set names: VideoMAE lists, class folders, tables. Nothing is opened here."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.images import is_image

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Folder names that are taken for splits when none are named."""

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".ts", ".mts", ".ogv"),
)

_LINE = re.compile(r"\s*(\S.*?)\s+(\S+)\s*")


@dataclass(frozen=True, slots=True)
class Source:
    """A video as a data set names it.

    Attributes:
        id: path relative to the root of the data set, so the same on every machine.
        path: absolute path or URI of the file, or of a folder of images.
        split: `train`, `validation` or `test`.
        label: class index, or None.
        label_name: name of the class, or None.
        group: what must not be divided between training and validation, such as a subject.
        start_s: where the part to use begins, seconds; None = the start of the file.
        end_s: where it ends; None = the end of the file.
    """

    id: str
    path: str
    split: Split
    label: int | None = None
    label_name: str | None = None
    group: str | None = None
    start_s: float | None = None
    end_s: float | None = None


def from_list(file: str, root: str | None, split: Split) -> list[Source]:
    """Videos of a VideoMAE list: lines `path label`, the label the last field.

    Args:
        file: of the list; UTF-8, with or without a byte order mark, any line ends.
        root: where relative paths start; None = the folder of the list.
        split: that the list is.

    Raises:
        ManifestError: naming file and line of what is malformed or listed twice.
    """
    root = storage.absolute(root if root is not None else file.rpartition("/")[0] or ".")
    found: list[Source] = []
    first_line: dict[str, int] = {}
    for number, line in _lines(file):
        where = f"{file}:{number}"
        match = _LINE.fullmatch(line)
        if match is None:
            raise ManifestError(f"{where}: expected 'path label', got {line.strip()!r}")
        path, label = match.groups()
        if not re.fullmatch(r"\d+", label, re.ASCII):
            raise ManifestError(
                f"{where}: label {label!r} is not a whole number from 0 up; a line is 'path label'"
            )
        id, located = _locate(root, path, where)
        if id in first_line:
            raise ManifestError(f"{where}: {path!r} is listed already in line {first_line[id]}")
        first_line[id] = number
        found.append(Source(id, located, split, int(label)))
    if not found:
        raise ManifestError(f"{file}: lists no videos")
    return found


def from_folders(root: str, splits: Mapping[str, Split] | None = None) -> list[Source]:
    """Videos in folders named after their class: `root/split/class/x.mp4` or `root/class/x.mp4`.

    A folder of images inside a class folder is one video. Classes are numbered in the order of
    their names, over all splits together.

    Args:
        root: of the data set.
        splits: split by folder; `.` is the root itself. None takes the folders named as in
            `SPLIT_FOLDERS`, or, where there is none, everything for training.

    Raises:
        ManifestError: there are no videos, or some lie outside the folders of splits and classes.
    """
    root = storage.absolute(root)
    videos = _videos_under(root)
    if not videos:
        raise ManifestError(f"no videos under {root}; looked for {', '.join(VIDEO_SUFFIXES)}")
    if splits is None:
        folders = {id.partition("/")[0] for id in videos if "/" in id}
        splits = {name: SPLIT_FOLDERS[name] for name in sorted(folders & set(SPLIT_FOLDERS))}
        splits = splits or {".": "train"}
    found, outside = [], []
    for id in videos:
        folder, inside = ("", id) if "." in splits else _head(id)
        class_name, name = _head(inside)
        split = splits.get(folder or ".")
        if split is None or not name:
            outside.append(id)
        else:
            path = storage.join(root, id)
            found.append(Source(id, path, split, label_name=class_name))
    if outside:
        names = ", ".join(splits)
        raise ManifestError(
            f"{len(outside)} of {len(videos)} videos under {root} are not in a class folder of the"
            f" splits ({names}), such as {outside[0]}; move them, or say which folders are splits"
        )
    for folder in splits:
        if folder != "." and not any(source.id.startswith(f"{folder}/") for source in found):
            raise ManifestError(f"no videos under {storage.join(root, folder)}")
    return _number_classes(found)


def from_table(file: str, root: str | None) -> list[Source]:
    """Videos of a manifest, Parquet or CSV with a header, whose files are to be measured anew.

    Columns `path` and `split` are needed; `id`, `label`, `label_name`, `group`, `start_s` and
    `end_s` are used when there.

    Args:
        file: of the manifest.
        root: where relative paths start; None = the folder of the manifest.

    Raises:
        ManifestError: naming file, row and column of what is malformed.
    """
    root = storage.absolute(root if root is not None else file.rpartition("/")[0] or ".")
    if file.lower().endswith(".csv"):
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(_text(file), newline="")))
    else:
        rows = storage.read_table(file).to_pylist()
    if not rows:
        raise ManifestError(f"{file}: lists no videos")
    for column in ("path", "split"):
        if column not in rows[0]:
            raise ManifestError(f"{file} has no column '{column}'; it has {', '.join(rows[0])}")
    # A header is the first line of a CSV file.
    first = 2 if file.lower().endswith(".csv") else 1
    return [_from_row(row, root, f"{file}: row {n}") for n, row in enumerate(rows, first)]


def named(sources: Sequence[Source], names: Sequence[str]) -> list[Source]:
    """The same with the class names `names`, by label.

    Raises:
        ManifestError: a label has no name.
    """
    high = max((source.label for source in sources if source.label is not None), default=-1)
    if high >= len(names):
        raise ManifestError(f"label {high} has no name; the names end at {len(names) - 1}")
    return [
        source if source.label is None else replace(source, label_name=names[source.label])
        for source in sources
    ]


def read_names(file: str) -> list[str]:
    """Class names, one per line, in the order of the labels."""
    return [line.strip() for _, line in _lines(file)]


def grouped(sources: Sequence[Source], pattern: str) -> list[Source]:
    """The same with groups from a regular expression on the id: its first group, or all of it.

    Raises:
        ManifestError: the expression does not match an id.
    """
    found = []
    for source in sources:
        match = re.search(pattern, source.id)
        if match is None:
            raise ManifestError(f"group pattern {pattern!r} matches nothing in {source.id!r}")
        found.append(replace(source, group=match.group(1 if match.re.groups else 0)))
    return found


def _from_row(row: Mapping[str, Any], root: str, where: str) -> Source:
    path, split = row["path"], row["split"]
    if not path:
        raise ManifestError(f"{where}: no path")
    if split not in SPLITS:
        raise ManifestError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    id, located = _locate(root, path, where)
    label = _number(row, "label", where)
    if label is not None and (label < 0 or not label.is_integer()):
        raise ManifestError(f"{where}: label {row['label']!r} is not a whole number from 0 up")
    return Source(
        id=row.get("id") or id,
        path=located,
        split=split,
        label=None if label is None else int(label),
        label_name=row.get("label_name") or None,
        group=row.get("group") or None,
        start_s=_number(row, "start_s", where),
        end_s=_number(row, "end_s", where),
    )


def _number(row: Mapping[str, Any], column: str, where: str) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except ValueError as error:
        raise ManifestError(f"{where}: {column} {value!r} is not a number") from error


def _text(file: str) -> str:
    try:
        return storage.read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file} is not UTF-8 text ({error}); convert it") from error


def _lines(file: str) -> Iterable[tuple[int, str]]:
    """Numbered lines that are not blank. Only line feeds end a line: names may hold the rest."""
    text = _text(file).replace("\r\n", "\n")
    return ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())


def _locate(root: str, path: str, where: str) -> tuple[str, str]:
    """Id and absolute path of a listed path."""
    if "://" in path or path.startswith("/"):
        located = storage.absolute(path)
        inside = located.startswith(root.rstrip("/") + "/")
        return (located[len(root.rstrip("/")) + 1 :] if inside else located.lstrip("/")), located
    id = posixpath.normpath(path)
    if id == ".." or id.startswith("../"):
        raise ManifestError(f"{where}: {path!r} leads out of the root {root}")
    return id, storage.join(root, id)


def _head(path: str) -> tuple[str, str]:
    head, _, rest = path.partition("/")
    return head, rest


def _videos_under(root: str) -> list[str]:
    """Ids of all videos under `root`, sorted: files, and folders that hold images."""
    prefix = len(root.rstrip("/")) + 1
    files = [file[prefix:] for file in storage.list_files(root)]
    videos = {file for file in files if file.lower().endswith(VIDEO_SUFFIXES)}
    folders = {file.rpartition("/")[0] for file in files if is_image(file) and "/" in file}
    return sorted(videos | folders)


def _number_classes(sources: Sequence[Source]) -> list[Source]:
    names = sorted({str(source.label_name) for source in sources})
    label = {name: index for index, name in enumerate(names)}
    return [replace(source, label=label[str(source.label_name)]) for source in sources]
