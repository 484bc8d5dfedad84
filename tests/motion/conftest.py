"""Annotated real videos, loaded as the tests compare them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class AnnotatedVideo:
    """Frames on disk and one annotated box (F, 4) per frame, NaN where there is none."""

    name: str
    files: list[Path]
    boxes: npt.NDArray[np.float64]

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        image = cv2.imread(str(self.files[index]))
        assert image is not None, self.files[index]
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = Path(os.environ.get("KINEMA_REAL_DATA", PROJECT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data in {root}; set KINEMA_REAL_DATA")
    return root


@pytest.fixture(scope="session")
def something_else(real_data: Path) -> list[AnnotatedVideo]:
    """Something-Something V2 with the union of Something-Else's hand and object boxes."""
    root = real_data / "ssv2_boxes"
    annotations = json.loads((root / "annotations.json").read_text())
    videos = []
    for name, frames in sorted(annotations.items()):
        labels = {frame["name"]: frame["labels"] for frame in frames}
        files = sorted((root / "videos" / name).glob("*.jpg"))
        boxes = [_union(labels.get(f"{name}/{file.name}", [])) for file in files]
        videos.append(AnnotatedVideo(name, files, np.array(boxes, dtype=np.float64)))
    return videos


@pytest.fixture(scope="session")
def davis(real_data: Path) -> list[AnnotatedVideo]:
    """DAVIS 2016 with the box around each frame's object mask."""
    videos = []
    for folder in sorted((real_data / "davis").iterdir()):
        files = sorted((folder / "frames").glob("*.jpg"))
        masks = sorted((folder / "masks").glob("*.png"))
        assert len(files) == len(masks) > 0, folder
        boxes = np.array([_mask_box(mask) for mask in masks])
        videos.append(AnnotatedVideo(folder.name, files, boxes))
    return videos


def _union(labels: list[dict[str, dict[str, float]]]) -> list[float]:
    if not labels:
        return [np.nan] * 4
    edges = ("x1", "y1", "x2", "y2")
    corners = np.array([[label["box2d"][edge] for edge in edges] for label in labels])
    return [*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)]


def _mask_box(file: Path) -> list[float]:
    mask = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    assert mask is not None, file
    rows, columns = np.nonzero(mask > 127)
    if len(rows) == 0:
        return [np.nan] * 4
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
