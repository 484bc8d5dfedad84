"""Multi-head cross-attention between the tokens inside and outside the motion box (MOFO, 3.3).

The tokens of a clip never leave their place: `inner` marks who asks and whose answers are averaged,
its complement marks who is asked. So every clip is padded to its own N tokens whatever its box, a
clip's result does not depend on its batch mates, shapes stay fixed for compilers, and nothing loops
over samples. The price is that the answers to the outer tokens are computed and thrown away.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kinema.models import layers
from kinema.models.vit import NORM_EPS, init_weights

HeadDim = Literal["model", "split"]
BlockForm = Literal["residual", "bare"]


def mean_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """Mean over the kept tokens: (B, N, D) and bool (B, N) -> (B, D); zero where none is kept."""
    # At least in float32: a sum over hundreds of tokens passes the end of fp16.
    wide = torch.promote_types(tokens.dtype, torch.float32)
    total = tokens.masked_fill(~keep[..., None], 0).sum(dim=1, dtype=wide)
    return (total / keep.sum(dim=1, keepdim=True).clamp_min(1)).to(tokens.dtype)


class CrossAttention(nn.Module):
    """Multi-head attention of one token set over another (MOFO, Eq. 4-6).

    Args:
        dim: token width, d_model.
        num_heads: h.
        head_dim: d_k = d_v; h * head_dim need not be dim.
        bias: learned biases of queries, values and output, none on the keys; Eq. 5 and 6 have none.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.q = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.k = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.v = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.proj = nn.Linear(num_heads * head_dim, dim, bias=bias)

    def forward(self, queries: Tensor, context: Tensor, key_mask: Tensor) -> Tensor:
        """Attend.

        Args:
            queries: (B, N, D).
            context: (B, M, D), source of keys and values.
            key_mask: bool (B, M), True = may be attended to; at least one per clip.

        Returns:
            (B, N, D).
        """
        q, k, v = (
            rearrange(layer(tokens), "b n (h d) -> b h n d", h=self.num_heads)
            for layer, tokens in ((self.q, queries), (self.k, context), (self.v, context))
        )
        fused = F.scaled_dot_product_attention(
            q, k, v, attn_mask=key_mask[:, None, None, :], scale=1 / math.sqrt(self.head_dim)
        )
        out: Tensor = self.proj(rearrange(fused, "b h n d -> b n (h d)"))
        return out


class BareBlock(nn.Module):
    """Cross-attention alone, Eq. 4-6 to the letter."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.attn = CrossAttention(dim, num_heads, head_dim, bias=False)
        init_weights(self)

    def forward(self, queries: Tensor, context: Tensor, key_mask: Tensor) -> Tensor:
        """See `CrossAttention.forward`."""
        out: Tensor = self.attn(queries, context, key_mask)
        return out


class ResidualBlock(nn.Module):
    """Cross-attention in a pre-norm residual block with an MLP; one norm serves both token sets."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = CrossAttention(dim, num_heads, head_dim, bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = layers.mlp(dim, mlp_ratio)
        init_weights(self)

    def forward(self, queries: Tensor, context: Tensor, key_mask: Tensor) -> Tensor:
        """See `CrossAttention.forward`."""
        x = queries + self.attn(self.norm1(queries), self.norm1(context), key_mask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class MCA(nn.Module):
    """Fuse inner with outer tokens and average the fused inner ones (MOFO, section 3.3, Eq. 3-6).

    A clip without inner tokens gives the plain mean of its tokens; one without outer tokens attends
    to its inner ones. Blocks after the first refine the inner tokens; outer ones stay as they are.

    Args:
        dim: token width.
        heads: number of heads.
        depth: number of blocks.
        head_dim: `model` gives every head the full width (the paper's d_k = d_v = d_model), `split`
            a share of it; `heads` must then divide `dim`.
        block: `residual`, or `bare` for Eq. 4-6 alone.
        mlp_ratio: hidden width of the residual block's MLP over `dim`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int,
        head_dim: HeadDim,
        block: BlockForm,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        width = dim if head_dim == "model" else dim // heads
        self.blocks = nn.ModuleList(
            BareBlock(dim, heads, width)
            if block == "bare"
            else ResidualBlock(dim, heads, width, mlp_ratio)
            for _ in range(depth)
        )

    def forward(self, tokens: Tensor, inner: Tensor) -> Tensor:
        """Pool the tokens of every clip.

        Args:
            tokens: (B, N, D).
            inner: bool (B, N), True = inside the motion box of its slot.

        Returns:
            (B, D).
        """
        has_inner = inner.any(dim=1, keepdim=True)
        has_outer = ~inner.all(dim=1, keepdim=True)
        key_mask = torch.where(has_outer, ~inner, inner)
        fused = tokens
        for block in self.blocks:
            context = torch.where(has_outer[..., None], tokens, fused)
            fused = block(fused, context, key_mask)
        return torch.where(has_inner, mean_tokens(fused, inner), tokens.mean(dim=1))
