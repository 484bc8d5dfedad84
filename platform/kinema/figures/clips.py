"""A clip as pretraining sees it: frames and box, motion, what stays visible, what is predicted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kinema.models.pixels import clip_of
from kinema.models.target_rule import TargetRule
from kinema.models.targets import PixelTarget
from kinema.models.vit import ViTConfig
from kinema.motion.clip import ClipMotion, SlotField
from kinema.motion.flow import Estimator, to_grey
from kinema.training.batch import Sample, collate

TILE = 1.5
"""Inches."""
BOX, TRACK = "#ffd200", "#00c8ff"
HIDDEN = 0.82
"""How far a hidden token goes towards grey."""


def clip_figure(
    sample: Sample,
    seen: ClipMotion,
    target: TargetRule,
    vit: ViTConfig,
    estimator: Estimator | None = None,
) -> Figure:
    """One column per slot, four rows: frame and boxes, motion, visible tokens, target.

    A slot's own box is a line; the clip's box, by which a motion-box mask goes, is dashed. The
    title says what is hidden of it, and where it had to be made up. A row without a box, or without
    motion, says so: the mask may read none. All slots share one scale of motion; the row's title
    gives its brightest value, and the root is drawn, or one fast cell would darken all others.

    Args:
        sample: with a mask, and what the target asked for.
        seen: the motion that the mask saw.
        target: of the hidden tokens. Pixels are drawn as such, first frame of a slot, all tokens
            with the mean contrast of the visible ones; trajectories as lines; of anything else the
            strength, the root mean square of a token's numbers.
        vit: the clip's size.
        estimator: of flow, which is drawn, from the first to the last frame of a slot, where the
            mask saw no field.
    """
    grid = vit.grid
    frames = sample.clip.transpose(1, 2, 3, 0)[:: vit.tubelet_size]
    assert sample.mask is not None
    mask = sample.mask.reshape(grid.slots, grid.height, grid.width)
    predicted = _predicted(sample, target, vit)
    figure = Figure((TILE * grid.slots + 1.0, 4 * TILE + 0.5), layout="compressed")
    axes: Any = figure.subplots(4, grid.slots, squeeze=False)
    motion = _motion(sample, seen.field, vit, estimator)
    strongest = max((float(np.nanmax(part, initial=0)) for part in motion), default=0.0)
    titles = (
        "frame" if seen.boxes is None else "frame, boxes",
        f"motion to {strongest:.1f} px" if motion else "motion: none read",
        "visible",
        f"target: {target.name}",  # type: ignore[attr-defined]
    )
    for row, title in enumerate(titles):
        axes[row, 0].set_ylabel(title, fontsize=8)
    size = vit.image_size
    for slot in range(grid.slots):
        column: list[Any] = list(axes[:, slot])
        for axis in column:
            axis.set(xticks=[], yticks=[], xlim=(0, size), ylim=(size, 0))
        shown: Any = {"extent": (0, size, size, 0)}
        column[0].imshow(frames[slot], **shown)
        if seen.boxes is not None:
            _draw_box(column[0], seen.boxes.boxes[slot], "solid")
            _draw_box(column[0], seen.boxes.box, "dashed")
            _draw_box(column[2], seen.boxes.box, "dashed")
        column[1].imshow(frames[slot].mean(axis=-1), cmap="gray", alpha=0.5, **shown)
        if motion:
            extent = (0, size, size, 0) if seen.field is None else _extent(seen.field, size)
            column[1].imshow(
                motion[slot],
                cmap="inferno",
                norm=PowerNorm(0.5, vmin=0, vmax=max(strongest, 1e-9)),
                alpha=0.8,
                extent=extent,
                interpolation="nearest",
            )
            column[1].set(xlim=(0, size), ylim=(size, 0))
        hidden = mask[slot].repeat(vit.patch_size, 0).repeat(vit.patch_size, 1)[..., None]
        veiled = np.where(hidden, HIDDEN * 128 + (1 - HIDDEN) * frames[slot], frames[slot])
        column[2].imshow(veiled.astype(np.uint8), **shown)
        column[3].imshow(predicted[slot], cmap="magma", vmin=0, vmax=np.nanmax(predicted), **shown)
        _draw_tracks(column[3], sample, slot, mask[slot], vit)
    figure.suptitle(f"{sample.key}\n{_told(sample, seen)}", fontsize=8)
    return figure


def _told(sample: Sample, seen: ClipMotion) -> str:
    """What the mask hides."""
    known = sample.statistics or {}
    assert sample.mask is not None
    parts = [f"hidden: {sample.mask.mean():.1%}"]
    if seen.boxes is not None and not math.isnan(known.get("inside_ratio", math.nan)):
        parts[0] += f", inside the clip's box {known['inside_ratio']:.1%}"
        parts.append(f"the box holds {known['inside_share']:.1%} of the tokens")
    if known.get("clipped_share"):
        parts.append("the asked share does not fit")
    if known.get("fallback_share"):
        parts.append("FALLBACK: nothing moves in view")
    return "; ".join(parts)


def _draw_box(axis: Any, box: npt.NDArray[np.float64], style: str) -> None:
    left, top, right, bottom = box
    axis.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, color=BOX, lw=1.2, ls=style)
    )


def _motion(
    sample: Sample, field: SlotField | None, vit: ViTConfig, estimator: Estimator | None
) -> list[npt.NDArray[np.float64]]:
    """How far what is seen moves within each slot, in pixels; empty where nobody knows."""
    slots = range(vit.grid.slots)
    if field is not None:
        return [_cells(field, slot) for slot in slots]
    if estimator is None:
        return []
    ends = [(slot * vit.tubelet_size, (slot + 1) * vit.tubelet_size - 1) for slot in slots]
    frames = sample.clip.transpose(1, 2, 3, 0)
    grey = [[to_grey(np.ascontiguousarray(frames[i])) for i in pair] for pair in ends]
    return [np.linalg.norm(estimator(*pair), axis=-1).astype(np.float64) for pair in grey]


def _predicted(sample: Sample, target: TargetRule, vit: ViTConfig) -> npt.NDArray[Any]:
    """Pictures (slots, H, W, 3) of pixels, else strengths (slots, height, width).

    Visible tokens are white, or NaN.
    """
    batch = collate([sample])
    assert batch.mask is not None
    inputs = batch.inputs()
    with torch.no_grad():
        wanted = target.compute(inputs, batch.mask, vit)
        if isinstance(target, PixelTarget):
            whole = target.invert(wanted.values, batch.mask, inputs.clip, vit, "visible")
            hidden = clip_of(
                batch.mask[..., None, None].expand(-1, -1, target.dim(vit) // 3, 3), vit
            )
            picture = torch.where(hidden, whole.clamp(0, 1), 1.0)[0, :, :: vit.tubelet_size]
            return picture.permute(1, 2, 3, 0).numpy()
    values = wanted.values if wanted.weights is None else wanted.values * wanted.weights
    strength = np.full(vit.grid.tokens, np.nan)
    strength[batch.mask[0].numpy()] = values[0].square().mean(dim=-1).sqrt().numpy()
    return strength.reshape(vit.grid.slots, vit.grid.height, vit.grid.width)


def _cells(field: SlotField, slot: int) -> npt.NDArray[np.float64]:
    """A field as one picture: squares drawn one by one leave seams."""
    (xs, column), (ys, row) = (
        np.unique(places.round(3), return_inverse=True) for places in field.points.T
    )
    cells = np.full((len(ys), len(xs)), np.nan)
    cells[row, column] = field.magnitude[slot]
    return cells


def _extent(field: SlotField, size: int) -> tuple[float, float, float, float]:
    """Where that picture lies: left, right, bottom, top."""
    (left, right), (top, bottom) = (
        _edges(np.unique(places.round(3)), size) for places in field.points.T
    )
    return (left, right, bottom, top)


def _edges(centres: npt.NDArray[np.float64], size: int) -> tuple[float, float]:
    """Where a row of cells of one size begins and ends."""
    half = (centres[1] - centres[0]) / 2 if len(centres) > 1 else size / 2
    return centres[0] - half, centres[-1] + half


def _draw_tracks(
    axis: Any, sample: Sample, slot: int, hidden: npt.NDArray[Any], vit: ViTConfig
) -> None:
    """Trajectories of the hidden tokens that count."""
    for name, paths in sample.motion.items():
        if not name.endswith("/positions"):
            continue
        valid = sample.motion[name.replace("positions", "valid")][slot]
        per_patch = len(valid) // hidden.size
        chosen = valid & hidden.reshape(-1).repeat(per_patch)
        axis.add_collection(LineCollection(list(paths[slot][chosen]), colors=TRACK, linewidths=0.5))
