"""Masked autoencoder: encode visible tokens, predict the hidden ones (VideoMAE, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from kinema.models.vit import (
    NORM_EPS,
    Block,
    Encoder,
    Size,
    TransformerConfig,
    ViTConfig,
    gather_tokens,
    init_weights,
    run_blocks,
    sincos_positions,
    token_indices,
)


class DecoderConfig(TransformerConfig):
    """The narrow decoder; `size` names the encoder that VideoMAE pairs it with."""

    sizes: ClassVar[dict[str, Size]] = {
        "vit_s": Size(192, 4, 3),
        "vit_b": Size(384, 4, 6),
        "vit_l": Size(512, 12, 8),
        "vit_h": Size(640, 12, 8),
    }

    embed_dim: PositiveInt = Field(default=384, description="width; set by size unless written out")
    depth: PositiveInt = Field(
        default=4, description="number of blocks; set by size unless written out"
    )
    num_heads: PositiveInt = Field(default=6, description="heads; set by size unless written out")
    separate: bool = Field(
        default=False, description="one decoder per part of the target (MME, Table 7f)"
    )


class Decoder(nn.Module):
    """Blocks over visible and mask tokens, and a linear head on the mask tokens alone."""

    positions: Tensor

    def __init__(
        self,
        config: DecoderConfig,
        encoder_dim: int,
        num_tokens: int,
        target_dim: int,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embed = nn.Linear(encoder_dim, config.embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        positions = sincos_positions(num_tokens, config.embed_dim)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.head = nn.Linear(config.embed_dim, target_dim)
        init_weights(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Predict the hidden tokens.

        Args:
            latent: encoded visible tokens (B, n, encoder_dim).
            visible: int64 (B, n), their token numbers.
            hidden: int64 (B, m), the numbers of the tokens to predict.

        Returns:
            (B, m, target_dim), in the order of `hidden`.
        """
        positions = self.positions.expand(len(latent), -1, -1)
        known = self.embed(latent) + gather_tokens(positions, visible)
        asked = self.mask_token + gather_tokens(positions, hidden)
        tokens = torch.cat([known, asked.to(known.dtype)], dim=1)
        tokens = run_blocks(self.blocks, tokens, self.activation_checkpointing)
        out: Tensor = self.head(self.norm(tokens[:, visible.shape[1] :]))
        return out


class MaskedAutoencoder(nn.Module):
    """Encoder on visible tokens and one decoder, or several, for the hidden ones.

    Args:
        vit: the encoder and its clip.
        decoder: the decoder's size.
        target_dims: numbers predicted per hidden token, part by part.
    """

    def __init__(self, vit: ViTConfig, decoder: DecoderConfig, target_dims: Sequence[int]) -> None:
        super().__init__()
        self.encoder = Encoder(vit)
        outputs = list(target_dims) if decoder.separate else [sum(target_dims)]
        self.decoders = nn.ModuleList(
            Decoder(decoder, vit.embed_dim, vit.grid.tokens, dim, vit.activation_checkpointing)
            for dim in outputs
        )

    def forward(self, clip: Tensor, mask: Tensor) -> Tensor:
        """Predict the targets of the hidden tokens.

        Args:
            clip: float (B, 3, T, H, W), normalised with the ImageNet mean and deviation.
            mask: bool (B, N), True = hidden; equally many in every clip.

        Returns:
            (B, hidden, sum of target_dims), hidden tokens in ascending order.

        Raises:
            ValueError: the clips hide different numbers of tokens, or one hides none or all.
        """
        # Both sets are counted before any layer runs: counting waits for the GPU when it is there.
        visible, hidden = token_indices(~mask), token_indices(mask)
        latent = self.encoder.encode(gather_tokens(self.encoder.embed(clip), visible))
        return torch.cat([decoder(latent, visible, hidden) for decoder in self.decoders], dim=-1)
