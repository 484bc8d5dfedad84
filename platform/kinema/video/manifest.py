"""The manifest: one row per video with its split, label and measures, as a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kinema import storage
from kinema.config import fingerprint
from kinema.errors import ManifestError
from kinema.video.measure import measure
from kinema.video.rows import FAILURE_SCHEMA, SCHEMA, Entry, read_classes
from kinema.video.sources import SPLITS, Source

__all__ = ["FAILURE_SCHEMA", "SCHEMA", "Entry", "Manifest", "probe"]

_NULLABLE = {"label", "label_name", "group", "start_s", "end_s"}
_IDENTITY = ["id", "split", "label", "group", "start_s", "end_s", "num_frames", "fps", "digest"]
"""Columns that decide what a run computes; where the files lie does not."""


class Manifest:
    """A checked table of videos. Rows keep their order, which is part of what a run computes.

    Args:
        table: columns of `SCHEMA`, and any others; the metadata of its schema may define classes,
            see `rows.with_classes`.
        is_part: a selection, in which labels may have gaps.

    Attributes:
        table: the same, its columns in the order of `SCHEMA`.
        classes: names of the classes that are defined, by label; None = those that have videos.

    Raises:
        ManifestError: a column is missing or of the wrong type, an id is there twice, a split is
            unknown, a label is none of the defined classes, or, where none are defined, a label
            between 0 and the largest has no video.
    """

    def __init__(self, table: pa.Table, is_part: bool = False) -> None:
        self.table = _conform(table)
        self.classes = read_classes(self.table)
        _check_ids(self.table)
        _check_splits(self.table)
        if self.classes is not None:
            _check_classes(self.table, self.classes)
        elif not is_part:
            _check_labels(self.table)

    @classmethod
    def read(cls, uri: str) -> Manifest:
        """Read and check a Parquet file.

        Raises:
            ManifestError: naming the file and what is wrong with it.
        """
        if not storage.exists(uri):
            raise ManifestError(f"manifest {uri} does not exist; make it with jobs/index_videos.py")
        table = storage.read_table(uri)
        try:
            return cls(table)
        except ManifestError as error:
            raise ManifestError(f"{uri}: {error}") from error

    def write(self, uri: str) -> None:
        """Write as Parquet, whole or not at all."""
        storage.write_table(uri, self.table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def digest(self) -> str:
        """Names the rows, and the number of classes where they do not tell it."""
        rows = self.table.select(_IDENTITY).to_pydict()
        defined = None if self.classes is None else len(self.classes)
        more = () if defined is None or defined == self._num_used else (defined,)
        return fingerprint(rows, *more)

    @property
    def num_classes(self) -> int:
        """The number of defined classes; where none are defined, one more than the largest label.

        Raises:
            ManifestError: none are defined and no row has a label.
        """
        if self.classes is not None:
            return len(self.classes)
        if self._num_used == 0:
            raise ManifestError("no video of the manifest has a label")
        return self._num_used

    @cached_property
    def class_names(self) -> list[str]:
        """A name per class: the defined one, or that of its videos, else its number."""
        if self.classes is not None:
            return list(self.classes)
        labels, names = (self.table[name].to_pylist() for name in ("label", "label_name"))
        named = dict(zip(labels, names, strict=True))
        return [named.get(label) or str(label) for label in range(self._num_used)]

    @property
    def _num_used(self) -> int:
        """One more than the largest label."""
        high = pc.max(self.table["label"]).as_py()
        return 0 if high is None else int(high) + 1

    def select(self, split: str) -> Manifest:
        """The rows of one split."""
        return Manifest(self.table.filter(pc.field("split") == split), is_part=True)

    def rows(self) -> list[Entry]:
        """The rows as objects."""
        names = [field.name for field in fields(Entry)]
        return [Entry(**row) for row in self.table.select(names).to_pylist()]


def probe(
    sources: Sequence[Source], num_threads: int | None = None, decode_all: bool = True
) -> tuple[Manifest, pa.Table]:
    """Measure videos and make a manifest of those that can be used.

    Args:
        sources: the videos.
        num_threads: files measured at once; the number of cores by default.
        decode_all: decode every frame, see `decode.probe`.

    Returns:
        The manifest, and a table of `FAILURE_SCHEMA`: every other video and why.

    Raises:
        ManifestError: as `Manifest`.
    """
    table, failures = measure(sources, num_threads, decode_all)
    return Manifest(table), failures


def _conform(table: pa.Table) -> pa.Table:
    """The columns of `SCHEMA` in its types and order, then the others."""
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ManifestError(f"columns are missing: {', '.join(missing)}")
    others = [name for name in table.column_names if name not in SCHEMA.names]
    table = table.select([*SCHEMA.names, *others])
    extra = [table.schema.field(name) for name in others]
    target = pa.schema([*SCHEMA, *extra], metadata=table.schema.metadata)
    try:
        table = table.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ManifestError(f"a column has the wrong type: {error}") from error
    for name in SCHEMA.names:
        if name not in _NULLABLE and table[name].null_count:
            raise ManifestError(f"column '{name}' has {table[name].null_count} empty rows")
    return table


def _check_ids(table: pa.Table) -> None:
    counts = table["id"].value_counts()
    repeated = [pair["values"].as_py() for pair in counts if pair["counts"].as_py() > 1]
    if repeated:
        first = table.filter(pc.field("id") == repeated[0])["split"].to_pylist()
        raise ManifestError(
            f"{len(repeated)} ids are there more than once, such as {repeated[0]!r}"
            f" (in {', '.join(sorted(set(first)))}); list every video once"
        )


def _check_splits(table: pa.Table) -> None:
    unknown = set(table["split"].unique().to_pylist()) - set(SPLITS)
    if unknown:
        raise ManifestError(
            f"splits {', '.join(sorted(map(repr, unknown)))} are none of {', '.join(SPLITS)}"
        )


def _check_classes(table: pa.Table, classes: Sequence[str]) -> None:
    used = table.group_by(["label", "label_name"]).aggregate([])
    for pair in used.to_pylist():
        label, name = pair["label"], pair["label_name"]
        if label is None:
            continue
        if not 0 <= label < len(classes):
            raise ManifestError(
                f"label {label} is none of the {len(classes)} classes that the manifest defines"
            )
        if name is not None and name != classes[label]:
            raise ManifestError(
                f"label {label} is called {name!r}; the manifest defines it as {classes[label]!r}"
            )


def _check_labels(table: pa.Table) -> None:
    labels = np.array(table["label"].drop_null().unique().to_pylist(), dtype=np.int64)
    if len(labels) == 0:
        return
    if labels.min() < 0:
        raise ManifestError(f"label {labels.min()} is negative; leave unknown labels empty")
    missing = np.setdiff1d(np.arange(labels.max() + 1), labels)
    if len(missing):
        shown = ", ".join(map(str, missing[:10].tolist())) + (" ..." if len(missing) > 10 else "")
        raise ManifestError(
            f"labels run to {labels.max()}, but no video has {shown}; number the classes from 0"
            " without gaps"
        )
