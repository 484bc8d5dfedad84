"""A learned query that attends to frozen tokens (V-JEPA's attentive probe)."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
import torch
from einops import repeat
from numpy.typing import NDArray
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor, nn

from kinema.errors import ConfigError
from kinema.evaluation.features import Features
from kinema.evaluation.gradient_probe import train_on_views, view_probabilities
from kinema.evaluation.probe_rule import ProbeRule, Setting
from kinema.evaluation.readout import token_grid
from kinema.models import layers
from kinema.models.cross_attention import CrossAttention
from kinema.models.vit import NORM_EPS, ViTConfig, init_weights

QUERY_STD = 0.02


class AttentiveProbe(ProbeRule):
    """One query cross-attends to all tokens of a view, then an MLP and a linear layer.

    Defaults: V-JEPA's for video: AdamW, 20 epochs, rate 0.001, weight decay 0.01, cosine to 0.
    """

    reads: ClassVar[Literal["mean", "tokens"]] = "tokens"

    name: Literal["attentive"] = "attentive"
    heads: PositiveInt = Field(12, description="must divide the encoder's width")
    mlp_ratio: PositiveFloat = Field(4.0, description="hidden width of the MLP over embed_dim")
    side: PositiveInt | None = Field(
        None, description="average the tokens of a slot to side x side; null = all tokens"
    )
    epochs: PositiveInt = 20
    warmup_epochs: NonNegativeInt = 0
    batch_size: PositiveInt = Field(256, description="views per step")
    lr: list[PositiveFloat] = Field(
        [1e-3],
        min_length=1,
        description="several: a held-out tenth of the training videos chooses",
    )
    weight_decay: list[NonNegativeFloat] = Field([0.01], min_length=1, description="likewise")

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leave nothing of {self.epochs}")
        return self

    def check(self, vit: ViTConfig) -> None:
        """Heads divide the width, and pooling divides the positions of a slot."""
        problems = []
        if vit.embed_dim % self.heads:
            problems.append(
                f"probe.heads: {self.heads} does not divide embed_dim {vit.embed_dim}; use one"
                " that does"
            )
        grid = token_grid(vit)
        if self.side is not None and any(side % self.side for side in grid[1:]):
            problems.append(
                f"probe.side: {self.side} does not divide the {grid[1]} x {grid[2]} tokens of a"
                " slot; use a divisor or null"
            )
        if problems:
            raise ConfigError(problems)

    def settings(self) -> list[Setting]:
        """Every rate with every decay."""
        return [
            {"lr": rate, "weight_decay": decay} for rate in self.lr for decay in self.weight_decay
        ]

    def tokens(self, vit: ViTConfig) -> int:
        """How many tokens of a view are kept."""
        slots, rows, columns = token_grid(vit)
        return slots * (rows * columns if self.side is None else self.side**2)

    def cache_bytes(self, vit: ViTConfig, num_videos: int, num_views: int) -> int:
        """Size of the kept tokens, float16."""
        return num_videos * num_views * self.tokens(vit) * vit.embed_dim * 2

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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = AttentiveClassifier(
                train.values.shape[-1], self.heads, self.mlp_ratio, num_classes
            )
        network.to(device)
        train_on_views(
            network,
            torch.optim.AdamW(
                network.parameters(), setting["lr"], weight_decay=setting["weight_decay"]
            ),
            train,
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            batch_size=self.batch_size,
            seed=seed,
            device=device,
        )
        return view_probabilities(network, asked, self.batch_size, device)


class AttentiveClassifier(nn.Module):
    """Query + attention(query, norm(tokens)), + MLP(norm(.)), then norm and a linear layer."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, num_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, dim))
        self.norm_tokens = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = CrossAttention(dim, heads, dim // heads, bias=True)
        self.norm_pooled = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = layers.mlp(dim, mlp_ratio)
        self.head = nn.Linear(dim, num_classes)
        init_weights(self)
        nn.init.trunc_normal_(self.query, std=QUERY_STD)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> what the query sees in them (B, D)."""
        query = repeat(self.query, "q d -> b q d", b=len(tokens))
        everything = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        seen = query + self.attention(query, self.norm_tokens(tokens), everything)
        out: Tensor = seen + self.mlp(self.norm_pooled(seen))
        return out[:, 0]

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> logits (B, classes)."""
        logits: Tensor = self.head(self.pooled(tokens))
        return logits
