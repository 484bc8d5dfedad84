"""What a data set's videos are, as far as motion vectors go, and MGM's saliency score.

Under the output folder lie `videos.parquet` (a row per video), `report.json` and `done/`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kinema import storage
from kinema.config import fingerprint
from kinema.errors import NoVectorsError
from kinema.evaluation.statistics import bootstrap_interval
from kinema.motion.vectors import GRID, iterate_fields
from kinema.pipelines.cluster import require
from kinema.pipelines.isolation import Packed
from kinema.pipelines.ledger import Done, Ledger
from kinema.pipelines.one_video import video_digest
from kinema.pipelines.over_videos import VideoJob, judge, outdated, run_over
from kinema.video.decode import FrameVectors, iterate_vectors, vectors_are_exact
from kinema.video.manifest import Entry, Manifest

REPORT_VERSION = 1
"""Part of the digest of every row; raise it when measures change."""

Measures = dict[str, Any]
FrameBoxes = dict[int, list[tuple[float, float, float, float]]]
"""Annotated boxes by frame of the file: left, top, right, bottom in pixels."""


def report(
    manifest_uri: str,
    boxes: Mapping[str, FrameBoxes],
    output: str,
    *,
    num_cpus: int | None = None,
    timeout_s: float = 600.0,
    max_failure_ratio: float = 0.0,
) -> dict[str, Any]:
    """Measure every video on the connected cluster, and return what `report.json` says.

    Args:
        boxes: annotated, by id.
        output: absolute folder or URI.
        num_cpus: cores to use; all that the cluster has or can have by default.
        timeout_s: limit per video.
        max_failure_ratio: share of the manifest's videos that may fail.

    Raises:
        KinemaError: too many videos failed, after everything that worked was stored.
    """
    require([{"CPU": 1}], "the report")
    manifest = Manifest.read(manifest_uri)
    entries = manifest.rows()
    ledger = Ledger(storage.join(output, "done"))
    existing = {id: row.digest for id, row in ledger.read().items()}
    todo, _ = outdated(entries, existing, partial(_digest, boxes=boxes))
    ledger.drop(entry.id for entry in todo)
    job = VideoJob(Packed.of(measure_one, boxes), ledger.write, timeout_s)
    failures = run_over("report", len(entries), todo, job, num_cpus)
    names = manifest.table["id"].to_pylist()
    done = {id: row.result for id, row in ledger.read().items() if id in set(names)}
    codecs = dict(zip(names, manifest.table["codec"].to_pylist(), strict=True))
    videos_uri = storage.join(output, "videos.parquet")
    storage.write_table(videos_uri, _video_table(done, codecs, failures))
    judge("report", failures, len(entries), max_failure_ratio, videos_uri)
    found = _summarise(done, codecs)
    storage.write_json(storage.join(output, "report.json"), found)
    return found


def measure_one(entry: Entry, boxes: Mapping[str, FrameBoxes]) -> Done:
    """Pictures, key frames and motion in and out of boxes of one video.

    Returns:
        Its result has `frames`, and of these `I`, `P`, `B`, and `with_vectors`;
        `gops`, distances of key frames; `exact`, see `decode.vectors_are_exact`; `inside` and
        `outside`, mean magnitude in px per frame over the cells in and out of boxes, or null;
        `why_none`, why there are no vectors, or null.
    """
    span, digest = entry.frame_range(), _digest(entry, boxes)
    measures: Measures = {
        "frames": len(span),
        "why_none": None,
        "exact": None,
        "gops": [],
        "with_vectors": 0,
        "inside": None,
        "outside": None,
        **dict.fromkeys("IPB", 0),
    }
    try:
        measures["exact"] = vectors_are_exact(entry.path)
        pictures: list[FrameVectors] = []
        frames = _noted(iterate_vectors(entry.path, span.start, span.stop), pictures)
        score = _Score(boxes.get(entry.id, {}))
        for index, field in iterate_fields(frames):
            score.add(index, field)
    except NoVectorsError as error:
        return Done(entry.id, digest, measures | {"why_none": error.why})
    keys = [picture.index for picture in pictures if picture.picture == "I"]
    inside, outside = score.means()
    measures |= Counter(picture.picture for picture in pictures)
    measures |= {
        "frames": len(pictures),
        "gops": np.diff(keys).tolist(),
        "with_vectors": sum(len(picture.rows) > 0 for picture in pictures),
        "inside": inside,
        "outside": outside,
    }
    return Done(entry.id, digest, measures)


class _Score:
    """Mean motion of cells whose centre lies in an annotated box, and of all others (MGM, 1)."""

    def __init__(self, boxes: FrameBoxes) -> None:
        self._boxes, self._sums, self._counts = boxes, np.zeros(2), np.zeros(2)

    def add(self, index: int, field: npt.NDArray[np.float32]) -> None:
        """Count a frame's field (rows, columns, 2); nothing where the frame has no annotation."""
        if index not in self._boxes:
            return
        rows, columns = field.shape[:2]
        y, x = (np.arange(count) * GRID + GRID / 2 for count in (rows, columns))
        inside = np.zeros((rows, columns), dtype=np.bool_)
        for left, top, right, bottom in self._boxes[index]:
            inside |= ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
        magnitude = np.linalg.norm(field, axis=-1)
        for which, chosen in enumerate((inside, ~inside)):
            self._sums[which] += magnitude[chosen].sum()
            self._counts[which] += chosen.sum()

    def means(self) -> tuple[float | None, float | None]:
        """Pixels per frame inside and outside; None where there were no boxes."""
        if not self._counts.all():
            return None, None
        inside, outside = self._sums / self._counts
        return float(inside), float(outside)


def _noted(frames: Any, pictures: list[FrameVectors]) -> Any:
    for frame in frames:
        pictures.append(frame)
        yield frame


def _digest(entry: Entry, boxes: Mapping[str, FrameBoxes]) -> str:
    listed = sorted(boxes.get(entry.id, {}).items())
    return fingerprint(video_digest(entry), json.dumps(listed), REPORT_VERSION)


def _video_table(
    done: Mapping[str, Measures], codecs: Mapping[str, str], failures: Sequence[Sequence[str]]
) -> pa.Table:
    rows = [{"id": id, "codec": codecs[id], **measures} for id, measures in sorted(done.items())]
    rows += [{"id": id, "codec": codecs[id], "why_none": why} for id, _, why in failures]
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("codec", pa.string()),
            ("frames", pa.int32()),
            ("I", pa.int32()),
            ("P", pa.int32()),
            ("B", pa.int32()),
            ("gops", pa.list_(pa.int32())),
            ("with_vectors", pa.int32()),
            ("exact", pa.bool_()),
            ("inside", pa.float64()),
            ("outside", pa.float64()),
            ("why_none", pa.string()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _summarise(done: Mapping[str, Measures], codecs: Mapping[str, str]) -> dict[str, Any]:
    """By codec, and the saliency score over all videos with boxes and motion outside of them."""
    by_codec: dict[str, Any] = {}
    for codec in sorted({codecs[id] for id in done}):
        of_codec = [measures for id, measures in done.items() if codecs[id] == codec]
        gops = [gop for measures in of_codec for gop in measures["gops"]]
        frames = sum(measures["frames"] for measures in of_codec)
        by_codec[codec] = {
            "videos": len(of_codec),
            "frames": frames,
            "gop": [min(gops), float(np.median(gops)), max(gops)] if gops else None,
            "share_b": sum(measures["B"] for measures in of_codec) / frames,
            "share_with_vectors": sum(m["with_vectors"] for m in of_codec) / frames,
            "exact": sum(bool(measures["exact"]) for measures in of_codec),
        }
    scores = [m["inside"] / m["outside"] for m in done.values() if m["outside"]]
    saliency = {"videos": len(scores), **asdict(bootstrap_interval(scores))} if scores else None
    return {"codecs": by_codec, "saliency": saliency}
