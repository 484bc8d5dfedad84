"""Re-encoding: every frame kept, one reference, no B-frames, chosen key frames and size."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from kinema.errors import VideoError
from kinema.video import encode as encoding
from kinema.video.decode import (
    iterate_vectors,
    probe,
    read_frames,
    read_frames_and_vectors,
    vectors_are_exact,
)
from kinema.video.encode import EncodeConfig, encode, reencode

FPS = 30000 / 1001


def source(path: Path, codec: str = "libx264", count: int = 30, size: tuple[int, int] = (96, 64)):
    """A moving texture with everything that makes vectors inexact; colours that stay apart."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (25, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    texture = cv2.GaussianBlur(texture, (0, 0), 3)
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            stream.options = {"bf": "3", "refs": "4", "crf": "8"}
        for number in range(count):
            frame = np.ascontiguousarray(texture[number : number + height, number : number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("b.webm", "libvpx-vp9"), ("c.avi", "mpeg4")]
)
def test_every_frame_is_kept_with_exact_vectors(name: str, codec: str, tmp_path: Path) -> None:
    uri = source(tmp_path / name, codec)
    made = reencode(uri, FPS, EncodeConfig(gop=8, short_side=None, crf=8))
    path = tmp_path / "made.mp4"
    path.write_bytes(made.data)
    assert (made.width, made.height, made.num_frames) == (96, 64, 30)
    assert vectors_are_exact(str(path))
    pictures = [frame.picture for frame in iterate_vectors(str(path))]
    assert pictures == ["I" if number % 8 == 0 else "P" for number in range(30)]
    info = probe(str(path))
    assert (info.codec, info.num_frames) == ("h264", 30)
    assert info.fps == pytest.approx(FPS, rel=1e-3)
    # Coding costs a few grey levels; another frame, or colours mixed up, would cost far more.
    before, after = (read_frames(str(file)).astype(float) for file in (uri, path))
    assert np.abs(before - after).mean() < 4
    assert np.abs(before[:-1] - after[1:]).mean() > 8
    assert min(made.seconds, made.source_seconds) > 0


def test_vectors_of_the_result_say_what_moved(tmp_path: Path) -> None:
    path = tmp_path / "made.mp4"
    path.write_bytes(reencode(source(tmp_path / "a.mp4"), FPS, EncodeConfig()).data)
    _, moved = read_frames_and_vectors(str(path))
    rows = moved[5].rows
    assert np.median(rows["motion_x"] / rows["motion_scale"]) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((96, 64), 32, (48, 32)),
        ((64, 96), 33, (32, 50)),  # even
        ((97, 65), None, (96, 64)),
        ((96, 64), 320, (96, 64)),  # never enlarged
    ],
)
def test_sizes(size, short_side, expected, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(4):
        picture = np.full((size[1], size[0], 3), 40 * number, np.uint8)
        cv2.imwrite(str(frames / f"{number}.png"), picture)
    made = reencode(str(frames), 10, EncodeConfig(short_side=short_side))
    assert (made.width, made.height) == expected


def test_frames_that_change_their_size_become_those_of_the_first(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, side in enumerate((32, 32, 48)):
        cv2.imwrite(str(frames / f"{number}.png"), np.zeros((side, side, 3), np.uint8))
    assert reencode(str(frames), 10, EncodeConfig()).num_frames == 3


def test_the_same_frames_are_the_same_bytes_on_every_cpu(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    clips = [
        np.stack(
            [cv2.GaussianBlur(rng.integers(0, 255, (48, 48, 3), np.uint8), (0, 0), 4)] * 2
            + [np.full((48, 48, 3), level, np.uint8) for level in (40, 60)]
        )
        for _ in range(10)
    ]
    here = [encode(clip, 8, 12) for clip in clips]
    monkeypatch.setattr(encoding, "X264_PARAMS", f"{encoding.X264_PARAMS}:asm=0")
    assert here == [encode(clip, 8, 12) for clip in clips]


def test_part_of_a_video(tmp_path: Path) -> None:
    uri = source(tmp_path / "a.mp4")
    path = tmp_path / "part.mp4"
    path.write_bytes(reencode(uri, FPS, EncodeConfig(crf=4, short_side=None), 10, 15).data)
    part, whole = read_frames(str(path)), read_frames(uri)[10:15]
    assert part.shape == whole.shape
    assert np.abs(part.astype(float) - whole).mean() < 4


def test_too_small_frames_are_named(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(2):
        cv2.imwrite(str(frames / f"{number}.png"), np.zeros((1, 5, 3), np.uint8))
    with pytest.raises(VideoError, match="5x1 are too small"):
        reencode(str(frames), 10, EncodeConfig())
