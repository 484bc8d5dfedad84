"""AdamW, its parameter groups and the learning-rate schedule of VideoMAE's recipes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn

from kinema.config import Config

REFERENCE_BATCH_SIZE = 256
"""Batch size that `base_lr` and `min_lr` are stated for (linear scaling rule)."""

UnitInterval = Annotated[float, Field(ge=0, le=1)]


class OptimConfig(Config):
    """AdamW with linear warm-up from zero and cosine decay, both per step."""

    base_lr: PositiveFloat = Field(1.5e-4, description="learning rate per 256 clips of a batch")
    min_lr: NonNegativeFloat = Field(1e-5, description="final learning rate per 256 clips")
    warmup_epochs: NonNegativeFloat = 40
    weight_decay: NonNegativeFloat = 0.05
    betas: tuple[UnitInterval, UnitInterval] = (0.9, 0.95)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor on the learning rate per block away from the head; 1 = off"
    )
    clip_grad: NonNegativeFloat = Field(0.0, description="clip the global gradient norm; 0 = off")


@dataclass(frozen=True)
class Schedule:
    """Closed-form learning rate: a pure function of the step, so resuming needs no state."""

    peak: float
    floor: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        """Learning rate of optimizer step `step` in [0, total_steps)."""
        if step < self.warmup_steps:
            return (
                self.peak * step / max(1, self.warmup_steps - 1) if self.warmup_steps > 1 else 0.0
            )
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.floor + 0.5 * (self.peak - self.floor) * (1 + math.cos(math.pi * progress))


def schedule(
    config: OptimConfig, global_batch_size: int, steps_per_epoch: int, epochs: float
) -> Schedule:
    """Schedule of a run; peak and floor both scale with the batch (VideoMAE's recipe).

    An experiment's check keeps `config.warmup_epochs` below `epochs`.
    """
    scale = global_batch_size / REFERENCE_BATCH_SIZE
    total = max(1, round(epochs * steps_per_epoch))
    warmup = round(config.warmup_epochs * steps_per_epoch)
    return Schedule(config.base_lr * scale, config.min_lr * scale, warmup, total)


def layer_index(name: str, depth: int) -> int:
    """Depth of parameter `name`: k + 1 = block k, 0 = what is before blocks, depth + 1 = behind."""
    if re.search(r"(^|\.)(patch_embed\.|class_token$)", name):
        return 0
    block = re.search(r"(^|\.)encoder\.blocks\.(\d+)\.", name)
    return int(block[2]) + 1 if block else depth + 1


def parameter_groups(
    model: nn.Module, config: OptimConfig, depth: int
) -> tuple[list[dict[str, object]], list[float]]:
    """Parameter groups for AdamW and, in the same order, each group's factor on the learning rate.

    Biases, norms and mask tokens are not decayed. With layer decay d and depth D the patch
    embedding gets d^(D+1), block k d^(D-k), everything after the encoder 1.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(("bias", "mask_token"))
        decay = 0.0 if plain else config.weight_decay
        factor = config.layer_decay ** (depth + 1 - layer_index(name, depth))
        groups.setdefault((factor, decay), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: item[0])
    return (
        [{"params": parameters, "weight_decay": decay} for (_, decay), parameters in ordered],
        [factor for (factor, _), _ in ordered],
    )


def adamw(
    groups: list[dict[str, object]], config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over `groups`; the fused kernel on a GPU."""
    return torch.optim.AdamW(
        groups, lr=config.base_lr, betas=config.betas, eps=1e-8, fused=device.type == "cuda"
    )
