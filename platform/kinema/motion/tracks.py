"""Dense motion trajectories (MME, section 3.3 and appendix B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kinema.geometry import Transform
from kinema.motion.camera import move
from kinema.motion.fields import FlowRun

Floats = npt.NDArray[np.float64]
Follow = Literal["raw", "stabilised"]


@dataclass(frozen=True)
class Tracks:
    """Where points of a clip go, in network-input pixels.

    Attributes:
        positions: (slots, P, L + 1, 2) float32 x, y.
        displacements: (slots, P, L, 2) float32, each step without the camera's motion.
        valid: (slots, P) bool; False once a point has left the input, or the video has ended.
    """

    positions: npt.NDArray[np.float32]
    displacements: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


def track(
    run: FlowRun,
    starts: npt.NDArray[np.int64],
    points: Floats,
    length: int,
    stride: int,
    transform: Transform,
    follow: Follow = "raw",
) -> Tracks:
    """Follow points through `length` steps from the first raw frame of every slot (MME, Eq. 2, 6).

    Args:
        run: flow over `stride` frames; must hold every step that the video has.
        starts: (slots,) raw frames.
        points: (P, 2) x, y in network-input pixels, the same in every slot.
        length: L, steps.
        stride: frames per step.
        transform: source frame -> network input.
        follow: `raw` moves a point with what it lies on, also under a moving camera; `stabilised`
            with the flow of which the camera's motion was removed (Eq. 6 to the letter).
    """
    back = np.linalg.inv(transform.matrix)
    here = np.broadcast_to(points @ back[:2, :2].T + back[:2, 2], (len(starts), *points.shape))
    at, steps = [here], []
    valid = _inside(np.broadcast_to(points, here.shape), transform)
    for step in range(length):
        frames = starts + step * stride
        index = np.searchsorted(run.frames, frames)
        index = np.minimum(index, len(run.frames) - 1)
        known = run.frames[index] == frames
        moved = sample_flow(run.flow, run.cell, index, here)
        moved = np.where(known[:, None, None], moved, 0.0)
        ahead = here + moved
        if follow == "raw":
            camera = np.where(known[:, None, None], run.cameras[index], np.eye(3))
            ahead = move(ahead, camera[:, None])
        valid = valid & _inside(transform.points(ahead), transform) & known[:, None]
        at.append(ahead)
        steps.append(moved)
        here = ahead
    return Tracks(
        positions=transform.points(np.stack(at, axis=2)).astype(np.float32),
        displacements=transform.displacements(np.stack(steps, axis=2)).astype(np.float32),
        valid=valid,
    )


def sample_flow(
    flow: npt.NDArray[np.float32],
    cell: tuple[float, float],
    index: npt.NDArray[np.intp],
    points: Floats,
) -> Floats:
    """Flow at points between the cells' centres, linearly; beyond the outermost ones theirs.

    Args:
        flow: (F, rows, columns, 2).
        cell: width and height of a cell in the points' units.
        index: (S,) the field that each row of points asks.
        points: (S, P, 2) x, y.

    Returns:
        (S, P, 2).
    """
    rows, columns = flow.shape[1:3]
    x = np.clip(points[..., 0] / cell[0] - 0.5, 0, columns - 1)
    y = np.clip(points[..., 1] / cell[1] - 0.5, 0, rows - 1)
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    right, bottom = np.minimum(left + 1, columns - 1), np.minimum(top + 1, rows - 1)
    u, v = (x - left)[..., None], (y - top)[..., None]
    which = index[:, None]
    upper = flow[which, top, left] * (1 - u) + flow[which, top, right] * u
    lower = flow[which, bottom, left] * (1 - u) + flow[which, bottom, right] * u
    return np.asarray(upper * (1 - v) + lower * v, dtype=np.float64)


def patch_points(image_size: int, patch_size: int, per_patch: int) -> Floats:
    """`per_patch` points (a square number) spread evenly over every patch.

    Returns:
        (patches * per_patch, 2) float64 x, y; patch by patch, row by row, and so within each.
    """
    side = round(per_patch**0.5)
    offsets = (np.arange(side) + 0.5) * (patch_size / side)
    corners = np.arange(image_size // patch_size) * float(patch_size)
    y, x, dy, dx = np.meshgrid(corners, corners, offsets, offsets, indexing="ij")
    return np.stack([x + dx, y + dy], axis=-1).reshape(-1, 2)


def _inside(points: Floats, transform: Transform) -> npt.NDArray[np.bool_]:
    """P of MME's Eq. 7: 0 < x < W and 0 < y < H."""
    height, width = transform.size
    return np.asarray(((points > 0) & (points < [width, height])).all(axis=-1))
