"""Encoders besides the joint-attention ViT: TimeSformer's divided attention, and MViTv2.

Both need the full grid of tokens, so that a hidden token is not left out but replaced by a learned
mask token, MaskFeat's way; what it shows never enters. Neither has a class token to classify by:
like VideoMAE they are pooled over their tokens.

Shapes: B clips, S slots, P tokens per slot, N = S P, D = embed_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kinema.models import layers
from kinema.models.vit import (
    CONV_STRIDE,
    NORM_EPS,
    Attention,
    Backbone,
    Encoder,
    ViTConfig,
    init_weights,
)

if TYPE_CHECKING:
    from torchvision.models.video.mvit import MViT


def build_encoder(config: ViTConfig, final_norm: bool = True) -> Backbone:
    """The encoder that `config.attention` names, with random weights.

    Args:
        config: size of the network and of the clip.
        final_norm: LayerNorm after the last block; a classifier has its own after pooling instead.
    """
    if config.attention == "pooling":
        return PoolingEncoder(config, final_norm)
    return (DividedEncoder if config.attention == "divided" else Encoder)(config, final_norm)


def pool_tokens(inner: Tensor, config: ViTConfig) -> Tensor:
    """Tokens of the encoder's output that cover any chosen one: bool (B, N) -> (B, N / pool^2)."""
    grid, p = config.grid, config.pool
    covered = rearrange(
        inner,
        "b (s h p w q) -> b (s h w) (p q)",
        s=grid.slots,
        h=grid.height // p,
        w=grid.width // p,
        p=p,
        q=p,
    )
    return covered.any(dim=-1)


class DividedBlock(nn.Module):
    """Attention over time at each place, then over space in each slot, then the MLP.

    TimeSformer (Bertasius et al. 2021), section 3, "divided space-time attention". The output of
    temporal attention goes through one more linear layer, as in its released weights (121 M
    parameters for ViT-B).
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, slots: int
    ) -> None:
        super().__init__()
        self.slots = slots
        self.temporal_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.temporal_attn = Attention(dim, num_heads)
        self.temporal_proj = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.drop_path = layers.drop_path(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = layers.mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D)."""
        slots = self.slots
        over_time = rearrange(self.temporal_norm(x), "b (s p) d -> (b p) s d", s=slots)
        over_time = self.temporal_proj(self.temporal_attn(over_time))
        over_time = rearrange(over_time, "(b p) s d -> b (s p) d", b=len(x))
        x = x + self.drop_path(over_time)
        in_space = self.attn(rearrange(self.norm1(x), "b (s p) d -> (b s) p d", s=slots))
        x = x + self.drop_path(rearrange(in_space, "(b s) p d -> b (s p) d", s=slots))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class DividedEncoder(Encoder):
    """ViT with divided space-time attention.

    Args:
        config: size of the network and of the clip.
        final_norm: LayerNorm after the last block.
    """

    def __init__(self, config: ViTConfig, final_norm: bool = True) -> None:
        super().__init__(config, final_norm)
        self.mask_dim = config.embed_dim
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            DividedBlock(
                config.embed_dim,
                config.num_heads,
                config.mlp_ratio,
                config.drop_path * i / last,
                config.grid.slots,
            )
            for i in range(config.depth)
        )
        init_weights(self.blocks)

    def forward(
        self, clip: Tensor, visible: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Clips (B, 3, T, H, W) -> all tokens (B, N, D); see `Backbone`."""
        tokens = _fill(self.patch_embed(clip), visible, mask_token)
        return self.encode(tokens + self.positions.to(tokens.dtype))


class PoolingEncoder(Backbone):
    """MViTv2 (Li et al. 2022) out of torchvision's blocks: pooled attention, relative positions.

    Adapted to masking: hidden pixels are zeroed before the first convolution, whose kernels reach
    beyond a token, and hidden tokens are replaced behind it. Its class token takes part and is
    dropped at the end. timm has MViTv2 for images only, hence torchvision.

    Args:
        config: size of the network and of the clip.
        final_norm: LayerNorm after the last block.
    """

    def __init__(self, config: ViTConfig, final_norm: bool = True) -> None:
        super().__init__()
        self.config = config
        network = _mvit(config)
        self.mask_dim = network.conv_proj.out_channels
        self.patch_embed = network.conv_proj
        self.class_token = network.pos_encoding.class_token
        self.blocks = network.blocks
        self.norm = network.norm if final_norm else nn.Identity()

    def forward(
        self, clip: Tensor, visible: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Clips (B, 3, T, H, W) -> all output tokens (B, N / pool^2, D); see `Backbone`.

        Raises:
            ValueError: the clips are not of the configured size.
        """
        config = self.config
        expected = (3, config.num_frames, config.image_size, config.image_size)
        if clip.shape[1:] != expected:
            raise ValueError(
                f"the model takes clips of shape {expected} (channels, frames, height, width), got"
                f" {tuple(clip.shape[1:])}"
            )
        first = None
        if visible is not None:
            clip = clip * self._spread(visible, config.tubelet_size, config.patch_size)[:, None]
            first = self._spread(visible, 1, config.patch_size // CONV_STRIDE).flatten(1)
        tokens = _fill(self.patch_embed(clip).flatten(2).transpose(1, 2), first, mask_token)
        tokens = torch.cat([self.class_token.expand(len(clip), 1, -1), tokens], dim=1)
        side = config.image_size // CONV_STRIDE
        size = (config.grid.slots, side, side)
        for block in self.blocks:
            if config.activation_checkpointing and torch.is_grad_enabled():
                tokens, size = checkpoint(block, tokens, size, use_reentrant=False)
            else:
                tokens, size = block(tokens, size)
        out: Tensor = self.norm(tokens[:, 1:])
        return out

    def _spread(self, visible: Tensor, frames: int, side: int) -> Tensor:
        """Bool (B, N) -> (B, S frames, rows side, columns side), every token a block."""
        grid = rearrange(visible, "b (s h w) -> b s h w", s=self.grid.slots, h=self.grid.height)
        for dim, times in enumerate((frames, side, side), start=1):
            grid = grid.repeat_interleave(times, dim)
        return grid.to(self.class_token.device, non_blocking=True)


def _mvit(config: ViTConfig) -> MViT:
    """MViTv2 (Table 1): from stage to stage width and heads double, queries halve in space.

    Keys and values are pooled to the size they have in the last stage.
    """
    from torchvision.models.video.mvit import MSBlockConfig, MViT  # late, as timm in `layers`

    last = len(config.stages) - 1
    blocks = []
    for stage, depth in enumerate(config.stages):
        for i in range(depth):
            enters = i == 0 and stage > 0
            out = config.embed_dim >> (last - stage)
            kv, q = 1 << (last - stage), 2 if enters else 1
            blocks.append(
                MSBlockConfig(
                    num_heads=config.num_heads >> (last - stage),
                    input_channels=out // 2 if enters else out,
                    output_channels=out,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, q, q],
                    stride_kv=[1, kv, kv],
                )
            )
    return MViT(
        spatial_size=(config.image_size, config.image_size),
        temporal_size=config.num_frames,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        stochastic_depth_prob=config.drop_path,
        num_classes=1,
    )


def _fill(tokens: Tensor, visible: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """Tokens (B, N, D) with the mask token in place of those that are not visible.

    Raises:
        ValueError: tokens are to be left out, which takes joint attention.
    """
    if visible is None:
        return tokens
    if mask_token is None:
        raise ValueError("a backbone that needs the full grid cannot leave tokens out")
    shown = visible.to(tokens.device, non_blocking=True)[..., None]
    return torch.where(shown, tokens, mask_token.to(tokens.dtype))
