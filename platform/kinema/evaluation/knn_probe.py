"""Nearest neighbours among frozen features: nothing is trained (protocol of DINO)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from kinema.evaluation.features import Features
from kinema.evaluation.probe_rule import ProbeRule, Setting

QUERIES = 1024
"""Views looked up at once."""


class KnnProbe(ProbeRule):
    """A vote of the training videos nearest by cosine similarity.

    A training video is the mean of its views' directions, so that the views of one do not count as
    several neighbours; every view of an asked video votes, and the votes are averaged.
    """

    name: Literal["knn"] = "knn"
    k: PositiveInt = Field(20, description="neighbours; all training videos where there are fewer")
    temperature: PositiveFloat = Field(
        0.07, description="a vote weighs exp(similarity / temperature)"
    )
    vote: Literal["weighted", "plain"] = Field("weighted", description="plain: every vote weighs 1")

    def fit_predict(
        self,
        train: Features,
        asked: NDArray[np.floating],
        num_classes: int,
        setting: Setting,
        seed: int,
        device: torch.device,
    ) -> NDArray[np.float32]:
        """See `ProbeRule.fit_predict`; probabilities are shares of the votes."""
        bank = F.normalize(_directions(train.values, device).mean(dim=1), dim=-1)
        labels = torch.tensor(train.labels, device=device)
        views = rearrange(_directions(asked, device), "n v d -> (n v) d")
        parts = [
            self._votes(part, bank, labels, num_classes) for part in torch.split(views, QUERIES)
        ]
        return np.asarray(rearrange(torch.cat(parts).numpy(), "(n v) c -> n v c", v=asked.shape[1]))

    def _votes(self, views: Tensor, bank: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        nearest = (views @ bank.T).topk(min(self.k, len(bank)), dim=1)
        # Only ratios of weights count; without the shift a small temperature overflows.
        weights = ((nearest.values - nearest.values[:, :1]) / self.temperature).exp()
        if self.vote == "plain":
            weights = torch.ones_like(weights)
        votes = torch.zeros(len(views), num_classes, device=views.device)
        votes.scatter_add_(1, labels[nearest.indices], weights)
        return (votes / votes.sum(dim=1, keepdim=True)).cpu()


def _directions(values: NDArray[np.floating], device: torch.device) -> Tensor:
    # copied: arrays out of Ray's object store are read-only, which torch warns about
    return F.normalize(torch.tensor(values, dtype=torch.float32, device=device), dim=-1)
