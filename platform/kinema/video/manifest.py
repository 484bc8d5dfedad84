"""The manifest: one row per video with its split, label and measures, as a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PositiveInt, model_validator

from kinema import storage
from kinema.config import Config, fingerprint
from kinema.errors import ManifestError
from kinema.video.measure import measure
from kinema.video.rows import FAILURE_SCHEMA, SCHEMA, Entry
from kinema.video.sources import (
    SPLITS,
    Source,
    Split,
    from_folders,
    from_list,
    from_table,
    grouped,
    named,
    read_names,
)

__all__ = [
    "FAILURE_SCHEMA",
    "SCHEMA",
    "Entry",
    "IndexConfig",
    "Manifest",
    "from_folders",
    "from_list",
    "from_table",
    "index",
    "probe",
]

_NULLABLE = {"label", "label_name", "group", "start_s", "end_s"}
_IDENTITY = ["id", "split", "label", "group", "start_s", "end_s", "num_frames", "fps", "digest"]
"""Columns that decide what a run computes; where the files lie does not."""


class Manifest:
    """A checked table of videos. Rows keep their order, which is part of what a run computes.

    Args:
        table: columns of `SCHEMA`, and any others.
        is_part: a selection, in which labels may have gaps.

    Raises:
        ManifestError: a column is missing or of the wrong type, an id is there twice, a split is
            unknown, or a label between 0 and the largest has no video.
    """

    def __init__(self, table: pa.Table, is_part: bool = False) -> None:
        self.table = _conform(table)
        _check_ids(self.table)
        _check_splits(self.table)
        if not is_part:
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
        """Names the rows, wherever their files lie."""
        return fingerprint(self.table.select(_IDENTITY).to_pydict())

    @property
    def num_classes(self) -> int:
        """One more than the largest label.

        Raises:
            ManifestError: no row has a label.
        """
        high = pc.max(self.table["label"]).as_py()
        if high is None:
            raise ManifestError("no video of the manifest has a label")
        return int(high) + 1

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


class IndexConfig(Config):
    """What to index, and where the manifest goes."""

    format: Literal["list", "folders", "manifest"] = Field(
        description="VideoMAE lists (`path label`), class folders, or a Parquet or CSV table"
    )
    source: str | None = Field(None, description="root of the class folders, or the table")
    lists: dict[Split, str] = Field({}, description="list file by split, for format=list")
    root: str | None = Field(
        None, description="where relative paths of lists and tables start; default their folder"
    )
    splits: dict[str, Split] | None = Field(
        None,
        description="split by folder for format=folders ('.' is the source itself); default: the"
        " folders train, val, validation and test, or everything is train",
    )
    classes: str | None = Field(None, description="file of class names in the order of labels")
    group: str | None = Field(
        None, description="regular expression on the relative path that gives the group: '(S\\d)_'"
    )
    output: str = Field(description="Parquet file to write, path or URI")
    decode_all: bool = Field(
        True, description="decode every frame to find damage; false trusts the packets"
    )
    num_threads: PositiveInt | None = Field(None, description="files at once; default: all cores")
    max_failure_ratio: float = Field(
        0.0, ge=0, le=1, description="share of unusable videos that is accepted"
    )

    @model_validator(mode="after")
    def _fits_format(self) -> IndexConfig:
        if self.format == "list" and not self.lists:
            raise ValueError("format=list needs lists.train=FILE, lists.test=FILE ...")
        if self.format != "list" and self.source is None:
            raise ValueError(f"format={self.format} needs source=...")
        return self


def index(config: IndexConfig) -> int:
    """Write the manifest `config.output` and, beside it, a table of the videos that are unusable.

    Returns:
        0, the exit status of a job.

    Raises:
        ManifestError: lists or folders are malformed, all files of a split are missing, or more
            videos are unusable than `max_failure_ratio` allows. The table is written even so.
    """
    sources = _sources(config)
    _require_files(sources, config)
    table, failures = measure(sources, config.num_threads, config.decode_all)
    failures_uri = f"{config.output.removesuffix('.parquet')}.failures.parquet"
    storage.write_table(failures_uri, failures)
    if failures.num_rows:
        first = failures.slice(0, 1).to_pylist()[0]
        print(f"{failures.num_rows} of {len(sources)} videos unusable, see {failures_uri}")
        if failures.num_rows > config.max_failure_ratio * len(sources):
            raise ManifestError(
                f"{failures.num_rows} of {len(sources)} videos are unusable, listed in"
                f" {failures_uri}; the first is {first['path']}: {first['why']}. Mend them, or"
                f" set max_failure_ratio={failures.num_rows / len(sources) + 5e-4:.3f}"
            )
    manifest = Manifest(table)
    manifest.write(config.output)
    counts = {split: len(manifest.select(split)) for split in SPLITS}
    shown = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    print(f"{config.output}: {shown}; digest {manifest.digest}")
    return 0


def _sources(config: IndexConfig) -> list[Source]:
    if config.format == "list":
        parts = [from_list(file, config.root, split) for split, file in config.lists.items()]
        sources = [source for part in parts for source in part]
    elif config.format == "folders":
        sources = from_folders(str(config.source), config.splits)
    else:
        sources = from_table(str(config.source), config.root)
    if config.classes is not None:
        sources = named(sources, read_names(config.classes))
    return sources if config.group is None else grouped(sources, config.group)


def _require_files(sources: Sequence[Source], config: IndexConfig) -> None:
    """A wrong root fails at once and once, not in every row."""
    for split in SPLITS:
        paths = [source.path for source in sources if source.split == split]
        # The first that exists ends the search; a wrong root costs one look per file.
        if paths and not any(storage.exists(path) for path in paths):
            root = config.root or config.source or config.lists[split].rpartition("/")[0] or "."
            raise ManifestError(
                f"none of the {len(paths)} videos of split '{split}' exists; searched under"
                f" {storage.absolute(root)}, for example {paths[0]}; set root= to where the"
                " paths start"
            )


def _conform(table: pa.Table) -> pa.Table:
    """The columns of `SCHEMA` in its types and order, then the others."""
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ManifestError(f"columns are missing: {', '.join(missing)}")
    others = [name for name in table.column_names if name not in SCHEMA.names]
    table = table.select([*SCHEMA.names, *others])
    target = pa.schema([*SCHEMA, *(table.schema.field(name) for name in others)])
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
