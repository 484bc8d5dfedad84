"""When the frames of a file are shown, and where decoding can start, read off its packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame


class PacketTimes(NamedTuple):
    """What is kept of a packet."""

    pts: int | None
    dts: int | None
    is_keyframe: bool


@dataclass(frozen=True)
class Timeline:
    """What the packets of a file tell.

    Attributes:
        times: (frames,) int64, presentation time of every frame, ascending, in stream units.
        key_times: (keys,) int64, those of the frames that decoding can start at, ascending.
        key_seeks: (keys,) int64, the times to seek to for them.
    """

    times: npt.NDArray[np.int64]
    key_times: npt.NDArray[np.int64]
    key_seeks: npt.NDArray[np.int64]


def read_timeline(packets: Sequence[PacketTimes]) -> Timeline | None:
    """Frames by time, or None when times are missing or repeated."""
    keys = [packet for packet in packets if packet.is_keyframe and packet.pts is not None]
    times = np.array([packet.pts for packet in packets if packet.pts is not None], dtype=np.int64)
    if not keys or len(times) < len(packets) or len(np.unique(times)) < len(times):
        return None
    key_times = np.array([packet.pts for packet in keys], dtype=np.int64)
    order = np.argsort(key_times)
    # A demuxer may seek by decoding or by presentation time; the earlier of both is safe.
    decode_times = np.array(
        [packet.pts if packet.dts is None else packet.dts for packet in keys], dtype=np.int64
    )
    seeks = np.minimum(key_times, decode_times)
    # Pictures shown before the first key frame refer to what was cut off.
    decodable = np.sort(times[times >= key_times.min()])
    return Timeline(decodable, key_times[order], seeks[order])


def runs(timeline: Timeline, indices: list[int]) -> list[list[int]]:
    """Indices split where a whole group of pictures lies between two of them."""
    keys = np.searchsorted(timeline.key_times, timeline.times[indices], side="right")
    cuts = np.flatnonzero(np.diff(keys) > 1) + 1
    return [part.tolist() for part in np.split(np.asarray(indices), cuts)]


def frames_at(frames: Iterable[VideoFrame], times: npt.NDArray[np.int64]) -> Iterator[VideoFrame]:
    """The frames of ascending `times`, up to the first that is missing or damaged."""
    remaining = iter(times.tolist())
    wanted = next(remaining, None)
    for frame in frames:
        if wanted is None:
            return
        if frame.pts is None or frame.pts < wanted:
            continue
        if frame.pts > wanted or frame.is_corrupt:
            return
        yield frame
        wanted = next(remaining, None)
        if wanted is None:
            return
