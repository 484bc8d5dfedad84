"""Do motion boxes find what moves? IoU with annotated boxes, beside boxes that look at nothing.

    python benchmarks/motion_boxes.py --data DIR                    # tables, all frames
    python benchmarks/motion_boxes.py --data DIR --flow dis --pictures out --every 4

DIR holds `ssv2_boxes/` (Something-Something V2 frames, boxes of Something-Else) and `davis/` (DAVIS
2016 frames and masks); without it only the known-answer set is measured. A missing box counts 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from kinema.motion.agreement import VideoBoxes, compare, contact_sheet, format_table
from kinema.motion.extractor import MotionConfig, extract_boxes
from kinema.motion.flow import DIS, TVL1, Farneback
from kinema.video.synthetic import MOTIONS, SyntheticConfig, draw_clip

Frames = npt.NDArray[np.uint8]
FLOWS = {"tvl1": TVL1, "dis": DIS, "farneback": Farneback}


@dataclass(frozen=True)
class AnnotatedVideo:
    """Frames (F, H, W, 3) RGB and one annotated box (F, 4) per frame, NaN where there is none."""

    name: str
    frames: Frames
    boxes: npt.NDArray[np.float64]

    def found(self, config: MotionConfig, every: int = 1) -> VideoBoxes:
        """Boxes of every `every`-th pair of frames beside the first frame's annotation."""
        starts = list(range(0, len(self.frames) - 1, every))
        found = [extract_boxes(self.frames[i : i + 2], config).boxes for i in starts]
        boxes = np.concatenate(found).astype(np.float64)
        return VideoBoxes(self.name, self.frames.shape[1:3], boxes, self.boxes[starts])


def known_answers() -> list[AnnotatedVideo]:
    """Textured discs over textured backgrounds; the camera pans and zooms, two discs lie still."""
    settings = SyntheticConfig(
        size=128,
        num_frames=4,
        object_size=(26, 48),
        speed=(1.5, 4),
        camera_pan=2,
        camera_zoom=0.01,
        num_distractors=2,
        background="texture",
        object="texture",
    )
    clips = [(name, draw_clip(settings, f"agreement-{i}", name)) for i, name in enumerate(MOTIONS)]
    return [AnnotatedVideo(name, clip.frames, clip.boxes) for name, clip in clips]


def something_else(root: Path) -> list[AnnotatedVideo]:
    """Something-Something V2 with the union of Something-Else's hand and object boxes."""
    annotations = json.loads((root / "annotations.json").read_text())
    videos = []
    for name, frames in sorted(annotations.items()):
        labels = {frame["name"]: frame["labels"] for frame in frames}
        files = sorted((root / "videos" / name).glob("*.jpg"))
        boxes = np.array([_union(labels.get(f"{name}/{file.name}", [])) for file in files])
        videos.append(AnnotatedVideo(name, _read(files), boxes))
    return videos


def davis(root: Path) -> list[AnnotatedVideo]:
    """DAVIS 2016 with the box around each frame's object mask."""
    videos = []
    for folder in sorted(root.iterdir()):
        files = sorted((folder / "frames").glob("*.jpg"))
        masks = sorted((folder / "masks").glob("*.png"))
        assert len(files) == len(masks) > 0, folder
        boxes = np.array([_mask_box(mask) for mask in masks])
        videos.append(AnnotatedVideo(folder.name, _read(files), boxes))
    return videos


def _read(files: Sequence[Path]) -> Frames:
    images = [cv2.imread(str(file)) for file in files]
    return np.stack([cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in images])


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


def main() -> None:
    """Print a table per set, and write a contact sheet per video where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--flow", choices=FLOWS, default="tvl1")
    parser.add_argument("--every", type=int, default=1, help="measure every n-th frame")
    parser.add_argument("--pictures", type=Path, help="folder for contact sheets")
    arguments = parser.parse_args()
    config = MotionConfig(flow=FLOWS[arguments.flow]())
    sets = {"known answers": known_answers()}
    if arguments.data is not None:
        sets["ssv2_boxes"] = something_else(arguments.data / "ssv2_boxes")
        sets["davis"] = davis(arguments.data / "davis")
    for name, videos in sets.items():
        every = 1 if name == "known answers" else arguments.every
        results = [video.found(config, every) for video in videos]
        print(f"{name}, {arguments.flow}, every {every}. frame\n{format_table(compare(results))}\n")
        if arguments.pictures is None:
            continue
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        for video, result in zip(videos, results, strict=True):
            frames = video.frames[: len(video.frames) - 1 : every]
            sheet = contact_sheet(frames, result.found, result.annotated)
            (arguments.pictures / f"{name.replace(' ', '_')}-{video.name}.png").write_bytes(sheet)


if __name__ == "__main__":
    main()
