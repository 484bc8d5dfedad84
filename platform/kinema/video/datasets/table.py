"""An existing manifest, or a table like one, whose files are to be measured anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.annotations import Places, each, read_csv
from kinema.video.datasets.rule import DatasetRule
from kinema.video.rows import SCHEMA, read_classes
from kinema.video.sources import (
    SPLITS,
    Listing,
    Source,
    folder_of,
    grouped,
    locate,
    named,
    read_names,
)


class Table(DatasetRule):
    """A Parquet or CSV table with the columns `path` and `split`."""

    name: Literal["manifest"] = "manifest"
    source: str = Field(description="the table, Parquet or CSV with a header")
    root: str | None = Field(
        None, description="where relative paths start; null = the folder of the table"
    )
    classes: str | None = Field(
        None, description="file of class names in the order of labels; null = the manifest's own"
    )
    group: str | None = Field(
        None, description="regular expression on the relative path that gives the group: '(S\\d)_'"
    )

    def read(self) -> Listing:
        """As `from_table`, with the classes that a manifest defines."""
        sources = from_table(self.source, self.root)
        classes: tuple[str, ...] | None = None
        if self.classes is not None:
            classes = tuple(read_names(self.classes))
            sources = named(sources, classes)
        elif not _is_csv(self.source):
            classes = read_classes(storage.read_table(self.source, ["path"]))
        sources = sources if self.group is None else grouped(sources, self.group)
        root = folder_of(self.source) if self.root is None else storage.absolute(self.root)
        return Listing(sources, classes, {"dataset.root": root})


def from_table(file: str, root: str | None) -> list[Source]:
    """Videos of a manifest, Parquet or CSV with a header.

    Columns `path` and `split` are needed; `id`, `label`, `label_name`, `group`, `start_s` and
    `end_s` are used when there; columns that no manifest has are kept; measures are made anew.

    Args:
        file: of the manifest.
        root: where relative paths start; None = the folder of the manifest.

    Raises:
        ManifestError: naming file, line or row, and column of all that is malformed or listed
            twice.
    """
    root = folder_of(file) if root is None else storage.absolute(root)
    if _is_csv(file):
        rows: list[tuple[str, dict[str, Any]]] = list(read_csv(file, ("path", "split")))
    else:
        table = storage.read_table(file).to_pylist()
        rows = [(f"{file}: row {number}", row) for number, row in enumerate(table, 1)]
    if not rows:
        raise ManifestError(f"{file}: lists no videos")
    columns = list(rows[0][1])
    for column in ("path", "split"):
        if column not in columns:
            raise ManifestError(f"{file} has no column '{column}'; it has {', '.join(columns)}")
    places = Places()
    return each(rows, lambda where, row: _from_row(row, root, where, places))


def _is_csv(file: str) -> bool:
    return file.lower().endswith(".csv")


def _from_row(row: Mapping[str, Any], root: str, where: str, places: Places) -> Source:
    path, split = row["path"], row["split"]
    if not path:
        raise ManifestError(f"{where}: no path")
    if split not in SPLITS:
        raise ManifestError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    id, located = locate(root, path, where)
    id = row.get("id") or id
    places.add(id, where)
    label = _number(row, "label", where)
    if label is not None and (label < 0 or not label.is_integer()):
        raise ManifestError(f"{where}: label {row['label']!r} is not a whole number from 0 up")
    return Source(
        id=id,
        path=located,
        split=split,
        label=None if label is None else int(label),
        label_name=row.get("label_name") or None,
        group=row.get("group") or None,
        start_s=_number(row, "start_s", where),
        end_s=_number(row, "end_s", where),
        extra={name: value for name, value in row.items() if name not in SCHEMA.names},
    )


def _number(row: Mapping[str, Any], column: str, where: str) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except ValueError as error:
        raise ManifestError(f"{where}: {column} {value!r} is not a number") from error
