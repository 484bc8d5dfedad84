"""What a job over videos has done: Parquet parts with a JSON result per video and its digest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kinema import storage

SCHEMA = pa.schema([("id", pa.string()), ("digest", pa.string()), ("result", pa.string())])


@dataclass(frozen=True)
class Done:
    """One video's result, and the digest of what it was made from."""

    id: str
    digest: str
    result: dict[str, Any]


class Ledger:
    """The parts under `uri`, a folder or any URI; one row per video."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def write(self, rows: Sequence[Done], name: str) -> None:
        """Write one part; a part of that name is replaced."""
        records = [
            {"id": row.id, "digest": row.digest, "result": json.dumps(row.result)} for row in rows
        ]
        table = pa.Table.from_pylist(records, schema=SCHEMA)
        storage.write_table(storage.join(self.uri, f"part-{name}.parquet"), table)

    def read(self) -> dict[str, Done]:
        """All rows by id."""
        rows = [
            row
            for part in storage.list_files(self.uri, ".parquet")
            for row in storage.read_table(part, SCHEMA.names).to_pylist()
        ]
        return {
            row["id"]: Done(row["id"], row["digest"], json.loads(row["result"])) for row in rows
        }

    def drop(self, ids: Iterable[str]) -> None:
        """Forget videos that are to be done anew; only parts that hold one are rewritten."""
        unwanted = pa.array(sorted(set(ids)), pa.string())
        for part in storage.list_files(self.uri, ".parquet"):
            table = storage.read_table(part, SCHEMA.names)
            rest = table.filter(pc.invert(pc.is_in(table["id"], value_set=unwanted)))
            if rest.num_rows == 0:
                storage.remove(part)
            elif rest.num_rows < table.num_rows:
                storage.write_table(part, rest)
