"""Masked autoencoder: encode visible tokens, predict the hidden ones (VideoMAE, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from einops import rearrange
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from kinema.models.backbones import build_encoder
from kinema.models.vit import (
    NORM_EPS,
    Block,
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


class DecoderBlocks(nn.Module):
    """What both decoders have: a linear embedding, blocks over all tokens, a linear head."""

    positions: Tensor

    def __init__(self, config: DecoderConfig, vit: ViTConfig, target_dim: int) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = vit.activation_checkpointing
        self.grid, self.pool = vit.grid, vit.pool
        self.embed = nn.Linear(vit.embed_dim, config.embed_dim * vit.pool**2, bias=False)
        positions = sincos_positions(vit.grid.tokens, config.embed_dim)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.head = nn.Linear(config.embed_dim, target_dim)
        init_weights(self)

    def run(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) through the blocks."""
        return run_blocks(self.blocks, tokens, self.activation_checkpointing)


class Decoder(DecoderBlocks):
    """Blocks over visible and mask tokens, and a linear head on the mask tokens alone."""

    def __init__(self, config: DecoderConfig, vit: ViTConfig, target_dim: int) -> None:
        super().__init__(config, vit, target_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
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
        embedded = self.embed(latent)
        positions = self.positions.to(embedded.dtype).expand(len(latent), -1, -1)
        known = embedded + gather_tokens(positions, visible)
        asked = self.mask_token + gather_tokens(positions, hidden)
        tokens = self.run(torch.cat([known, asked.to(known.dtype)], dim=1))
        out: Tensor = self.head(self.norm(tokens[:, visible.shape[1] :]))
        return out


class FullGridDecoder(DecoderBlocks):
    """The same behind an encoder whose output has a place for hidden tokens already."""

    def forward(self, latent: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Predict the hidden tokens; arguments as for `Decoder`, but `latent` covers the grid.

        An output token of a network that pools is embedded as the p x p tokens that it covers.
        """
        tokens = rearrange(
            self.embed(latent),
            "b (s h w) (p q d) -> b (s h p w q) d",
            s=self.grid.slots,
            h=self.grid.height // self.pool,
            w=self.grid.width // self.pool,
            p=self.pool,
            q=self.pool,
        )
        tokens = self.run(tokens + self.positions.to(tokens.dtype))
        out: Tensor = self.head(self.norm(gather_tokens(tokens, hidden)))
        return out


class MaskedAutoencoder(nn.Module):
    """Encoder on visible tokens and one decoder, or several, for the hidden ones.

    An encoder that needs the full grid gets a learned token for every hidden one (MaskFeat).

    Args:
        vit: the encoder and its clip.
        decoder: the decoder's size.
        target_dims: numbers predicted per hidden token, part by part.
    """

    def __init__(self, vit: ViTConfig, decoder: DecoderConfig, target_dims: Sequence[int]) -> None:
        super().__init__()
        self.encoder = build_encoder(vit)
        outputs = list(target_dims) if decoder.separate else [sum(target_dims)]
        self.mask_token: nn.Parameter | None = None
        kind: type[DecoderBlocks] = Decoder
        if self.encoder.mask_dim is not None:
            kind = FullGridDecoder
            self.mask_token = nn.Parameter(torch.empty(self.encoder.mask_dim))
            nn.init.normal_(self.mask_token, std=0.02)
        self.decoders = nn.ModuleList(kind(decoder, vit, dim) for dim in outputs)

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
        latent = self.encoder(clip, ~mask, self.mask_token)
        return torch.cat([decoder(latent, visible, hidden) for decoder in self.decoders], dim=-1)
