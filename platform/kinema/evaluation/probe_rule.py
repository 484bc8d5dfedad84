"""What every probe offers: settings to choose from, and fitting to labelled features."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kinema.config import Config
from kinema.evaluation.features import Features
from kinema.models.vit import ViTConfig

Setting = dict[str, float]
"""One choice of the knobs that held-out videos decide about."""


class ProbeRule(Config):
    """A classifier on frozen features. The encoder never changes."""

    reads: ClassVar[Literal["mean", "tokens"]] = "mean"
    """What it is fitted to: the mean of a view's tokens, or all of them."""

    def check(self, vit: ViTConfig) -> None:
        """Refuse an encoder that the probe does not fit.

        Raises:
            ConfigError: naming the numbers that do not go together.
        """

    def settings(self) -> list[Setting]:
        """What held-out training videos choose from; one setting needs no choice."""
        return [{}]

    @abstractmethod
    def fit_predict(
        self,
        train: Features,
        asked: NDArray[np.floating],
        num_classes: int,
        setting: Setting,
        seed: int,
        device: torch.device,
    ) -> NDArray[np.float32]:
        """Fit to all views of `train`, and say what the views of other videos are.

        Args:
            train: labelled, ordered by id.
            asked: (videos, views, *dims).
            num_classes: width of the answer; a class without a training video gets 0 or little.
            setting: one of `settings()`.
            seed: of everything random.
            device: to compute on.

        Returns:
            Probabilities float32 (videos, views, classes).
        """
