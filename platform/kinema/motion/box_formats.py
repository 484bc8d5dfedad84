"""Published annotations of boxes, as their makers wrote them, as boxes by video.

Something-Else (Materzynska et al. 2020): JSON files of hand and object boxes of
Something-Something V2, drawn in images that were taken 12 times a second and are numbered from 1.

EPIC-KITCHENS-55 (Damen et al. 2018): `EPIC_train_object_labels.csv`, boxes of active objects about
twice a second. Its `frame` counts the frames of the video at its own rate, from 1 (the published
correspondence with frames resampled to 60 per second says so); a box is top, left, height, width
in the pixels of the video as it was published, 1920 x 1080 but for P12_01 to P12_06.

The hand-object detections of EPIC-KITCHENS-100 are pickles, which can run any code when they are
opened; kinema opens none. A table of `BOX_COLUMNS` made of them needs no reader.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from kinema import geometry, storage
from kinema.config import Config
from kinema.errors import KinemaError
from kinema.motion.annotated import BOX_COLUMNS, Rows

BOX_SCHEMA = pa.schema(
    [
        (name, pa.string() if name == "id" else pa.int32() if name == "frame" else pa.float64())
        for name in BOX_COLUMNS
    ]
)
PICKLES = (".pkl", ".pickle")
EDGES = ("x1", "y1", "x2", "y2")
SLACK = 0.02
"""Share of a frame's side by which an annotated box may reach past it: annotators' hands slip."""

_IMAGE = re.compile(r"(?:.*/)?(\d+)\.\w+")
_EPIC_BOX = re.compile(r"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*\)")
_EPIC_COLUMNS = ("video_id", "frame", "bounding_boxes")


class SomethingElse(Config):
    """Boxes of hands and objects in Something-Something V2."""

    image_fps: ClassVar[float | None] = 12.0

    name: Literal["something_else"] = "something_else"
    labels: Literal["all", "hands", "objects"] = Field("all", description="whose boxes to take")

    def read(self, file: str) -> dict[str, Rows]:
        """Boxes by video, see `read_annotation`."""
        annotation = storage.read_json(file)
        if not isinstance(annotation, dict) or not all(
            isinstance(images, list) for images in annotation.values()
        ):
            raise KinemaError(f"{file}: not a mapping of videos to lists of their images")
        return {
            video: _as_rows([row for image in images for row in self._image(file, video, image)])
            for video, images in annotation.items()
        }

    def _image(self, file: str, video: str, image: Any) -> Iterator[list[float]]:
        """A row of `Rows` per box of one annotated image."""
        try:
            number = _image_number(image["name"])
            for label in image["labels"]:
                is_hand = label["standard_category"] == "hand"
                if self.labels == "all" or is_hand == (self.labels == "hands"):
                    yield [number, *(float(label["box2d"][edge]) for edge in EDGES)]
        except (KeyError, TypeError, ValueError) as error:
            shown = image["name"] if isinstance(image, dict) and "name" in image else image
            raise KinemaError(
                f"{file}: image {str(shown)[:80]!r} of video {video!r} is not as Something-Else"
                f" writes one ({type(error).__name__}: {error}); it has a name such as"
                " '3201/0001.jpg', and labels with standard_category and box2d (x1, y1, x2, y2)"
            ) from error


class EpicObjects(Config):
    """Boxes of active objects in EPIC-KITCHENS-55."""

    image_fps: ClassVar[float | None] = None

    name: Literal["epic_objects"] = "epic_objects"

    def read(self, file: str) -> dict[str, Rows]:
        """Boxes by video, see `read_annotation`."""
        found: dict[str, list[list[float]]] = {}
        with storage.open_input(file) as data, io.TextIOWrapper(data, "utf-8-sig") as text:
            table = csv.DictReader(text)
            missing = [name for name in _EPIC_COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                raise KinemaError(
                    f"{file} has no column {missing[0]!r}; it needs {', '.join(_EPIC_COLUMNS)}"
                )
            for line in table:
                rows = found.setdefault(line["video_id"], [])
                rows += _epic_rows(f"{file}:{table.line_num}", line)
        return {video: _as_rows(rows) for video, rows in found.items()}


Annotation = Annotated[SomethingElse | EpicObjects, Field(discriminator="name")]
"""Every format there is, told apart by `name`."""


def read_annotation(file: str, annotation: SomethingElse | EpicObjects) -> dict[str, Rows]:
    """Boxes of one published file by the name of the video, without its suffix.

    Returns:
        Rows of image (from 0), left, top, right, bottom in pixels of the annotated images; a video
        without boxes has no rows.

    Raises:
        KinemaError: the file is no such annotation, with the place where it is not; or a pickle.
    """
    if file.lower().endswith(PICKLES):
        raise KinemaError(
            f"{file} is a pickle, which can run any code when it is opened; kinema opens none."
            f" Write its boxes as Parquet with the columns {', '.join(BOX_COLUMNS)}"
        )
    try:
        return annotation.read(file)
    except UnicodeDecodeError as error:
        raise KinemaError(f"{file} is not UTF-8 text ({error.reason})") from error


def place(
    rows: Rows, span: range, rate: float, image_size: geometry.Size, size: geometry.Size
) -> Rows:
    """Boxes of annotated images in the frames and the pixels of their video.

    An image belongs to the frame that is nearest in time; of several the nearest counts.

    Args:
        rows: as `read_annotation` gives them.
        span: frames of the file to keep.
        rate: frames of the video per annotated image.
        image_size: height and width of the annotated images.
        size: height and width of the video's frames.

    Returns:
        Rows of frame and edges; the edges are not cut to the frame.
    """
    exact = rows[:, 0] * rate
    frames = np.floor(exact + 0.5)
    keep = (frames >= span.start) & (frames < span.stop)
    keep[keep] = _nearest(frames[keep], np.abs(exact - frames)[keep])
    scale = np.tile(np.array(size[::-1]) / np.array(image_size[::-1]), 2)
    return np.concatenate([frames[keep, None], rows[keep, 1:] * scale], axis=1)


def reaches_out(rows: Rows, size: geometry.Size) -> npt.NDArray[np.bool_]:
    """(n,) whether a box of `rows` reaches past frames of (height, width) by more than `SLACK`."""
    height, width = size
    slack = SLACK * np.array([width, height])
    past = (rows[:, 1:3] < -slack) | (rows[:, 3:] > np.array([width, height]) + slack)
    return np.asarray(past.any(axis=1))


def cut(rows: Rows, size: geometry.Size) -> Rows:
    """The boxes cut to frames of (height, width), without those of which nothing is left."""
    boxes = geometry.clip_boxes(rows[:, 1:], *size)
    rows = np.concatenate([rows[:, :1], boxes], axis=1)
    return rows[~np.isnan(boxes).any(axis=1)]


def box_table(videos: dict[str, Rows]) -> pa.Table:
    """A table of `BOX_SCHEMA` of boxes by video."""
    names = pa.array(list(videos), pa.string())
    counts = np.array([len(rows) for rows in videos.values()], dtype=np.int64)
    rows = np.concatenate([np.empty((0, 5)), *videos.values()])
    columns = [
        names.take(pa.array(np.repeat(np.arange(len(names)), counts))),
        pa.array(rows[:, 0].astype(np.int32)),
        *(pa.array(column) for column in rows[:, 1:].T),
    ]
    return pa.table(columns, schema=BOX_SCHEMA)


def _as_rows(rows: list[list[float]]) -> Rows:
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _image_number(name: str) -> int:
    """From 0; names count from 1."""
    match = _IMAGE.fullmatch(name)
    if match is None or int(match[1]) < 1:
        raise ValueError(f"{name!r} does not end in a number from 1 up")
    return int(match[1]) - 1


def _epic_rows(where: str, line: dict[str, str]) -> list[list[float]]:
    text = line["bounding_boxes"].strip()
    boxes = [[int(number) for number in match] for match in _EPIC_BOX.findall(text)]
    if not re.fullmatch(r"\d+", line["frame"].strip()) or int(line["frame"]) < 1:
        raise KinemaError(f"{where}: frame {line['frame']!r} is not a number from 1 up")
    if _EPIC_BOX.sub("", text).translate(str.maketrans("", "", "[], ")):
        raise KinemaError(
            f"{where}: bounding_boxes {text!r} is not a list of (top, left, height, width)"
        )
    image = int(line["frame"]) - 1
    return [[image, left, top, left + width, top + height] for top, left, height, width in boxes]


def _nearest(
    frames: npt.NDArray[np.float64], distances: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """(n,) True for the rows of each frame that have its smallest distance."""
    if not len(frames):
        return np.zeros(0, dtype=np.bool_)
    _, inverse = np.unique(frames, return_inverse=True)
    least = np.full(inverse.max() + 1, np.inf)
    np.minimum.at(least, inverse, distances)
    return np.asarray(distances <= least[inverse])
