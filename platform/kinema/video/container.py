"""One open video file: which frames it holds, and decoding any of them.

Frames are found by their presentation time, never by counting decoder outputs after a seek, so the
way there cannot change what is read: a seek that misses is repeated from the start of the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import BinaryIO

import av
import numpy as np
from av.codec.context import Flags2
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from kinema import storage
from kinema.errors import VideoError
from kinema.video.timeline import PacketTimes, Timeline, frames_at, read_timeline, runs

_TIMELESS_FORMATS = frozenset({"avi"})
"""Containers that store no presentation times: what FFmpeg reports for them is a guess."""

_FPS_TOLERANCE = 0.01


class VideoFile:
    """A video file opened for reading; a context manager.

    Args:
        uri: of the file.
        with_vectors: let decoded frames carry the codec's motion vectors.

    Attributes:
        timeline: None where packets have no usable times: frames are then counted as they come out
            of the decoder, from the start of the file.
        has_predicted_frames: whether any frame is not a key frame.

    Raises:
        VideoError: it is missing, empty, cut short, or has no picture.
    """

    stream: VideoStream

    def __init__(self, uri: str, with_vectors: bool = False) -> None:
        self.uri = uri
        self._with_vectors = with_vectors
        self._path = storage.absolute(uri)
        self._container: InputContainer | None = None
        self._file: BinaryIO | None = None
        try:
            if _is_local(self._path):
                _require_content(uri, self._path)
            else:
                self._file = storage.open_input(self._path)
            self._open()
            packets = self._scan()
            self.has_predicted_frames = not all(packet.is_keyframe for packet in packets)
            self.timeline = None if self._is_timeless() else read_timeline(packets)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.close()

    @property
    def codec(self) -> str:
        """FFmpeg's canonical name, such as `h264` or `av1`."""
        return str(self.stream.codec_context.codec.canonical_name)

    @property
    def num_frames(self) -> int | None:
        """Frames according to the packets; None when only decoding can tell."""
        return None if self.timeline is None else len(self.timeline.times)

    def fps(self, num_frames: int) -> float:
        """Mean frames per second: the header's rate where the frames' times agree with it.

        Raises:
            VideoError: neither gives one.
        """
        declared = float(self.stream.average_rate or self.stream.guessed_rate or 0)
        if self.timeline is None or num_frames < 2:
            measured = declared
        else:
            span = float((self.timeline.times[-1] - self.timeline.times[0]) * self._time_base)
            measured = (num_frames - 1) / span
        if measured <= 0:
            raise VideoError(self.uri, "has no frame rate")
        agrees = abs(declared - measured) <= _FPS_TOLERANCE * measured
        return declared if agrees else measured

    def decode(self, wanted: Sequence[int] | None) -> Iterator[tuple[int, VideoFrame]]:
        """Frames by ascending, distinct indices; None = all.

        Raises:
            VideoError: an index lies outside, or a frame cannot be decoded.
        """
        if self.timeline is None:
            yield from self._decode_counting(wanted)
            return
        count = len(self.timeline.times)
        indices = list(range(count)) if wanted is None else list(wanted)
        if indices and indices[-1] >= count:
            raise VideoError(self.uri, f"has {count} frames; frame {indices[-1]} was asked for")
        yield from self._decode_timed(self.timeline, indices)

    def decode_range(self, start: int, stop: int | None) -> Iterator[tuple[int, VideoFrame]]:
        """Frames from `start` up to `stop` or the end of the file, whichever comes first.

        Raises:
            VideoError: the file ends before `start`, or a frame cannot be decoded.
        """
        if self.timeline is not None:
            count = len(self.timeline.times)
            self._require(start, count)
            yield from self.decode(range(start, count if stop is None else min(stop, count)))
            return
        count = 0
        for index, frame in self._decode_counting(None):
            count = index + 1
            if stop is not None and index >= stop:
                return
            if index >= start:
                yield index, frame
        self._require(start, count)

    def _require(self, index: int, count: int) -> None:
        if index >= count:
            raise VideoError(self.uri, f"has {count} frames; frame {index} was asked for")

    def _open(self) -> None:
        """Open from the start; also the way back to it that works for every container."""
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.seek(0)
        self._container = av.open(self._file or self._path, "r", metadata_errors="ignore")
        self.stream = self._video_stream(self._container)
        self.stream.codec_context.thread_count = 1
        if self._with_vectors:
            self.stream.codec_context.flags2 |= Flags2.export_mvs
        for other in self._container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all

    def _video_stream(self, container: InputContainer) -> VideoStream:
        """The first stream of moving pictures; cover art of an audio file is none."""
        for stream in container.streams.video:
            if not stream.disposition & Disposition.attached_pic:
                if stream.codec_context is None:
                    raise VideoError(self.uri, "its codec is unknown to this FFmpeg")
                return stream
        raise VideoError(self.uri, "has no video stream")

    @property
    def width(self) -> int:
        """Of the stored picture, before rotation."""
        return int(self.stream.codec_context.width)

    @property
    def height(self) -> int:
        """Of the stored picture, before rotation."""
        return int(self.stream.codec_context.height)

    @property
    def _time_base(self) -> float:
        return float(self.stream.time_base or 0)

    def _is_timeless(self) -> bool:
        assert self._container is not None
        return bool(_TIMELESS_FORMATS & set(self._container.format.name.split(",")))

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        assert self._container is not None
        return self._container.demux(self.stream)

    def _scan(self) -> list[PacketTimes]:
        """All packets that hold a picture, in decoding order; leaves the file at its end."""
        assert self._container is not None
        stored = 0
        shown = []
        codec = self.codec
        for packet in self._packets():
            if packet.size == 0:
                continue
            stored += 1
            if packet.is_corrupt:
                raise VideoError(self.uri, f"is cut short or damaged at packet {stored}")
            if not packet.is_discard and not _is_hidden(packet, codec):
                shown.append(PacketTimes(packet.pts, packet.dts, packet.is_keyframe))
        promised = self.stream.frames
        if "mp4" in self._container.format.name and stored < promised:
            raise VideoError(self.uri, f"is cut short: {stored} of {promised} frames are there")
        if not shown:
            raise VideoError(self.uri, "has no frames")
        return shown

    def _decode_counting(self, wanted: Sequence[int] | None) -> Iterator[tuple[int, VideoFrame]]:
        self._open()
        missing = None if wanted is None else set(wanted)
        count = 0
        for frame in _frames(self._packets()):
            if missing is None or count in missing:
                yield count, frame
            count += 1
            if missing is not None:
                missing.discard(count - 1)
                if not missing:
                    return
        if missing:
            self._require(max(missing), count)

    def _decode_timed(
        self, timeline: Timeline, indices: list[int]
    ) -> Iterator[tuple[int, VideoFrame]]:
        if not indices:
            return
        done = 0
        for run in runs(timeline, indices):
            before = done
            for frame in self._from_key_frame(timeline, run):
                yield indices[done], frame
                done += 1
            if done - before < len(run):
                break
        if done == len(indices):
            return
        self._open()
        for frame in frames_at(_frames(self._packets()), timeline.times[indices[done:]]):
            yield indices[done], frame
            done += 1
        if done < len(indices):
            count = len(timeline.times)
            raise VideoError(self.uri, f"frame {indices[done]} of {count} cannot be decoded")

    def _from_key_frame(self, timeline: Timeline, indices: list[int]) -> Iterator[VideoFrame]:
        """Frames decoded from the key frame before the first; fewer when that did not work."""
        assert self._container is not None
        times = timeline.times[indices]
        key = int(np.searchsorted(timeline.key_times, times[0], side="right")) - 1
        # The key frame itself must come out too: after a mere recovery point the first pictures are
        # not whole yet, and FFmpeg holds them back.
        start = timeline.key_times[key : key + 1]
        try:
            self._container.seek(int(timeline.key_seeks[key]), stream=self.stream)
            for frame in frames_at(_frames(self._packets()), np.union1d(start, times)):
                if frame.pts >= times[0]:
                    yield frame
        except av.FFmpegError:
            # Whether the seek or the file is to blame shows when it is read from the start.
            return


def _is_local(path: str) -> bool:
    return "://" not in path


def _require_content(uri: str, path: str) -> None:
    if not os.path.exists(path):
        raise VideoError(uri, "does not exist")
    if os.path.getsize(path) == 0:
        raise VideoError(uri, "is empty (0 bytes)")


def _is_hidden(packet: Packet[VideoStream], codec: str) -> bool:
    """VP8 has pictures that are only referred to: a bit of the frame's tag (RFC 6386, 9.1)."""
    return codec == "vp8" and not memoryview(packet)[0] & 0x10


def _frames(packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
    for packet in packets:
        yield from packet.decode()
