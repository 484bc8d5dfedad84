"""Linear classifiers on frozen, mean-pooled features.

MME (section 4.1) follows SVT: the backbone is fixed and a linear layer is trained for 20 epochs;
MGM (Table 2 (c), (d)) gives no recipe. SVT trains with SGD and a base rate of 0.001. MAE trains 90
epochs with LARS, a base rate of 0.1, batches of 16384, no weight decay and 10 warm-up epochs, and
puts a batch norm without affine parameters before the layer.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Annotated, Literal, Self

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from kinema.config import Config
from kinema.errors import ConfigError
from kinema.evaluation.features import Features
from kinema.evaluation.gradient_probe import LR_REFERENCE, train_on_views, view_probabilities
from kinema.evaluation.probe_rule import ProbeRule, Setting

NORM_EPS = 1e-6
INIT_STD = 0.01
MOMENTUM = 0.9


class Sgd(Config):
    """SGD with momentum 0.9 and a cosine schedule to 0."""

    name: Literal["sgd"] = "sgd"
    epochs: PositiveInt = Field(20, description="MME, section 4.1; MAE: 90")
    warmup_epochs: NonNegativeInt = Field(0, description="rate rises from 0; MAE: 10")
    batch_size: PositiveInt = Field(256, description="views per step")
    base_lr: list[PositiveFloat] = Field(
        [0.1],
        min_length=1,
        description="rate at batches of 256; several: a held-out tenth of the training videos"
        " chooses",
    )
    weight_decay: list[NonNegativeFloat] = Field(
        [0.0], min_length=1, description="several: chosen likewise, at every rate"
    )

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leave nothing of {self.epochs}")
        return self

    def settings(self) -> list[Setting]:
        """Every rate with every decay."""
        pairs = itertools.product(self.base_lr, self.weight_decay)
        return [{"base_lr": rate, "weight_decay": decay} for rate, decay in pairs]


class Lbfgs(Config):
    """Multinomial logistic regression with an L2 penalty, fitted to convergence (scikit-learn)."""

    name: Literal["lbfgs"] = "lbfgs"
    c: list[PositiveFloat] = Field(
        [1e-3, 1e-2, 1e-1, 1.0, 10.0],
        min_length=1,
        description="inverse strength of the penalty; several: a held-out tenth of the training"
        " videos chooses",
    )
    tolerance: PositiveFloat = Field(1e-4, description="largest gradient left at the end")
    max_iterations: PositiveInt = 2000

    def settings(self) -> list[Setting]:
        """Every strength."""
        return [{"c": value} for value in self.c]


class LinearProbe(ProbeRule):
    """A linear layer on the mean of a view's tokens."""

    name: Literal["linear"] = "linear"
    optimizer: Annotated[Sgd | Lbfgs, Field(discriminator="name")] = Sgd()
    normalisation: Literal["none", "batch_norm", "standardise"] | None = Field(
        None,
        description="of features: none, batch_norm without affine parameters (MAE), or standardise"
        " by mean and deviation of the training videos; null = batch_norm for sgd, standardise for"
        " lbfgs",
    )

    @model_validator(mode="after")
    def _has_batches(self) -> Self:
        if self.optimizer.name == "lbfgs" and self.normalisation == "batch_norm":
            raise ValueError("lbfgs has no batches: set normalisation=standardise or none")
        return self

    def settings(self) -> list[Setting]:
        """Of the optimizer."""
        return self.optimizer.settings()

    def fit_predict(
        self,
        train: Features,
        asked: NDArray[np.floating],
        num_classes: int,
        setting: Setting,
        seed: int,
        device: torch.device,
    ) -> NDArray[np.float32]:
        """See `ProbeRule.fit_predict`."""
        if isinstance(self.optimizer, Lbfgs):
            shift, scale = np.zeros(1), np.ones(1)
            if self.normalisation != "none":
                shift, scale = moments(train)
            return _regress(self.optimizer, setting["c"], train, asked, num_classes, shift, scale)
        layer = self._layer(train, num_classes, seed)
        rate = setting["base_lr"] * self.optimizer.batch_size / LR_REFERENCE
        train_on_views(
            layer,
            torch.optim.SGD(
                layer.parameters(), rate, MOMENTUM, weight_decay=setting["weight_decay"]
            ),
            train,
            epochs=self.optimizer.epochs,
            warmup_epochs=self.optimizer.warmup_epochs,
            batch_size=self.optimizer.batch_size,
            seed=seed,
            device=device,
        )
        return view_probabilities(layer, asked, self.optimizer.batch_size, device)

    def _layer(self, train: Features, num_classes: int, seed: int) -> nn.Module:
        dim = train.values.shape[-1]
        linear = nn.Linear(dim, num_classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(linear.weight, std=INIT_STD, generator=generator)
        nn.init.zeros_(linear.bias)
        if self.normalisation == "none":
            return linear
        norm = nn.BatchNorm1d(dim, eps=NORM_EPS, affine=False)
        if self.normalisation == "standardise":
            return nn.Sequential(_Standardise(*moments(train)), linear)
        return nn.Sequential(norm, linear)


class _Standardise(nn.Module):
    shift: Tensor
    scale: Tensor

    def __init__(self, shift: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.from_numpy(shift).float())
        self.register_buffer("scale", torch.from_numpy(scale).float())

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.shift) / self.scale


def moments(train: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation (dim,) of every feature over all views of the training videos."""
    seen = rearrange(train.values, "n v d -> (n v) d").astype(np.float64)
    return seen.mean(axis=0), np.maximum(seen.std(axis=0), NORM_EPS)


def _regress(
    optimizer: Lbfgs,
    c: float,
    train: Features,
    asked: NDArray[np.floating],
    num_classes: int,
    shift: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Logistic regression; a video counts once, however many views it has."""
    if len(np.unique(train.labels)) < 2:
        raise ConfigError([f"probe: all {len(train)} training videos are of one class"])
    samples, views = (
        (rearrange(values, "n v d -> (n v) d") - shift) / scale for values in (train.values, asked)
    )
    model = LogisticRegression(
        C=c, solver="lbfgs", tol=optimizer.tolerance, max_iter=optimizer.max_iterations
    )
    labels = repeat(train.labels, "n -> (n v)", v=train.num_views)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(samples, labels, np.full(len(samples), 1 / train.num_views))
        except ConvergenceWarning as warning:
            raise ConfigError(
                [
                    f"probe.optimizer: no convergence within max_iterations"
                    f" {optimizer.max_iterations} at c={c:g}; raise it, or set"
                    " probe.normalisation=standardise"
                ]
            ) from warning
    scores = np.zeros((len(views), num_classes), np.float32)
    scores[:, model.classes_] = model.predict_proba(views)
    return np.asarray(rearrange(scores, "(n v) c -> n v c", v=asked.shape[1]))
