"""What a job over videos has done: Parquet parts with a row per video and what it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kinema import storage


class Parts:
    """Rows in the parts under `uri`, a folder or any URI; one row per video.

    Args:
        uri: of the folder.
        schema: of a row; has the columns `id` and `digest`, of what the row was made from.
    """

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self.uri, self.schema = uri, schema

    def write(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Write one part, whole or not at all; a part of that name is replaced."""
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=self.schema)
        storage.write_table(storage.join(self.uri, f"part-{name}.parquet"), table)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, or some of their columns."""
        names = list(columns or self.schema.names)
        empty = pa.schema([self.schema.field(name) for name in names]).empty_table()
        return pa.concat_tables([empty, *(storage.read_table(part, names) for part in self._all())])

    def digests(self) -> dict[str, str]:
        """What each stored video's row was made from, by id."""
        table = self.read(["id", "digest"])
        return dict(zip(table["id"].to_pylist(), table["digest"].to_pylist(), strict=True))

    def drop(self, ids: Iterable[str]) -> None:
        """Forget videos that are to be done anew; only parts that hold one are rewritten."""
        unwanted = pa.array(sorted(set(ids)), pa.string())
        for part in self._all():
            table = storage.read_table(part, self.schema.names)
            rest = table.filter(pc.invert(pc.is_in(table["id"], value_set=unwanted)))
            if rest.num_rows == 0:
                storage.remove(part)
            elif rest.num_rows < table.num_rows:
                storage.write_table(part, rest)

    def _all(self) -> list[str]:
        return storage.list_files(self.uri, ".parquet")


@dataclass(frozen=True)
class Done:
    """One video's result, plain data, and the digest of what it was made from."""

    id: str
    digest: str
    result: dict[str, Any]


class Ledger:
    """Results of any shape, kept as JSON in parts under `uri`; one per video."""

    def __init__(self, uri: str) -> None:
        names = ("id", "digest", "result")
        self._parts = Parts(uri, pa.schema([(name, pa.string()) for name in names]))

    def write(self, rows: Sequence[Done], name: str) -> None:
        """Write one part; a part of that name is replaced."""
        self._parts.write(
            [
                {"id": row.id, "digest": row.digest, "result": json.dumps(row.result)}
                for row in rows
            ],
            name,
        )

    def read(self) -> dict[str, Done]:
        """All rows by id."""
        return {
            row["id"]: Done(row["id"], row["digest"], json.loads(row["result"]))
            for row in self._parts.read().to_pylist()
        }

    def drop(self, ids: Iterable[str]) -> None:
        """Forget videos that are to be done anew."""
        self._parts.drop(ids)
