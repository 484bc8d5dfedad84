"""Annotated boxes of a manifest's videos: made of published files, and found for a job."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from kinema import storage
from kinema.config import Config
from kinema.errors import KinemaError, ManifestError
from kinema.motion.annotated import Rows, read_boxes
from kinema.motion.box_formats import (
    Annotation,
    box_table,
    cut,
    place,
    reaches_out,
    read_annotation,
)
from kinema.video.images import CODEC as IMAGES
from kinema.video.manifest import Entry, Manifest
from kinema.wording import counted

OUTSIDE_ALLOWED = 0.01
"""Share of boxes that may reach past their frames before the size is taken to be wrong."""
SAME_RATE = 0.02
"""Relative difference up to which two frame rates are taken for one."""


class IndexBoxesConfig(Config):
    """Which published boxes to read, and where the table goes."""

    annotation: Annotation = Field(description="format of the files")
    files: list[str] = Field(min_length=1, description="published files; paths or URIs")
    output: str = Field(pattern=r"\.parquet$", description="Parquet file to write, path or URI")
    manifest: str | None = Field(
        None,
        description="Parquet manifest whose ids, frames and pixels the boxes get. A video is known"
        " by the manifest's column video_id, else by its file's name without suffix; its boxes go"
        " to every row of that file, each with the frames that are its own",
    )
    fps: PositiveFloat | None = Field(
        None,
        description="images per second that were annotated, of videos that run at another rate;"
        " default: every frame is such an image",
    )
    size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="width and height of the annotated images; default: the video's own"
    )
    min_matched: float = Field(
        0.5, ge=0, le=1, description="share of the manifest's videos that must have boxes"
    )

    @model_validator(mode="after")
    def _has_manifest(self) -> IndexBoxesConfig:
        if self.manifest is None and (self.fps is not None or self.size is not None):
            raise ValueError("fps and size need the videos' own: give manifest=...")
        return self


def index_boxes(config: IndexBoxesConfig) -> int:
    """Write the table `config.output` and print how much of the manifest it covers.

    Returns:
        0, the exit status of a job.

    Raises:
        KinemaError: a file is malformed, or does not fit the manifest; nothing is written then.
    """
    storage.check_writable(config.output, "output", "give another one", is_file=True)
    videos = None if config.manifest is None else _videos(config.manifest)
    tally = _Tally()
    storage.write_row_groups(config.output, _tables(config, videos, tally))
    covered = "" if videos is None else f", {tally.share(videos):.1%} of the manifest's"
    print(
        f"{config.output}: {counted(tally.boxes, 'box', 'boxes')} of"
        f" {counted(len(tally.ids), 'video')}{covered};"
        f" {counted(tally.dropped, 'box', 'boxes')} without area left out,"
        f" {counted(tally.unlisted, 'annotated video')} not listed"
    )
    return 0


def find_boxes(boxes: str | None, manifest: str | None, manifest_uri: str) -> str | None:
    """The table of annotated boxes that a job reads, or None.

    Args:
        boxes: the table that its settings name; None finds that of the known-answer set.
        manifest: that its settings name; None is the known-answer set.
        manifest_uri: of the videos.
    """
    if boxes is None and manifest is None:
        return storage.join(manifest_uri.rpartition("/")[0], "boxes.parquet")
    return None if boxes is None else storage.absolute(boxes)


def boxes_of(manifest_uri: str, boxes_uri: str) -> dict[str, Rows]:
    """Annotated boxes of a manifest's videos, by id.

    Raises:
        ManifestError: none of the boxes is of these videos.
    """
    found = read_boxes(boxes_uri)
    known = Manifest.read(manifest_uri).table["id"].to_pylist()
    if not found.keys() & set(known):
        raise ManifestError(
            f"{boxes_uri}: none of its {len(found)} videos is in the manifest, whose ids look like"
            f" {known[0]!r}"
        )
    return {id: found[id] for id in known if id in found}


@dataclass(frozen=True)
class _Listed:
    """A row of the manifest, and whether its file is a folder of images."""

    entry: Entry
    is_images: bool


@dataclass
class _Tally:
    """What became of the annotation."""

    ids: set[str] = field(default_factory=set)
    boxes: int = 0
    dropped: int = 0
    unlisted: int = 0
    outside: int = 0

    def share(self, videos: dict[str, list[_Listed]]) -> float:
        """Of the manifest's rows, those with boxes."""
        return len(self.ids) / sum(len(listed) for listed in videos.values())


def _videos(manifest_uri: str) -> dict[str, list[_Listed]]:
    """Rows of a manifest by the name of their video in annotations.

    Raises:
        ManifestError: a name stands for several files.
    """
    manifest = Manifest.read(manifest_uri)
    columns = manifest.table.column_names
    codecs = manifest.table["codec"].to_pylist()
    entries = manifest.rows()
    names = (
        manifest.table["video_id"].to_pylist()
        if "video_id" in columns
        else [
            posixpath.splitext(posixpath.basename(entry.path.rstrip("/")))[0] for entry in entries
        ]
    )
    found: dict[str, list[_Listed]] = {}
    for name, entry, codec in zip(names, entries, codecs, strict=True):
        found.setdefault(str(name), []).append(_Listed(entry, codec == IMAGES))
    for name, listed in found.items():
        paths = sorted({row.entry.path for row in listed})
        if len(paths) > 1:
            raise ManifestError(
                f"{manifest_uri}: {name!r} names {len(paths)} files, such as {paths[0]} and"
                f" {paths[1]}; boxes are numbered by the frames of one whole video, so list it"
                " with start_s and end_s instead of as cut files"
            )
    return found


def _tables(
    config: IndexBoxesConfig, videos: dict[str, list[_Listed]] | None, tally: _Tally
) -> Iterator[pa.Table]:
    """A table per file, so that one file at a time is in memory; fails where the whole does."""
    seen: set[str] = set()
    for file in config.files:
        annotated = read_annotation(file, config.annotation)
        repeated = seen & annotated.keys()
        if repeated:
            raise KinemaError(f"{file}: video {min(repeated)!r} is in a file before it, too")
        seen |= annotated.keys()
        found: dict[str, Rows] = {}
        for name, rows in annotated.items():
            found |= _of_video(config, name, rows, videos, tally)
        tally.ids |= {id for id, rows in found.items() if len(rows)}
        tally.boxes += sum(len(rows) for rows in found.values())
        yield box_table(found)
    _judge(config, videos, tally)


def _of_video(
    config: IndexBoxesConfig,
    name: str,
    rows: Rows,
    videos: dict[str, list[_Listed]] | None,
    tally: _Tally,
) -> dict[str, Rows]:
    """The boxes of one annotated video by manifest id."""
    if videos is None:
        whole = rows[(rows[:, 1] < rows[:, 3]) & (rows[:, 2] < rows[:, 4])]
        tally.dropped += len(rows) - len(whole)
        return {name: whole}
    found = {}
    listed = videos.get(name, [])
    tally.unlisted += not listed
    for video in listed:
        entry = video.entry
        size = (entry.height, entry.width)
        image_size = size if config.size is None else config.size[::-1]
        placed = place(rows, entry.frame_range(), _rate(config, video), image_size, size)
        tally.outside += int(np.count_nonzero(reaches_out(placed, size)))
        found[entry.id] = cut(placed, size)
        tally.dropped += len(placed) - len(found[entry.id])
    return found


def _rate(config: IndexBoxesConfig, video: _Listed) -> float:
    """Frames of a video per annotated image.

    Raises:
        KinemaError: nothing says so, and the video runs at another rate than the images did.
    """
    if config.fps is not None:
        return video.entry.fps / config.fps
    fps = config.annotation.image_fps
    if fps is not None and not video.is_images and abs(video.entry.fps / fps - 1) > SAME_RATE:
        raise KinemaError(
            f"{video.entry.id} runs at {video.entry.fps:g} frames per second, but"
            f" {config.annotation.name} is annotated at {fps:g}; set fps={fps:g}"
        )
    return 1.0


def _judge(
    config: IndexBoxesConfig, videos: dict[str, list[_Listed]] | None, tally: _Tally
) -> None:
    if videos is None:
        return
    placed = tally.boxes + tally.dropped
    if tally.outside > OUTSIDE_ALLOWED * placed:
        raise KinemaError(
            f"{tally.outside} of {placed} boxes reach past the frames of their videos; set size="
            "[width, height] of the images that were annotated"
        )
    if tally.share(videos) < config.min_matched:
        some = next(iter(videos))
        raise KinemaError(
            f"{tally.share(videos):.1%} of the videos of {config.manifest} have boxes in"
            f" {', '.join(config.files)}, fewer than min_matched {config.min_matched:g}; they are"
            f" looked for by names like {some!r}. Give the manifest a column video_id, or lower"
            " min_matched"
        )
