"""Interim manifest: schema and reading."""
from __future__ import annotations
from dataclasses import dataclass
from functools import cached_property
import pyarrow as pa
import pyarrow.compute as pc
from kinema import storage
from kinema.config import fingerprint

SCHEMA = pa.schema([
    ("id", pa.string()), ("path", pa.string()), ("split", pa.string()), ("label", pa.int32()),
    ("label_name", pa.string()), ("group", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64()),
    ("width", pa.int32()), ("height", pa.int32()), ("num_frames", pa.int32()), ("fps", pa.float64()),
    ("codec", pa.string()), ("digest", pa.string()),
])

@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    path: str
    split: str
    label: int | None
    group: str | None
    start_s: float | None
    end_s: float | None
    width: int
    height: int
    num_frames: int
    fps: float
    def frame_range(self) -> range:
        return range(self.num_frames)

class Manifest:
    def __init__(self, table: pa.Table) -> None:
        self.table = table
    @classmethod
    def read(cls, uri: str) -> Manifest:
        return cls(storage.read_table(uri))
    @cached_property
    def digest(self) -> str:
        return fingerprint(self.table.select(["id", "split", "label", "digest"]).to_pylist())
    def select(self, split: str) -> Manifest:
        return Manifest(self.table.filter(pc.field("split") == split))
    def rows(self) -> list[Entry]:
        names = list(Entry.__dataclass_fields__)
        return [Entry(**row) for row in self.table.select(names).to_pylist()]
    @property
    def num_classes(self) -> int:
        return int(pc.max(self.table["label"]).as_py()) + 1
