"""What every target has in common: what it reads, what it gives, how its loss weighs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kinema.config import Config
from kinema.models.vit import ViTConfig, gather_tokens, token_indices


@dataclass(frozen=True)
class MotionRequest:
    """What a target reads of a clip besides its pixels, at some times of every slot.

    Attributes:
        at: `raw` times are the frames `length` flow strides apart from the slot's first sampled
            one on; `sampled` times are the slot's sampled frames.
        length: times per slot.
        frames: their pixels are needed.
        flow: the dense flow that starts at them is needed.
        points: tracked points per patch, 0 for none.
        follow: see `motion.tracks.track`.
    """

    at: Literal["raw", "sampled"]
    length: int
    frames: bool = False
    flow: bool = False
    points: int = 0
    follow: Literal["raw", "stabilised"] = "raw"


@dataclass(frozen=True)
class ClipInputs:
    """A batch of clips, and what requests brought of their motion.

    Attributes:
        clip: float (B, 3, T, H, W) in [0, 1], before ImageNet normalisation.
        motion: by `request name/what`: `frames` float (B, slots, L, 3, H, W) in [0, 1]; `flow`
            (B, slots, L, H, W, 2) px per stride; `positions` (B, slots, P, L + 1, 2) px,
            `displacements` (B, slots, P, L, 2) px and `valid` bool (B, slots, P).
    """

    clip: Tensor
    motion: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What should have been predicted.

    Attributes:
        values: (B, hidden, dim), hidden tokens in ascending order; at least float32.
        weights: of the same shape, or None where all count alike.
    """

    values: Tensor
    weights: Tensor | None = None


class TargetRule(Config):
    """A target is a frozen config that does the work itself: `dims`, `compute`, `loss`."""

    @property
    def needs(self) -> frozenset[str]:
        """What must be in the motion store: `flow`, or nothing."""
        return frozenset()

    def requests(self, vit: ViTConfig) -> dict[str, MotionRequest]:
        """What it reads besides the clip, by names of its own choice."""
        return {}

    def check(self, vit: ViTConfig) -> None:
        """Refuse an encoder that the target does not fit.

        Raises:
            ConfigError: naming the numbers that do not go together.
        """

    @abstractmethod
    def dims(self, vit: ViTConfig) -> tuple[int, ...]:
        """Numbers per token of every part that a decoder of its own may predict."""

    def dim(self, vit: ViTConfig) -> int:
        """Numbers per token."""
        return sum(self.dims(vit))

    @abstractmethod
    def compute(self, inputs: ClipInputs, mask: Tensor, vit: ViTConfig) -> Wanted:
        """Targets of the hidden tokens.

        Args:
            inputs: of the clips.
            mask: bool (B, N), True = hidden; equally many in every clip.
            vit: the clip's size.
        """

    def loss(self, prediction: Tensor, wanted: Wanted) -> Tensor:
        """Weighted mean squared error over (B, hidden, dim): a scalar of the target's dtype.

        A batch in which nothing counts has the loss 0.
        """
        squared = (prediction.to(wanted.values.dtype) - wanted.values) ** 2
        if wanted.weights is None:
            return squared.mean()
        return (squared * wanted.weights).sum() / wanted.weights.sum().clamp_min(1)


def hidden_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Of values (B, N, D) those of the hidden tokens: (B, hidden, D), at least float32."""
    hidden = gather_tokens(values, token_indices(mask))
    return hidden.to(torch.promote_types(values.dtype, torch.float32))
