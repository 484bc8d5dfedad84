"""Clip classifier: encoder, pooling, LayerNorm, linear layer (VideoMAE; MOFO, section 3.3)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from kinema.config import Config
from kinema.errors import ConfigError
from kinema.models.cross_attention import MCA, BlockForm, HeadDim
from kinema.models.vit import NORM_EPS, Encoder, ViTConfig, init_weights


class MeanPool(nn.Module):
    """Plain mean over all tokens; the motion box plays no part."""

    def forward(self, tokens: Tensor, inner: Tensor | None) -> Tensor:
        """Tokens (B, N, D) -> (B, D)."""
        return tokens.mean(dim=1)


class HeadConfig(Config):
    """What both heads share: dropout before the linear layer and the scale of its first weights."""

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


Head = Annotated[PlainHead | MCAHead, Field(discriminator="name")]
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

    def __init__(self, vit: ViTConfig, head: PlainHead | MCAHead, num_classes: int) -> None:
        super().__init__()
        self.needs_inner = "boxes" in head.needs
        self.encoder = Encoder(vit, final_norm=False)
        self.pooling = head.pooling(vit)
        self.norm = nn.LayerNorm(vit.embed_dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(head.dropout)
        self.head = nn.Linear(vit.embed_dim, num_classes)
        init_weights(self.head)
        self.head.weight.data.mul_(head.init_scale)

    def features(self, clip: Tensor, inner: Tensor | None = None) -> Tensor:
        """Pooled and normalised clip features (B, D), what a linear probe reads."""
        if self.needs_inner and inner is None:
            raise ValueError(
                "the mca head needs `inner`, the tokens inside the motion box; got None"
            )
        features: Tensor = self.norm(self.pooling(self.encoder(clip), inner))
        return features

    def forward(self, clip: Tensor, inner: Tensor | None = None) -> Tensor:
        """Classify clips.

        Args:
            clip: float (B, 3, T, H, W), normalised with the ImageNet mean and deviation.
            inner: bool (B, N), True = inside the motion box of its slot. The plain head ignores it.

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: the head needs `inner` and it is None.
        """
        logits: Tensor = self.head(self.dropout(self.features(clip, inner)))
        return logits
