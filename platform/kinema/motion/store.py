"""The motion store: boxes and dense flow of many videos as Parquet beside their parameters.

Layout: `<root>/motion/<fingerprint>/{store.json, part-*.parquet, fields-*.parquet,
index-*.parquet, failures-*.parquet}`. The fingerprint covers the parameters, the extractor's
version and the schema's, so motion found in different ways never meets in one folder. Data sets do:
their videos may have the same ids, so an index per manifest says which row is whose. Each file
appears whole or not at all, and dense flow (`field_store`) before the part that lists its videos.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kinema import storage
from kinema.config import fingerprint
from kinema.errors import StorageError, StoreError, VideoError
from kinema.motion.extractor import EXTRACTOR_VERSION, MotionConfig
from kinema.motion.field_store import (
    FieldReader,
    Stretch,
    copy_without,
    list_stretches,
    write_fields,
)
from kinema.motion.parts import (
    COMMAND,
    SCHEMA,
    MotionReader,
    MotionRow,
    digests_of,
    read_part,
    to_table,
)

STORE_VERSION = 2
INDEX_SCHEMA = pa.schema([("id", pa.string()), ("row_digest", pa.string())])
FAILURES_SCHEMA = pa.schema([("id", pa.string()), ("path", pa.string()), ("why", pa.string())])


class MotionStore:
    """The motion found with one set of parameters, as one manifest sees it.

    Args:
        root_uri: folder or any URI.
        cfg: the parameters.
        manifest: digest of the manifest whose videos are asked for; None sees all videos, and takes
            none of whose id there are two.
    """

    def __init__(self, root_uri: str, cfg: MotionConfig, manifest: str | None = None) -> None:
        self.cfg, self.manifest = cfg, manifest
        self.root = storage.join(root_uri, "motion")
        self.uri = storage.join(self.root, fingerprint(cfg, EXTRACTOR_VERSION, STORE_VERSION))

    def parts(self) -> list[str]:
        """URIs of the part files, sorted."""
        return [uri for uri in storage.list_files(self.uri, ".parquet") if "/part-" in uri]

    def existing(self) -> dict[str, set[str]]:
        """All stored rows, whatever the manifest: id -> digests. Empty before the first part.

        Raises:
            StoreError: a part is damaged.
        """
        found: dict[str, set[str]] = {}
        for part in self.parts():
            for video, digest in digests_of(part):
                found.setdefault(video, set()).add(digest)
        return found

    def field_files(self) -> list[str]:
        """URIs of the files of dense flow, sorted."""
        return [uri for uri in storage.list_files(self.uri, ".parquet") if "/fields-" in uri]

    def write_part(self, rows: Sequence[MotionRow], name: str) -> str:
        """Write `part-<name>.parquet` and, where fields are kept, `fields-<name>.parquet`.

        Files of those names are replaced. Returns the part's URI.

        Raises:
            ValueError: a row has no fields although the parameters ask for them, or the reverse.
        """
        fields = {row.id: row.fields for row in rows if row.fields is not None}
        if len(fields) != (len(rows) if self.cfg.fields else 0):
            raise ValueError(f"part {name}: {len(fields)} of {len(rows)} rows have dense flow")
        self._describe()
        if fields:
            write_fields(storage.join(self.uri, f"fields-{name}.parquet"), fields)
        uri = storage.join(self.uri, f"part-{name}.parquet")
        storage.write_table(uri, to_table(rows, self.cfg))
        return uri

    def write_index(self, rows: Mapping[str, str]) -> None:
        """Note which rows are those of the manifest's videos: id -> row digest."""
        records = [dict(zip(INDEX_SCHEMA.names, row, strict=True)) for row in rows.items()]
        self._describe()
        storage.write_table(self.index_uri, pa.Table.from_pylist(records, schema=INDEX_SCHEMA))

    def write_failures(self, failures: Iterable[tuple[str, str, str]]) -> None:
        """Replace the table of videos that could not be used: (id, path, why) each."""
        records = [dict(zip(FAILURES_SCHEMA.names, row, strict=True)) for row in failures]
        self._describe()
        storage.write_table(
            self.failures_uri, pa.Table.from_pylist(records, schema=FAILURES_SCHEMA)
        )

    @property
    def index_uri(self) -> str:
        """Where the rows of the manifest's videos are named."""
        return self._table("index")

    @property
    def failures_uri(self) -> str:
        """Where the manifest's videos that could not be used are listed."""
        return self._table("failures")

    def _table(self, kind: str) -> str:
        name = kind if self.manifest is None else f"{kind}-{self.manifest}"
        return storage.join(self.uri, f"{name}.parquet")

    def _index(self) -> dict[str, str] | None:
        """Row digest by id; None where no manifest is given.

        Raises:
            StoreError: the manifest's videos were never extracted.
        """
        if self.manifest is None:
            return None
        if not storage.exists(self.index_uri):
            raise StoreError(f"{self.index_uri} is missing: run {COMMAND} on this manifest first")
        return _as_dict(storage.read_table(self.index_uri, INDEX_SCHEMA.names))

    def failures(self) -> dict[str, VideoError]:
        """The videos that the last extraction could not use, by id."""
        uri = self.failures_uri
        if not storage.exists(uri):
            return {}
        rows = storage.read_table(uri, FAILURES_SCHEMA.names).to_pylist()
        return {row["id"]: VideoError(row["path"], row["why"]) for row in rows}

    def drop(self, rows: Iterable[tuple[str, str]]) -> int:
        """Remove rows (id, digest) that no other manifest's index names; returns how many.

        Only the parts that hold one are rewritten.
        """
        unwanted = set(rows) - self._used_elsewhere()
        removed = 0
        for part in self.parts() if unwanted else []:
            doomed = [pair in unwanted for pair in digests_of(part)]
            if not any(doomed):
                continue
            table = read_part(part, SCHEMA.names)
            gone = set(table.filter(pa.array(doomed)).column("id").to_pylist())
            rest = table.filter(pc.invert(pa.array(doomed)))
            if rest.num_rows:
                storage.write_table(part, rest)
            else:
                storage.remove(part)
            if self.cfg.fields:
                copy_without(_fields_of(part), gone, _fields_of(part))
            removed += len(gone)
        return removed

    def _used_elsewhere(self) -> set[tuple[str, str]]:
        others = {uri for uri in storage.list_files(self.uri, ".parquet") if "/index" in uri}
        return {
            pair
            for uri in others - {self.index_uri}
            for pair in _as_dict(storage.read_table(uri, INDEX_SCHEMA.names)).items()
        }

    def open(self, ids: Iterable[str]) -> MotionReader:
        """A reader for these videos; motion is read from a file when first asked for.

        Videos that extraction failed on are the reader's `failed`.

        Raises:
            StoreError: no store, one made with other parameters, missing videos, damaged parts.
        """
        self._check_parameters()
        wanted, index = set(ids), self._index()
        where: dict[str, str] = {}
        found: dict[str, str] = {}
        for part in self.parts():
            for video, digest in digests_of(part):
                if video not in wanted or (index is not None and index.get(video) != digest):
                    continue
                if found.setdefault(video, digest) != digest:
                    raise StoreError(
                        f"{part}: {video} is also in another part, made from another video; name"
                        " the manifest"
                    )
                where[video] = part
        failed = {video: why for video, why in self.failures().items() if video not in where}
        missing = sorted(wanted - where.keys() - failed.keys())
        if missing:
            some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise StoreError(
                f"{self.uri}: {len(missing)} of {len(wanted)} videos have no motion in it: {some}; "
                f"run {COMMAND} with the same motion settings"
            )
        fields = self._where_fields(where) if self.cfg.fields else {}
        without = sorted(where.keys() - fields.keys()) if self.cfg.fields else []
        if without:
            raise StoreError(
                f"{self.uri}: {len(without)} videos have boxes but no dense flow, first"
                f" {without[0]}; remove the folder and run {COMMAND}"
            )
        return MotionReader(
            where, {video: failed[video] for video in wanted & failed.keys()}, FieldReader(fields)
        )

    def _where_fields(self, where: Mapping[str, str]) -> dict[str, tuple[str, list[Stretch]]]:
        found: dict[str, tuple[str, list[Stretch]]] = {}
        present = set(self.field_files())
        for part in set(where.values()):
            file = _fields_of(part)
            for video, stretch in _stretches(file) if file in present else []:
                if where.get(video) == part:
                    found.setdefault(video, (file, []))[1].append(stretch)
        return found

    def _parameters(self) -> dict[str, Any]:
        return {
            "store_version": STORE_VERSION,
            "extractor_version": EXTRACTOR_VERSION,
            "motion": self.cfg.model_dump(mode="json"),
        }

    def _describe(self) -> None:
        uri = storage.join(self.uri, "store.json")
        if storage.exists(uri):
            self._check_parameters()
        else:
            storage.write_json(uri, self._parameters())

    def _check_parameters(self) -> None:
        uri = storage.join(self.uri, "store.json")
        if not storage.exists(uri):
            raise StoreError(self._why_absent())
        differing = _differences(_read_description(uri), self._parameters())
        if differing:
            raise StoreError(f"{uri}: made with other parameters: {'; '.join(differing)}")

    def _why_absent(self) -> str:
        """Name the nearest store of other parameters, when there is one."""
        others = [
            (_differences(_read_description(uri), self._parameters()), uri)
            for uri in storage.list_files(self.root, "store.json")
        ]
        if not others:
            return f"{self.root}: no motion store; run {COMMAND} first"
        differing, uri = min(others, key=lambda other: (len(other[0]), other[1]))
        return (
            f"{uri}: made with other parameters: {'; '.join(differing)}; "
            f"set them alike or run {COMMAND} with yours"
        )


def _fields_of(part: str) -> str:
    """The file of dense flow that belongs to a part."""
    folder, _, name = part.rpartition("/part-")
    return f"{folder}/fields-{name}"


def _as_dict(index: pa.Table) -> dict[str, str]:
    ids, digests = (index.column(name).to_pylist() for name in INDEX_SCHEMA.names)
    return dict(zip(ids, digests, strict=True))


def _stretches(file: str) -> list[tuple[str, Stretch]]:
    """The videos of a file of dense flow; a damaged one is named."""
    try:
        return list(list_stretches(file))
    except StorageError as error:
        raise StoreError(f"{file}: damaged ({error}); remove it and run {COMMAND}") from error


def _read_description(uri: str) -> dict[str, Any]:
    try:
        description = storage.read_json(uri)
    except (StorageError, ValueError) as error:
        why = f"{uri}: damaged ({error}); remove the folder and run {COMMAND}"
        raise StoreError(why) from error
    if not isinstance(description, dict):
        raise StoreError(f"{uri}: damaged (not a mapping); remove the folder and run {COMMAND}")
    return description


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Dotted keys that differ, as `key: <stored> there, <wanted> here`."""
    there, here = _dotted(stored), _dotted(wanted)
    absent = "nothing"
    return [
        f"{key}: {there.get(key, absent)} there, {here.get(key, absent)} here"
        for key in sorted(there.keys() | here.keys())
        if key not in there or key not in here or there[key] != here[key]
    ]


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
