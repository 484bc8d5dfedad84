"""A video as a data set names it, and the text that names it. Nothing is opened here."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from kinema import storage
from kinema.errors import ManifestError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Source:
    """A video, or a part of one, as a data set names it.

    Attributes:
        id: path relative to the root of the data set, or the annotation's own name of the entry;
            the same on every machine.
        path: absolute path or URI of the file, or of a folder of images.
        split: `train`, `validation` or `test`.
        label: class index, or None.
        label_name: name of the class, or None.
        group: what must not be divided between training and validation, such as a subject.
        start_s: where the part to use begins, seconds; None = the start of the file.
        end_s: where it ends; None = the end of the file.
        claimed_s: seconds that the whole file lasts by its annotation; None = not said.
        claimed_frames: frames that the whole file has by its annotation; None = not said.
        extra: further columns of the manifest; all sources of a data set have the same.
    """

    id: str
    path: str
    split: Split
    label: int | None = None
    label_name: str | None = None
    group: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    claimed_s: float | None = None
    claimed_frames: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """All that a data set names.

    Attributes:
        sources: the videos, at least one.
        classes: names of the classes that are defined, by label, whether or not they have videos;
            None = not said.
        roots: setting that says where files are -> where that is.
    """

    sources: list[Source]
    classes: tuple[str, ...] | None
    roots: Mapping[str, str]


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


def read_text(file: str) -> str:
    """A UTF-8 text without its byte order mark.

    Raises:
        ManifestError: it is not UTF-8.
    """
    try:
        return storage.read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file} is not UTF-8 text ({error}); convert it") from error


def read_lines(file: str) -> Iterator[tuple[str, str]]:
    """`file:line` and text of the lines that are not blank.

    Only line feeds end a line, with or without a carriage return: names may hold the rest.
    """
    text = read_text(file).replace("\r\n", "\n")
    return (
        (f"{file}:{number}", line)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    )


def read_names(file: str) -> list[str]:
    """Names of classes, one per line, in the order of the labels.

    Raises:
        ManifestError: naming the line of a name that is there twice, or the file without names.
    """
    names: dict[str, str] = {}
    for where, line in read_lines(file):
        name = line.strip()
        if name in names:
            raise ManifestError(f"{where}: class {name!r} is there already, in {names[name]}")
        names[name] = where
    if not names:
        raise ManifestError(f"{file}: names no classes")
    return list(names)


def locate(root: str, path: str, where: str) -> tuple[str, str]:
    """Id and absolute path of a listed path.

    Args:
        root: absolute; where relative paths start.
        path: as listed.
        where: it is listed, for messages.

    Raises:
        ManifestError: a relative path leads out of the root.
    """
    if "://" in path or path.startswith("/"):
        located = storage.absolute(path)
        inside = located.startswith(root.rstrip("/") + "/")
        return (located[len(root.rstrip("/")) + 1 :] if inside else located.lstrip("/")), located
    id = posixpath.normpath(path)
    if id == ".." or id.startswith("../"):
        raise ManifestError(f"{where}: {path!r} leads out of the root {root}")
    return id, storage.join(root, id)


def folder_of(file: str) -> str:
    """The folder that a file lies in, absolute."""
    return storage.absolute(file.rpartition("/")[0] or ("/" if file.startswith("/") else "."))
