"""Parquet parts of a motion store: a row with the boxes of each video, written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kinema import storage
from kinema.config import fingerprint
from kinema.errors import StorageError, StoreError, VideoError
from kinema.motion.extractor import EXTRACTOR_VERSION, FrameBoxes, MotionConfig
from kinema.motion.field_store import FieldReader
from kinema.motion.fields import FlowRun, StoredFields

COMMAND = "python jobs/extract_motion.py"
# Four numbers, but not a list of fixed size: Arrow cannot read those back from Parquet when one is
# null ("Expected all lists to be of size=4").
BOX = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("video_digest", pa.string(), nullable=False),
        pa.field("row_digest", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("frames", pa.list_(pa.int32()), nullable=False),
        pa.field("boxes", pa.list_(BOX), nullable=False),
        pa.field("peaks", pa.list_(pa.float32()), nullable=False),
    ]
)
"""One row per video. An element of `boxes` is x0, y0, x1, y1, or null where nothing moves."""


@dataclass(frozen=True)
class MotionRow:
    """The motion of one video with what it was made from."""

    id: str
    video_digest: str
    width: int
    height: int
    num_frames: int
    fps: float
    boxes: FrameBoxes
    fields: StoredFields | None = None


def row_digest(video_digest: str, cfg: MotionConfig) -> str:
    """Changes when the video's bytes, the parameters or the extractor change."""
    return fingerprint(video_digest, cfg, EXTRACTOR_VERSION)


def to_table(rows: Sequence[MotionRow], cfg: MotionConfig) -> pa.Table:
    """Rows in the store's `SCHEMA`."""
    return pa.Table.from_pylist([_record(row, cfg) for row in rows], schema=SCHEMA)


def _record(row: MotionRow, cfg: MotionConfig) -> dict[str, Any]:
    still = np.asarray(np.isnan(row.boxes.boxes).any(axis=1)).tolist()
    boxes = zip(row.boxes.boxes.tolist(), still, strict=True)
    return {
        "id": row.id,
        "video_digest": row.video_digest,
        "row_digest": row_digest(row.video_digest, cfg),
        "width": row.width,
        "height": row.height,
        "num_frames": row.num_frames,
        "fps": row.fps,
        "frames": row.boxes.frames.tolist(),
        "boxes": [None if nothing else box for box, nothing in boxes],
        "peaks": row.boxes.peaks.tolist(),
    }


def read_part(part: str, columns: list[str]) -> pa.Table:
    """Columns of a part file.

    Raises:
        StoreError: it is damaged.
    """
    try:
        table = storage.read_table(part, columns)
    except (StorageError, pa.ArrowException, OSError) as error:
        raise StoreError(f"{part}: damaged ({error}); remove it and run {COMMAND}") from error
    expected = pa.schema([SCHEMA.field(name) for name in columns])
    if not table.schema.equals(expected):
        raise StoreError(f"{part}: damaged (unexpected columns); remove it and run {COMMAND}")
    return table


def digests_of(part: str) -> list[tuple[str, str]]:
    """Id and row digest of each row of a part file."""
    table = read_part(part, ["id", "row_digest"])
    ids, digests = (table.column(name).to_pylist() for name in ("id", "row_digest"))
    return list(zip(ids, digests, strict=True))


class MotionReader:
    """Motion by video id. Cheap to pickle: what was read stays behind.

    Attributes:
        failed: why there are none, for the videos that extraction failed on.
    """

    def __init__(
        self, where: Mapping[str, str], failed: Mapping[str, VideoError], fields: FieldReader
    ) -> None:
        self._where, self._fields = dict(where), fields
        self.failed = dict(failed)
        self._by_part: dict[str, list[str]] = {}
        self._tables: dict[str, tuple[pa.Table, dict[str, int]]] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "_where": self._where,
            "_fields": self._fields,
            "failed": self.failed,
            "_by_part": {},
            "_tables": {},
        }

    def boxes(self, video_id: str) -> FrameBoxes:
        """The boxes of one video.

        Raises:
            VideoError: extraction failed on this video.
            StoreError: the video is not among those the reader was opened for, or a damaged part.
        """
        self._require(video_id)
        table, rows = self._part(self._where[video_id])
        row = table.slice(rows[video_id], 1)
        boxes = row.column("boxes")[0].as_py()
        nothing = [float("nan")] * 4
        return FrameBoxes(
            frames=np.array(row.column("frames")[0].as_py(), dtype=np.int32),
            boxes=np.array(
                [nothing if box is None else box for box in boxes], dtype=np.float32
            ).reshape(-1, 4),
            peaks=np.array(row.column("peaks")[0].as_py(), dtype=np.float32),
        )

    def flow(self, video_id: str, first: int, last: int) -> FlowRun:
        """Dense flow that starts at frames `first` to `last` of one video, as far as there is any.

        Raises:
            VideoError: extraction failed on this video.
            StoreError: as `boxes`, or no dense flow was kept.
        """
        self._require(video_id)
        return self._fields.run(video_id, first, last)

    def _require(self, video_id: str) -> None:
        if video_id in self.failed:
            failure = self.failed[video_id]
            raise VideoError(failure.path, failure.why)
        if video_id not in self._where:
            raise StoreError(f"{video_id}: the motion store was not opened for this video")

    def _part(self, part: str) -> tuple[pa.Table, dict[str, int]]:
        if part not in self._tables:
            if not self._by_part:
                for video, uri in self._where.items():
                    self._by_part.setdefault(uri, []).append(video)
            mine = pa.array(self._by_part[part], pa.string())
            table = read_part(part, ["id", "frames", "boxes", "peaks"])
            table = table.filter(pc.is_in(table.column("id"), value_set=mine)).combine_chunks()
            rows = {video: row for row, video in enumerate(table.column("id").to_pylist())}
            self._tables[part] = table, rows
        return self._tables[part]
