"""What a target reads of a clip besides its pixels: frames, flow and tracks between the sampled
frames (MME, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinema.geometry import Transform
from kinema.models.target_rule import MotionRequest
from kinema.models.vit import ViTConfig
from kinema.motion.fields import FlowRun
from kinema.motion.tracks import patch_points, track


@dataclass(frozen=True)
class RequestTimes:
    """The raw frames that requests look at.

    Attributes:
        requests: by name.
        times: (slots, L) int64 each, also past the video's end.
        vit: the clip's size.
        stride: frames that a flow spans.
    """

    requests: Mapping[str, MotionRequest]
    times: Mapping[str, NDArray[np.int64]]
    vit: ViTConfig
    stride: int

    def frames(self, span: range) -> NDArray[np.int64]:
        """The frames whose pixels are needed, request after request; the last one is repeated."""
        wanted = [np.zeros(0, np.int64)]
        for name, asked in self.requests.items():
            if asked.frames:
                wanted.append(self.times[name].reshape(-1))
        frames: NDArray[np.int64] = np.minimum(np.concatenate(wanted), span.stop - 1)
        return frames

    def flow_span(self) -> tuple[int, int] | None:
        """First and last frame from which flow is needed, or None."""
        wanted = [
            self.times[name] for name, asked in self.requests.items() if asked.flow or asked.points
        ]
        if not wanted:
            return None
        return min(int(times.min()) for times in wanted), max(int(t.max()) for t in wanted)

    def read(
        self, frames: NDArray[np.uint8], run: FlowRun | None, transform: Transform
    ) -> dict[str, NDArray[Any]]:
        """Everything asked for, by `request/what` as `ClipInputs.motion` describes it.

        Args:
            frames: (n, h, w, 3) uint8 of `frames`, transformed.
            run: flow over `flow_span`.
            transform: source frame -> network input.
        """
        found: dict[str, NDArray[Any]] = {}
        used = 0
        for name, asked in self.requests.items():
            times = self.times[name]
            if asked.frames:
                mine = frames[used : used + times.size]
                used += times.size
                shaped = mine.reshape(*times.shape, *mine.shape[1:])
                found[f"{name}/frames"] = np.ascontiguousarray(shaped.transpose(0, 1, 4, 2, 3))
            if asked.flow:
                assert run is not None
                found[f"{name}/flow"] = _flow_at(run, times, transform)
            if asked.points:
                assert run is not None
                points = patch_points(self.vit.image_size, self.vit.patch_size, asked.points)
                tracks = track(
                    run, times[:, 0], points, asked.length, self.stride, transform, asked.follow
                )
                found[f"{name}/positions"] = tracks.positions
                found[f"{name}/displacements"] = tracks.displacements
                found[f"{name}/valid"] = tracks.valid
        return found


def request_times(
    requests: Mapping[str, MotionRequest],
    indices: NDArray[np.int64],
    vit: ViTConfig,
    stride: int,
) -> RequestTimes:
    """When requests look at a clip of frames `indices` (T,)."""
    slots = indices.reshape(-1, vit.tubelet_size)
    times = {
        name: slots[:, : asked.length]
        if asked.at == "sampled"
        else slots[:, :1] + stride * np.arange(asked.length)
        for name, asked in requests.items()
    }
    return RequestTimes(requests, times, vit, stride)


def _flow_at(run: FlowRun, times: NDArray[np.int64], transform: Transform) -> NDArray[np.float32]:
    """Flow (slots, L, h, w, 2) in input pixels; a time past the last flow takes that one."""
    index = np.minimum(np.searchsorted(run.frames, times), len(run.frames) - 1)
    different, place = np.unique(index, return_inverse=True)
    return transform.field(run.flow[different])[place.reshape(times.shape)]
