"""What a batch is, and what happens to its clips: erasing, mixup, cutmix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from kinema.config import Config
from kinema.models.pixels import PIXEL_MEAN, PIXEL_STD, unit_range
from kinema.models.target_rule import ClipInputs
from kinema.randomness import keyed_rng

Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Sample:
    """One clip as the dataset gives it, before batching.

    `key` names the draw (video, epoch, repetition) or, in evaluation, the video; `clip` uint8
    (3, T, H, W); `mask` bool (tokens,), True = hidden, or None; `inner` bool (tokens,), True = the
    token overlaps the motion box of its slot, or None; `label` -1 when unknown; `motion` what the
    target asked for, see `models.target_rule.ClipInputs`, frames in uint8.
    """

    key: str
    label: int
    clip: np.ndarray
    mask: np.ndarray | None = None
    inner: np.ndarray | None = None
    statistics: dict[str, float] | None = None
    motion: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Stacked samples. `statistics` holds a float32 (B,) per name, NaN where it does not apply."""

    keys: tuple[str, ...]
    clip: Tensor
    labels: Tensor
    mask: Tensor | None
    inner: Tensor | None
    statistics: dict[str, Tensor]
    motion: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, but for `mask`.

        Its tokens are counted to give the network's input its shape, and counting on a GPU would
        wait for all that runs there.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU copies from by itself; `DataLoader` asks for it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With every tensor but `mask` and `statistics`, which stay on the CPU, changed."""
        return replace(
            self,
            clip=change(self.clip),
            labels=change(self.labels),
            inner=None if self.inner is None else change(self.inner),
            motion={name: change(tensor) for name, tensor in self.motion.items()},
        )

    def inputs(self) -> ClipInputs:
        """What a target reads, colours in [0, 1]."""
        return ClipInputs(
            unit_range(self.clip),
            {
                name: unit_range(tensor) if tensor.dtype == torch.uint8 else tensor
                for name, tensor in self.motion.items()
            },
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; all must carry the same optional parts."""
    first = samples[0]
    names = first.statistics or {}
    return Batch(
        keys=tuple(sample.key for sample in samples),
        clip=torch.from_numpy(np.stack([sample.clip for sample in samples])),
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        mask=None if first.mask is None else _stack([sample.mask for sample in samples]),
        inner=None if first.inner is None else _stack([sample.inner for sample in samples]),
        statistics={
            name: torch.tensor([(sample.statistics or {})[name] for sample in samples])
            for name in names
        },
        motion={
            name: torch.from_numpy(np.stack([sample.motion[name] for sample in samples]))
            for name in first.motion
        },
    )


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor:
    return torch.from_numpy(np.stack([array for array in arrays if array is not None]))


class ErasingConfig(Config):
    """Random erasing with pixel noise, one region for all frames (VideoMAE's finetuning recipe)."""

    probability: Probability = 0.25
    min_area: Probability = 0.02
    max_area: Probability = 1 / 3
    min_aspect: Annotated[float, Field(gt=0, le=1)] = 0.3


def random_erase(clip: np.ndarray, config: ErasingConfig, rng: np.random.Generator) -> np.ndarray:
    """Overwrite one random rectangle of a uint8 (3, T, H, W) clip, in all frames, with noise.

    The noise is normal with the mean and deviation of the normalisation, as if drawn after it, cut
    to [0, 255].
    """
    if rng.random() >= config.probability:
        return clip
    height, width = clip.shape[-2:]
    for _ in range(10):
        area = rng.uniform(config.min_area, config.max_area) * height * width
        aspect = np.exp(rng.uniform(np.log(config.min_aspect), -np.log(config.min_aspect)))
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            break
    else:
        return clip
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    shape = (3, clip.shape[1], h, w)
    mean = np.array(PIXEL_MEAN).reshape(3, 1, 1, 1)
    std = np.array(PIXEL_STD).reshape(3, 1, 1, 1)
    noise = (rng.standard_normal(shape) * std + mean) * 255
    erased = clip.copy()
    erased[..., top : top + h, left : left + w] = np.clip(noise, 0, 255).astype(np.uint8)
    return erased


class MixingConfig(Config):
    """Mixup and cutmix between neighbours of a batch (VideoMAE: 0.8, 1.0; always one of them)."""

    mixup: NonNegativeFloat = Field(0.8, description="Beta parameter of mixup; 0 = off")
    cutmix: NonNegativeFloat = Field(1.0, description="Beta parameter of cutmix; 0 = off")
    probability: Probability = 1.0
    switch: Probability = Field(0.5, description="share of cutmix when both are on")
    mix_boxes: Literal["union", "keep"] = Field(
        "union", description="inner tokens of a mixed clip: those of either box, or the first's"
    )

    @property
    def active(self) -> bool:
        """Whether any clip is ever mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def soft_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Integer labels (B,) -> smoothed one-hot (B, num_classes), float32."""
    off = smoothing / num_classes
    target = torch.full((len(labels), num_classes), off, device=labels.device)
    return target.scatter_(1, labels[:, None], 1 - smoothing + off)


def mix(batch: Batch, targets: Tensor, config: MixingConfig, seed: int) -> tuple[Batch, Tensor]:
    """Mix clips 2k and 2k + 1 with each other; `targets` (B, classes) mix alike.

    Neighbours share a micro-batch at every world size, and the draw is keyed by both names, so the
    number of GPUs changes nothing. `batch.clip` must be float; B must be even.
    """
    if not config.active:
        return batch, targets
    clip, mixed_targets = batch.clip.clone(), targets.clone()
    inner = None if batch.inner is None else batch.inner.clone()
    for i in range(0, len(batch.keys), 2):
        j = i + 1
        rng = keyed_rng(seed, batch.keys[i], batch.keys[j], "mix")
        if rng.random() >= config.probability:
            continue
        cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < config.switch)
        alpha = config.cutmix if cut else config.mixup
        keep = float(rng.beta(alpha, alpha))
        first, second = batch.clip[i], batch.clip[j]
        if cut:
            top, bottom, left, right = _cut_region(keep, first.shape[-2], first.shape[-1], rng)
            region = (..., slice(top, bottom), slice(left, right))
            clip[i][region], clip[j][region] = second[region], first[region]
            keep = 1 - (bottom - top) * (right - left) / (first.shape[-2] * first.shape[-1])
        else:
            clip[i], clip[j] = (
                keep * first + (1 - keep) * second,
                keep * second + (1 - keep) * first,
            )
        mixed_targets[i] = keep * targets[i] + (1 - keep) * targets[j]
        mixed_targets[j] = keep * targets[j] + (1 - keep) * targets[i]
        if inner is not None and config.mix_boxes == "union":
            inner[i] = inner[j] = inner[i] | inner[j]
    return replace(batch, clip=clip, inner=inner), mixed_targets


def _cut_region(
    keep: float, height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Rectangle of about (1 - keep) of the area around a uniform centre, clipped to the frame."""
    half_h, half_w = (round(side * np.sqrt(1 - keep)) // 2 for side in (height, width))
    y, x = rng.integers(0, height), rng.integers(0, width)
    return (
        max(0, int(y) - half_h),
        min(height, int(y) + half_h),
        max(0, int(x) - half_w),
        min(width, int(x) + half_w),
    )
