"""Frames and codec motion vectors out of video files, through PyAV.

Frame i is the i-th in order of presentation time, counted from the packets of the file and not
from what its header claims. Every call opens the file anew and closes it, with one decoding thread:
there is no state to share between processes. PyAV drops FFmpeg's log lines unless a level is set,
without calling Python, so a decoder never waits for the interpreter's lock in a Ray worker.

A folder of images is a video too: its jpg and png files in natural order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from kinema import storage
from kinema.errors import NoVectorsError, StorageError, VideoError
from kinema.video import images
from kinema.video.container import VideoFile
from kinema.video.h264 import max_references
from kinema.video.orientation import Orientation

Frame = npt.NDArray[np.uint8]
Vectors = npt.NDArray[Any]

CODECS_WITH_VECTORS = frozenset(
    {
        *("h264", "mpeg4", "mpeg2video", "mpeg1video", "h261", "h263", "h263p", "flv1"),
        *("msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "rv10", "rv20", "snow"),
    }
)
"""Canonical names of the codecs whose FFmpeg decoder exports motion vectors."""

VECTOR_DTYPE = np.dtype(
    [
        ("source", "<i4"),
        ("w", "u1"),
        ("h", "u1"),
        ("src_x", "<i2"),
        ("src_y", "<i2"),
        ("dst_x", "<i2"),
        ("dst_y", "<i2"),
        ("flags", "<u8"),
        ("motion_x", "<i4"),
        ("motion_y", "<i4"),
        ("motion_scale", "<u2"),
    ],
    align=True,
)
"""One block, as FFmpeg's `AVMotionVector` lays it out."""

PICTURES = {1: "I", 2: "P", 3: "B"}
"""FFmpeg's picture types by number; the rare others predict nothing that these do not."""

ANCHOR_REACH = 16
"""Frames: an encoder writes at most this many B-frames between two frames they may refer to."""

MAX_PIXELS = 1 << 26
"""Per frame, twice 8K: a larger frame is damage or an attack on memory."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video is.

    Attributes:
        width: of a frame in pixels, after rotation.
        height: likewise.
        num_frames: frames that can be read.
        fps: mean frames per second.
        codec: FFmpeg's canonical name, or `images` for a folder.
        rotation: degrees by which the stored pictures are turned clockwise for display.
        duration_s: seconds.
    """

    width: int
    height: int
    num_frames: int
    fps: float
    codec: str
    rotation: int
    duration_s: float


@dataclass(frozen=True)
class FrameVectors:
    """What the codec moved to make one frame.

    Attributes:
        index: of the frame in its video.
        picture: `I` (coded by itself), `P` (from the past) or `B` (from both sides).
        rows: structured, one row per block: `dst_x`, `dst_y` its centre and `w`, `h` its size in
            pixels; `motion_x / motion_scale` and `motion_y / motion_scale` point from it to its
            reference; `source` is -1 for a past and +1 for a future reference.
        height: of the upright frame, pixels.
        width: likewise.
    """

    index: int
    picture: str
    rows: Vectors
    height: int
    width: int


def probe(uri: str, decode: bool = True) -> VideoInfo:
    """Measure a video.

    Args:
        uri: file, URI, or folder of images.
        decode: decode every frame, which finds damage that packets do not show. Without it the
            frames are counted from packets, and only files without timestamps are decoded.

    Raises:
        VideoError: it is missing, empty, damaged, has no picture, or only one.
    """
    found = images.list_images(uri)
    if found:
        return _probe_images(uri, found)
    with _opened(uri) as video:
        first = next(video.decode([0]), None)
        if first is None:
            raise VideoError(uri, "has no frame that can be decoded")
        orientation = Orientation.of(first[1], uri)
        height, width = orientation.size(first[1].height, first[1].width)
        num_frames = video.num_frames
        if decode or num_frames is None:
            num_frames = sum(1 for _ in video.decode(None))
        if num_frames < 2:
            raise VideoError(uri, "has 1 frame; motion needs at least 2")
        fps = video.fps(num_frames)
        codec, rotation = video.codec, orientation.rotation
    return VideoInfo(width, height, num_frames, fps, codec, rotation, num_frames / fps)


def read_frames(uri: str, indices: Sequence[int] | None = None) -> Frame:
    """Frames (T, H, W, 3) uint8 RGB, upright.

    Args:
        uri: file, URI, or folder of images.
        indices: frames to read, in any order, repeats allowed; None reads all.

    Raises:
        VideoError: the file is unusable, or an index lies outside.
    """
    found = images.list_images(uri)
    wanted = None if indices is None else _distinct(uri, indices)
    if found:
        every = list(range(len(found))) if wanted is None else wanted
        frames = [(index, images.read_image(uri, found, index)) for index in every]
    else:
        with _opened(uri) as video:
            frames = list(_upright(uri, video.decode(wanted)))
    return _assemble(uri, frames, indices)


def iterate_frames(uri: str, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """Frames (H, W, 3) uint8 RGB, upright, from `start` up to `stop`, one in memory at a time.

    A `stop` of None, or past the end, is the end.

    Raises:
        VideoError: the file is unusable, or ends before `start`.
    """
    found = images.list_images(uri)
    if found:
        for index in range(
            start, len(found) if stop is None else max(min(stop, len(found)), start + 1)
        ):
            yield images.read_image(uri, found, index)
        return
    with _opened(uri) as video:
        for _, frame in _upright(uri, video.decode_range(start, stop)):
            yield frame


def read_frames_and_vectors(
    uri: str, indices: Sequence[int] | None = None
) -> tuple[Frame, list[FrameVectors]]:
    """Frames as `read_frames`, and in the same pass what the codec moved between them.

    Returns:
        frames (T, H, W, 3) uint8, and the vectors of every frame of the video from `ANCHOR_REACH`
        before the first one asked for to the first at or after the last one that is no B-frame, so
        that the references of all are among them.

    Raises:
        VideoError: as `read_frames`, or the codec gives no motion vectors.
    """
    wanted = None if indices is None else _distinct(uri, indices)
    frames: list[tuple[int, Frame]] = []
    vectors: list[FrameVectors] = []
    with _opened_for_vectors(uri) as video:
        first = 0 if wanted is None else max(0, wanted[0] - ANCHOR_REACH)
        chosen = None if wanted is None else set(wanted)
        reformatter = VideoReformatter()
        for index, frame, orientation in _oriented(uri, video.decode_range(first, None)):
            moved = _frame_vectors(index, frame, orientation)
            vectors.append(moved)
            if chosen is None or index in chosen:
                frames.append((index, orientation.turn(_rgb(frame, reformatter))))
            if wanted is not None and index >= wanted[-1] and moved.picture != "B":
                break
    if wanted is not None and len(frames) < len(wanted):
        count = vectors[-1].index + 1
        raise VideoError(uri, f"has {count} frames; frame {wanted[-1]} was asked for")
    return _assemble(uri, frames, indices), vectors


def iterate_vectors(uri: str, start: int = 0, stop: int | None = None) -> Iterator[FrameVectors]:
    """The vectors alone, of frames from `start` up to `stop`, one frame in memory at a time."""
    with _opened_for_vectors(uri) as video:
        for index, frame, orientation in _oriented(uri, video.decode_range(start, stop)):
            yield _frame_vectors(index, frame, orientation)


def vectors_are_exact(uri: str) -> bool:
    """Whether each vector's reference is known for certain, from what the stream declares.

    FFmpeg tells a reference's direction only. One with a single reference picture and no B-frames
    leaves no choice, and neither do codecs older than H.264, whose references are the nearest ones.

    Raises:
        VideoError: the file is unusable, or its codec gives no motion vectors.
    """
    with _opened_for_vectors(uri) as video:
        context = video.stream.codec_context
        if video.codec != "h264":
            return True
        return not context.has_b_frames and max_references(context.extradata) == 1


def content_digest(uri: str) -> str:
    """SHA-256 in hex of a video's bytes; of a folder, over its images' names and digests."""
    found = images.list_images(uri)
    if not found:
        return storage.content_digest(uri)
    named = [f"{path.rpartition('/')[2]}\n{storage.content_digest(path)}\n" for path in found]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def _probe_images(uri: str, found: list[str]) -> VideoInfo:
    if len(found) < 2:
        raise VideoError(uri, "has 1 frame; motion needs at least 2")
    height, width = images.read_image(uri, found, 0).shape[:2]
    count, fps = len(found), images.FPS
    return VideoInfo(width, height, count, fps, images.CODEC, 0, count / fps)


def _distinct(uri: str, indices: Sequence[int]) -> list[int]:
    wanted = sorted({int(index) for index in indices})
    if not wanted:
        raise ValueError("no frame was asked for")
    if wanted[0] < 0:
        raise VideoError(uri, f"has no frame {wanted[0]}")
    return wanted


def _assemble(uri: str, frames: list[tuple[int, Frame]], indices: Sequence[int] | None) -> Frame:
    """Stack frames in the order asked for."""
    shapes = {frame.shape for _, frame in frames}
    if len(shapes) != 1:
        sizes = ", ".join(f"{shape[1]}x{shape[0]}" for shape in sorted(shapes))
        raise VideoError(uri, f"the size of its frames changes ({sizes}); re-encode it")
    if indices is None:
        return np.stack([frame for _, frame in frames])
    by_index = dict(frames)
    return np.stack([by_index[int(index)] for index in indices])


@contextmanager
def _opened(uri: str, with_vectors: bool = False) -> Iterator[VideoFile]:
    """The file, with whatever goes wrong below turned into a VideoError that names it."""
    try:
        with VideoFile(uri, with_vectors) as video:
            size = video.width * video.height
            if size > MAX_PIXELS:
                raise VideoError(uri, f"frames of {video.width}x{video.height} are too large")
            yield video
    except StorageError as error:
        raise VideoError(uri, f"cannot be opened ({error})") from error
    except av.FFmpegError as error:
        why = error.strerror or type(error).__name__
        raise VideoError(uri, f"is damaged or not a video ({why})") from error


@contextmanager
def _opened_for_vectors(uri: str) -> Iterator[VideoFile]:
    if images.list_images(uri):
        raise NoVectorsError(uri, "a folder of images has no motion vectors; use optical flow")
    with _opened(uri, with_vectors=True) as video:
        if video.codec not in CODECS_WITH_VECTORS:
            raise NoVectorsError(
                uri,
                f"codec {video.codec} gives no motion vectors;"
                " re-encode it as H.264 or use optical flow",
            )
        if not video.has_predicted_frames:
            raise NoVectorsError(
                uri,
                f"this {video.codec} stream has key frames only, so no motion vectors;"
                " re-encode it with a longer group of pictures or use optical flow",
            )
        yield video


def _oriented(
    uri: str, decoded: Iterator[tuple[int, VideoFrame]]
) -> Iterator[tuple[int, VideoFrame, Orientation]]:
    orientation: Orientation | None = None
    for index, frame in decoded:
        if orientation is None:
            orientation = Orientation.of(frame, uri)
        yield index, frame, orientation


def _upright(uri: str, decoded: Iterator[tuple[int, VideoFrame]]) -> Iterator[tuple[int, Frame]]:
    reformatter = VideoReformatter()
    for index, frame, orientation in _oriented(uri, decoded):
        yield index, orientation.turn(_rgb(frame, reformatter))


def _rgb(frame: VideoFrame, reformatter: VideoReformatter) -> Frame:
    """The frame's colours. One reformatter serves all frames of a file: making one costs more than
    its work on a frame does, and threads cost more than they gain."""
    rgb = reformatter.reformat(frame, format="rgb24", threads=1)
    return np.asarray(rgb.to_ndarray(), dtype=np.uint8)


def _frame_vectors(index: int, frame: VideoFrame, orientation: Orientation) -> FrameVectors:
    """The frame's rows of FFmpeg's `AVMotionVector`; none for a frame coded by itself."""
    data = frame.side_data.get("MOTION_VECTORS")
    rows = np.zeros(0, dtype=VECTOR_DTYPE)
    if data is not None:
        rows = orientation.turn_vectors(
            np.asarray(data.to_ndarray()).copy(), frame.height, frame.width
        )
    picture = PICTURES.get(int(frame.pict_type), "P")
    return FrameVectors(index, picture, rows, *orientation.size(frame.height, frame.width))
