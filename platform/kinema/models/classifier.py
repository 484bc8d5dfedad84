"""Clip classifier: encoder, pooling, LayerNorm, linear layer (VideoMAE; MOFO, section 3.3)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from kinema.config import Config
from kinema.errors import ConfigError
from kinema.models.backbones import build_encoder, pool_tokens
from kinema.models.cross_attention import MCA, BlockForm, HeadDim, mean_tokens
from kinema.models.vit import NORM_EPS, ViTConfig, init_weights, token_indices


class MeanPool(nn.Module):
    """Plain mean over all tokens; the motion box plays no part."""

    def forward(self, tokens: Tensor, inner: Tensor | None) -> Tensor:
        """Tokens (B, N, D) -> (B, D)."""
        return tokens.mean(dim=1)


class BoxMeanPool(nn.Module):
    """Mean of the inner tokens' mean and, `outer_weight` times, of the outer tokens'."""

    def __init__(self, outer_weight: float) -> None:
        super().__init__()
        self.outer_weight = outer_weight

    def forward(self, tokens: Tensor, inner: Tensor) -> Tensor:
        """Tokens (B, N, D) and inner bool (B, N) -> (B, D); the plain mean where one is missing."""
        weighted = mean_tokens(tokens, inner) + self.outer_weight * mean_tokens(tokens, ~inner)
        both = inner.any(dim=1, keepdim=True) & ~inner.all(dim=1, keepdim=True)
        return torch.where(both, weighted / (1 + self.outer_weight), tokens.mean(dim=1))


class HeadConfig(Config):
    """What all heads share: dropout before the linear layer and the scale of its first weights."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What must be in the motion store: `boxes`, or nothing."""

    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the linear layer")
    init_scale: float = Field(
        default=0.001, gt=0, description="factor on the linear layer's first weights"
    )

    @abstractmethod
    def check(self, vit: ViTConfig) -> None:
        """Refuse an encoder that the head does not fit.

        Raises:
            ConfigError: naming the numbers that do not go together.
        """

    @abstractmethod
    def pooling(self, vit: ViTConfig) -> nn.Module:
        """Module that maps tokens (B, N, D) and inner bool (B, N) to (B, D).

        Raises:
            ConfigError: the head does not fit the encoder.
        """


class PlainHead(HeadConfig):
    """Mean over all tokens (VideoMAE)."""

    name: Literal["plain"] = "plain"

    def check(self, vit: ViTConfig) -> None:
        """Every encoder fits."""

    def pooling(self, vit: ViTConfig) -> nn.Module:
        """Plain mean."""
        return MeanPool()


class MCAHead(HeadConfig):
    """Cross-attention from tokens inside the motion box to those outside (MOFO, section 3.3)."""

    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})

    name: Literal["mca"] = "mca"
    heads: PositiveInt = Field(default=3, description="attention heads")
    depth: PositiveInt = Field(
        default=1, description="blocks; only block residual can be deeper than 1"
    )
    head_dim: HeadDim = Field(
        default="model",
        description="width of a head: embed_dim (paper), or embed_dim / heads (released)",
    )
    block: BlockForm = Field(
        default="residual", description="pre-norm residual with MLP, or bare: Eq. 4-6 alone"
    )

    @model_validator(mode="after")
    def _check_depth(self) -> Self:
        if self.block == "bare" and self.depth != 1:
            raise ValueError(
                f"block bare stands for Eq. 4-6 alone: depth must be 1, got {self.depth}"
            )
        return self

    def check(self, vit: ViTConfig) -> None:
        """Split heads must divide the encoder's width."""
        if self.head_dim == "split" and vit.embed_dim % self.heads:
            raise ConfigError(
                [
                    f"head.heads: {self.heads} does not divide embed_dim {vit.embed_dim}, which"
                    " head_dim split needs; use another number of heads or head_dim model"
                ]
            )

    def pooling(self, vit: ViTConfig) -> nn.Module:
        """Cross-attention, then the mean over the fused inner tokens."""
        self.check(vit)
        return MCA(vit.embed_dim, self.heads, self.depth, self.head_dim, self.block, vit.mlp_ratio)


class BoxMeanHead(HeadConfig):
    """Means inside and outside the motion box without attention, to compare MCA with.

    `outer_weight` 0 is the mean of the inner tokens alone, 0.5 the weighted mean that MOFO's
    release offers beside MCA.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})

    name: Literal["box_mean"] = "box_mean"
    outer_weight: NonNegativeFloat = Field(
        default=0.0, description="weight of the outer tokens' mean over the inner ones'"
    )

    def check(self, vit: ViTConfig) -> None:
        """Every encoder fits."""

    def pooling(self, vit: ViTConfig) -> nn.Module:
        """Weighted mean of the two means."""
        return BoxMeanPool(self.outer_weight)


Head = Annotated[PlainHead | MCAHead | BoxMeanHead, Field(discriminator="name")]
"""Every head there is, told apart by `name`."""


class Classifier(nn.Module):
    """Encoder on all tokens and a classification head.

    Args:
        vit: the encoder and its clip.
        head: how tokens are pooled.
        num_classes: width of the output.

    Raises:
        ConfigError: the head does not fit the encoder.
    """

    def __init__(self, vit: ViTConfig, head: Head, num_classes: int) -> None:
        super().__init__()
        self.needs_inner, self.head_name = "boxes" in head.needs, head.name
        self.encoder = build_encoder(vit, final_norm=False)
        self.pooling = head.pooling(vit)
        self.norm = nn.LayerNorm(vit.embed_dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(head.dropout)
        self.head = nn.Linear(vit.embed_dim, num_classes)
        init_weights(self.head)
        self.head.weight.data.mul_(head.init_scale)

    def features(
        self, clip: Tensor, inner: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """Pooled and normalised clip features (B, D), what the last layer reads."""
        if self.needs_inner and inner is None:
            raise ValueError(
                f"the {self.head_name} head needs `inner`, the tokens inside the motion box;"
                " got None"
            )
        if inner is not None:
            inner = pool_tokens(inner, self.encoder.config)
        if inner is not None and visible is not None:
            inner = inner.gather(1, token_indices(visible).to(inner.device))
        features: Tensor = self.norm(self.pooling(self.encoder(clip, visible), inner))
        return features

    def forward(
        self, clip: Tensor, inner: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """Classify clips.

        Args:
            clip: float (B, 3, T, H, W), normalised with the ImageNet mean and deviation.
            inner: bool (B, N), True = inside the motion box of its slot. The plain head ignores it.
            visible: bool (B, N), the tokens to look at; equally many in every clip. None = all.

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: the head needs `inner` and it is None.
        """
        logits: Tensor = self.head(self.dropout(self.features(clip, inner, visible)))
        return logits
