"""Small real videos for tests: a textured square that moves to the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from kinema import storage
from kinema.video.manifest import Entry

FPS = 10


def write_video(
    path: Path, num_frames: int = 8, size: int = 96, step: int = 4, side: int = 24
) -> Path:
    """An H.264 file of `num_frames` frames."""
    rng = np.random.default_rng(step)
    background = rng.integers(90, 110, (size, size, 3), dtype=np.uint8)
    square = rng.integers(0, 255, (side // 4, side // 4, 3), dtype=np.uint8)
    square = square.repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10"}
        for index in range(num_frames):
            frame = background.copy()
            left = 8 + index * step % (size - side - 8)
            frame[30 : 30 + side, left : left + side] = square
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def entry_of(path: Path, **changes: Any) -> Entry:
    """A manifest entry of such a file."""
    fields: dict[str, Any] = {
        "id": path.stem,
        "path": str(path),
        "split": "train",
        "label": 0,
        "group": None,
        "start_s": None,
        "end_s": None,
        "width": 96,
        "height": 96,
        "num_frames": 8,
        "fps": float(FPS),
    }
    return Entry(**(fields | changes))


def write_manifest(uri: Path, paths: Sequence[Path]) -> str:
    """A manifest of such files, one class."""
    count = len(paths)
    columns = {
        "id": pa.array([path.stem for path in paths], pa.string()),
        "path": pa.array([str(path) for path in paths], pa.string()),
        "split": pa.array(["train"] * count, pa.string()),
        "label": pa.array([0] * count, pa.int32()),
        "label_name": pa.array(["right"] * count, pa.string()),
        "group": pa.nulls(count, pa.string()),
        "start_s": pa.nulls(count, pa.float64()),
        "end_s": pa.nulls(count, pa.float64()),
        "width": pa.array([96] * count, pa.int32()),
        "height": pa.array([96] * count, pa.int32()),
        "num_frames": pa.array([8] * count, pa.int32()),
        "fps": pa.array([float(FPS)] * count, pa.float64()),
        "codec": pa.array(["h264"] * count, pa.string()),
        "digest": pa.array([f"{index:064x}" for index in range(count)], pa.string()),
    }
    storage.write_table(str(uri), pa.table(columns))
    return str(uri)
