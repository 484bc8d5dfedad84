"""How well motion boxes agree with annotated ones (MOFO, section 4 and Fig. 5a).

Under `<root>/box_agreement/<key>/` lie `videos.parquet`, `classes.csv`, `agreement.json` and
`pictures/` of the videos that agree best and worst.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt

from kinema import storage
from kinema.config import fingerprint
from kinema.errors import ConfigError, KinemaError
from kinema.evaluation.statistics import Interval, bootstrap_interval
from kinema.experiment import AnyExperiment
from kinema.figures.box_agreement import SCORES, sheet, text_of, tile_rows
from kinema.motion.agreement import Agreement, VideoBoxes, compare
from kinema.motion.annotated import Rows, frame_boxes
from kinema.motion.extractor import EXTRACTOR_VERSION, MotionConfig
from kinema.motion.flow import AnnotatedBoxes
from kinema.motion.parts import MotionReader
from kinema.motion.store import MotionStore
from kinema.pipelines.annotations import boxes_of, find_boxes
from kinema.pipelines.prepare import prepare, prepare_manifest, start
from kinema.video.decode import read_frames
from kinema.video.manifest import Entry, Manifest

AGREEMENT_VERSION = 1
"""Part of every result's name; raise it when what is computed changes."""


class BoxAgreementExperiment(AnyExperiment):
    """An experiment whose motion boxes are compared with annotated ones."""

    boxes: str | None = Field(
        None,
        description="Parquet of annotated boxes, as jobs/index_boxes.py writes it; the known-answer"
        " set has its own",
    )
    num_lenders: PositiveInt = Field(
        20, description="other videos whose boxes a video borrows for the shuffled baseline"
    )
    num_pictures: NonNegativeInt = Field(
        3, description="contact sheets of the best videos, and as many of the worst"
    )


@dataclass(frozen=True)
class _Compared:
    """A video with its agreement; `frames` are those that its boxes belong to."""

    entry: Entry
    frames: npt.NDArray[np.int32]
    boxes: VideoBoxes
    agreement: Agreement


def evaluate_boxes(experiment: BoxAgreementExperiment) -> dict[str, Any]:
    """Extract what is missing, compare, write and print the result.

    Returns:
        What `agreement.json` says.

    Raises:
        ConfigError: there are no motion settings, or no annotation.
        KinemaError: no video has an annotated frame; or as `prepare`.
    """
    experiment = experiment.resolved()
    motion = _motion(experiment)
    start(experiment)
    manifest_uri = prepare_manifest(experiment)
    boxes_uri = find_boxes(experiment.boxes, experiment.data.manifest, manifest_uri)
    if boxes_uri is None:
        raise ConfigError(["boxes: give the table of annotated boxes; see jobs/index_boxes.py"])
    annotation = boxes_of(manifest_uri, boxes_uri)
    prepared = prepare([experiment], reads_motion=lambda _: True)
    entries = [entry for entry in prepared.manifest.rows() if entry.id in annotation]
    store = MotionStore(experiment.root, motion, prepared.manifest.digest)
    reader = store.open([entry.id for entry in entries])
    compared = _compare(entries, annotation, reader, experiment.num_lenders)
    key = _key(experiment, prepared.manifest, boxes_uri)
    output = storage.join(experiment.root, "box_agreement", key)
    names = prepared.manifest.class_names
    found = _summarise(compared, len(prepared.manifest), reader, motion)
    storage.write_table(storage.join(output, "videos.parquet"), _video_table(compared, names))
    classes = _by_class(compared, names)
    storage.write_bytes(storage.join(output, "classes.csv"), _csv(classes))
    pictures = _draw(compared, experiment.num_pictures, storage.join(output, "pictures"))
    storage.write_json(storage.join(output, "agreement.json"), found)
    print(text_of(found, classes))
    for uri in pictures:
        print(uri)
    print(f"everything: {output}")
    return found


def _motion(experiment: BoxAgreementExperiment) -> MotionConfig:
    if experiment.motion is None:
        raise ConfigError(["motion: null; there are no motion boxes to evaluate without it"])
    if isinstance(experiment.motion.flow, AnnotatedBoxes):
        raise ConfigError(["motion.flow.name: annotated boxes would be compared with themselves"])
    return experiment.motion


def _key(experiment: BoxAgreementExperiment, manifest: Manifest, boxes_uri: str) -> str:
    return fingerprint(
        AGREEMENT_VERSION,
        EXTRACTOR_VERSION,
        manifest.digest,
        experiment.motion,
        experiment.num_lenders,
        storage.content_digest(boxes_uri),
    )


def _compare(
    entries: Sequence[Entry],
    annotation: Mapping[str, Rows],
    reader: MotionReader,
    num_lenders: int,
) -> list[_Compared]:
    """Agreement of every video that has motion and an annotated frame.

    A pair of frames is compared with the annotation of its first.

    Raises:
        KinemaError: there is none.
    """
    kept, videos = [], []
    for entry in entries:
        if entry.id in reader.failed:
            continue
        found = reader.boxes(entry.id)
        annotated = frame_boxes(annotation[entry.id], found.frames.tolist()).boxes
        if np.isfinite(annotated[:, 0]).any():
            size = (entry.height, entry.width)
            boxes = (found.boxes.astype(np.float64), annotated.astype(np.float64))
            kept.append((entry, found.frames))
            videos.append(VideoBoxes(entry.id, size, *boxes))
    if not kept:
        raise KinemaError(
            f"none of {len(entries)} annotated videos has an annotated frame in which motion was"
            " looked for; are the annotation's frames counted from 0 as in the file?"
        )
    rows = compare(videos, num_lenders)[:-1]
    return [
        _Compared(entry, frames, boxes, agreement)
        for (entry, frames), boxes, agreement in zip(kept, videos, rows, strict=True)
    ]


def _summarise(
    compared: Sequence[_Compared], num_listed: int, reader: MotionReader, motion: MotionConfig
) -> dict[str, Any]:
    rows = [video.agreement for video in compared]
    return {
        "listed": num_listed,
        "videos": len(rows),
        "frames": sum(row.num_frames for row in rows),
        "failed": sorted(reader.failed),
        "without_box": float(np.mean([row.without_box for row in rows])),
        "iou": {
            name: None if interval is None else asdict(interval)
            for name, interval in _intervals(rows).items()
        },
        "motion": motion.model_dump(mode="json"),
    }


def _intervals(rows: Sequence[Agreement]) -> dict[str, Interval | None]:
    """Mean over videos of every score; None for `shuffled` of a single video."""
    values = {name: np.array([getattr(row, name) for row in rows]) for name in SCORES}
    return {
        name: None if np.isnan(scores).any() else bootstrap_interval(scores)
        for name, scores in values.items()
    }


def _by_class(compared: Sequence[_Compared], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per class that occurs, best agreement first."""
    groups: dict[int, list[Agreement]] = {}
    for video in compared:
        if video.entry.label is not None:
            groups.setdefault(video.entry.label, []).append(video.agreement)
    rows = []
    for label, members in groups.items():
        interval = bootstrap_interval([member.motion for member in members])
        means = {
            name: float(np.mean([getattr(member, name) for member in members])) for name in SCORES
        }
        bounds = {"motion_low": interval.low, "motion_high": interval.high}
        rows.append({"class": names[label], "videos": len(members)} | means | bounds)
    return sorted(rows, key=lambda row: -row["motion"])


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    columns = ["class", "videos", *SCORES, "motion_low", "motion_high"]
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def _video_table(compared: Sequence[_Compared], names: Sequence[str]) -> pa.Table:
    rows = []
    for video in compared:
        scores = asdict(video.agreement)
        label = video.entry.label
        about = {"id": scores.pop("video"), "label": label}
        rows.append(about | {"label_name": None if label is None else names[label]} | scores)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("label", pa.int32()),
            ("label_name", pa.string()),
            ("num_frames", pa.int32()),
            ("without_box", pa.float64()),
            *((name, pa.float64()) for name in SCORES),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _draw(compared: Sequence[_Compared], number: int, folder: str) -> list[str]:
    """Contact sheets of the best and the worst videos; returns their URIs.

    A video is in one of the two at most.
    """
    ranked = sorted(compared, key=lambda video: -video.agreement.motion)
    number = min(number, len(ranked) // 2) or min(number, len(ranked))
    worst = ranked[::-1][: min(number, len(ranked) - number)]
    uris = []
    for kind, videos in (("best", ranked[:number]), ("worst", worst)):
        for place, video in enumerate(videos, 1):
            name = re.sub(r"[^\w.-]+", "_", video.entry.id)
            uri = storage.join(folder, f"{kind}_{place}_{name}.png")
            chosen = video.frames[tile_rows(video.boxes)]
            frames = read_frames(video.entry.path, chosen.tolist())
            scores = video.agreement
            title = (
                f"IoU {scores.motion:.2f} (whole frame {scores.whole_frame:.2f})  {video.entry.id}"
            )
            storage.write_bytes(uri, sheet(frames, video.boxes, title))
            uris.append(uri)
    return uris
