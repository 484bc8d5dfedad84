"""Dense flow in Parquet: one row per frame, one row group per stretch of a video.

Columns: `id`; `frame`, where the flow starts; `rows` and `columns` of its cells; `flow`, rows *
columns horizontal and then as many vertical components, row by row, int16 in 1 / 32 px of the
reduced frame; `camera`, the 9 numbers of the homography from the reduced frame to the later one,
row by row; `clipped`, share of the pixels cut to the limit; `scale_x`, `scale_y`, source pixels per
reduced pixel; `width`, `height` of the source frames.

Footers tell which row groups hold which frames of which video, so a reader of a clip reads its
frames and little more, whatever else the file holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kinema import storage
from kinema.errors import StorageError, StoreError
from kinema.motion.fields import FlowRun, StoredFields

FRAMES_PER_GROUP = 32
FIELD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("columns", pa.int32(), nullable=False),
        pa.field("flow", pa.list_(pa.int16()), nullable=False),
        pa.field("camera", pa.list_(pa.float64()), nullable=False),
        pa.field("clipped", pa.float32(), nullable=False),
        pa.field("scale_x", pa.float64(), nullable=False),
        pa.field("scale_y", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)
WRITING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["id"],
    "column_encoding": {"flow.list.element": "DELTA_BINARY_PACKED"},
    "write_statistics": ["id", "frame"],
}
"""Neighbouring cells move alike, so differences are small: less than half of plain zstd."""

Stretch = tuple[int, int, int]
"""Row group, its first frame, its last frame."""


def write_fields(uri: str, videos: Mapping[str, StoredFields]) -> None:
    """Write the fields of some videos as one file."""
    storage.write_row_groups(uri, _groups(videos), **WRITING)


def copy_without(source: str, unwanted: set[str], target: str) -> None:
    """Write `source` without some videos to `target`, which may be `source`; nothing if empty."""
    footer = storage.read_footer(source)
    kept = [
        group for group in range(footer.num_row_groups) if _video(footer, group) not in unwanted
    ]
    if kept:
        names = FIELD_SCHEMA.names
        tables = [storage.read_row_groups(source, footer, [group], names) for group in kept]
        storage.write_row_groups(target, tables, **WRITING)
    else:
        storage.remove(source)


def list_stretches(uri: str) -> Iterator[tuple[str, Stretch]]:
    """The videos of a file with each of their row groups.

    Raises:
        StorageError: it is missing, damaged, or no file of fields.
    """
    footer = storage.read_footer(uri)
    if not footer.schema.to_arrow_schema().equals(FIELD_SCHEMA):
        raise StorageError(f"{uri}: its columns are not those of dense flow")
    for group in range(footer.num_row_groups):
        frames = footer.row_group(group).column(1).statistics
        yield _video(footer, group), (group, int(frames.min), int(frames.max))


class FieldReader:
    """Dense flow by video and frames. Cheap to pickle: footers stay behind."""

    def __init__(self, where: Mapping[str, tuple[str, Sequence[Stretch]]]) -> None:
        self._where = dict(where)
        self._footers: dict[str, pq.FileMetaData] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_where": self._where, "_footers": {}}

    def run(self, video_id: str, first: int, last: int) -> FlowRun:
        """The fields that start at frames `first` to `last`, both included, as far as there are.

        Raises:
            StoreError: there is none of this video, or its file is damaged.
        """
        return self.stored(video_id, first, last).decode()

    def stored(self, video_id: str, first: int, last: int) -> StoredFields:
        """As `run`, in the store's own units."""
        if video_id not in self._where:
            raise StoreError(f"{video_id}: the motion store holds no dense flow of this video")
        uri, stretches = self._where[video_id]
        groups = [group for group, low, high in stretches if low <= last and high >= first]
        if not groups:  # past the end: the last field is what there is
            groups, first = [stretches[-1][0]], stretches[-1][2]
        try:
            if uri not in self._footers:
                self._footers[uri] = storage.read_footer(uri)
            names = FIELD_SCHEMA.names
            table = storage.read_row_groups(uri, self._footers[uri], groups, names)
            if set(table.column("id").to_pylist()) != {video_id}:
                raise StoreError(
                    f"{uri}: rewritten by an extraction since this run began; submit the run again"
                )
            return _from_table(table, first, last)
        except (StorageError, ValueError) as error:
            raise StoreError(f"{uri}: damaged ({error}); remove it and extract again") from error


def _groups(videos: Mapping[str, StoredFields]) -> Iterator[pa.Table]:
    for video_id, fields in videos.items():
        for at in range(0, len(fields.frames), FRAMES_PER_GROUP):
            yield _to_table(video_id, fields, slice(at, at + FRAMES_PER_GROUP))


def _to_table(video_id: str, fields: StoredFields, part: slice) -> pa.Table:
    frames, values = fields.frames[part], fields.values[part]
    count, (rows, columns) = len(frames), values.shape[2:]

    def same(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.array([value] * count, kind)

    return pa.Table.from_arrays(
        [
            same(video_id, pa.string()),
            pa.array(frames),
            same(rows, pa.int32()),
            same(columns, pa.int32()),
            _lists(values.reshape(count, -1), pa.int16()),
            _lists(fields.cameras[part].reshape(count, -1), pa.float64()),
            pa.array(fields.clipped[part]),
            same(fields.scale[0], pa.float64()),
            same(fields.scale[1], pa.float64()),
            same(fields.size[1], pa.int32()),
            same(fields.size[0], pa.int32()),
        ],
        schema=FIELD_SCHEMA,
    )


def _lists(values: npt.NDArray[Any], kind: pa.DataType) -> pa.ListArray:
    count, length = values.shape
    offsets = pa.array(np.arange(count + 1) * length, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), kind))


def _from_table(table: pa.Table, first: int, last: int) -> StoredFields:
    frames = table.column("frame").to_numpy()
    keep = (frames >= first) & (frames <= last)

    def of_first(name: str) -> Any:
        return table.column(name)[0].as_py()

    shape = (len(frames), 2, of_first("rows"), of_first("columns"))
    flow = np.concatenate([c.flatten().to_numpy() for c in table.column("flow").chunks])
    cameras = np.concatenate([c.flatten().to_numpy() for c in table.column("camera").chunks])
    return StoredFields(
        frames=frames[keep],
        values=flow.reshape(shape)[keep],
        cameras=cameras.reshape(-1, 3, 3)[keep],
        clipped=table.column("clipped").to_numpy()[keep],
        scale=(of_first("scale_x"), of_first("scale_y")),
        size=(of_first("height"), of_first("width")),
    )


def _video(footer: pq.FileMetaData, group: int) -> str:
    return str(footer.row_group(group).column(0).statistics.min)
