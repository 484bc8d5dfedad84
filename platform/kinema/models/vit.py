"""Video vision transformer with joint space-time attention (VideoMAE, section 3; ViT, 2021).

`backbones.py` has the other ones that `ViTConfig.attention` names.

- A Conv3d cuts the clip into tubelets; there is no class token.
- Positions are a fixed sin-cos table over the flattened tokens, kept out of the state dict.
- Blocks are pre-norm; queries and values have a learned bias, keys none.
- The encoder can run on the visible tokens alone.

Shapes: B clips, T frames, N tokens, n of them kept, D = embed_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kinema.config import Config
from kinema.masking.grid import Grid
from kinema.models import layers

NORM_EPS = 1e-6
CONV_STRIDE = 4
"""Pixels between the centres of MViT's first tokens."""

Attending = Literal["joint", "divided", "pooling"]


class Size(NamedTuple):
    """Width, depth and heads of a transformer."""

    embed_dim: int
    depth: int
    num_heads: int


SizeName = Literal["vit_s", "vit_b", "vit_l", "vit_h", "mvit_v2_s", "custom"]
"""All named sizes; not every kind of network comes in each."""


class TransformerConfig(Config):
    """Size of a stack of blocks: a named one, or any with its three numbers written out.

    One or two numbers written beside a named size change it, and `size` then reads `custom`, so
    that it never claims what is not so. A named size beside three other numbers contradicts itself.
    A named size is dumped with null for its numbers, so that a sweep or an override of a dumped
    config can change either.
    """

    sizes: ClassVar[dict[str, Size]]

    size: SizeName = "vit_b"
    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    mlp_ratio: PositiveFloat = 4.0

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, data: Any) -> Any:
        """Replace the numbers that are not written out by those of the named size."""
        if not isinstance(data, dict):
            return data
        data = {key: v for key, v in data.items() if v is not None or key not in Size._fields}
        size = {"size": cls.model_fields["size"].default, **data}["size"]
        if size == "custom":
            missing = [field for field in Size._fields if field not in data]
            if missing:
                raise ValueError(f"size custom also needs {', '.join(missing)}")
            return data
        if not isinstance(size, str) or size not in cls.sizes:
            if size in get_args(SizeName):
                raise ValueError(f"size {size} is none of {', '.join(cls.sizes)}, custom")
            return data  # the field's own check names the sizes there are
        named = cls.sizes[size]._asdict()
        changed = [field for field in named if field in data and data[field] != named[field]]
        if changed and "size" in data and named.keys() <= data.keys():
            raise ValueError(
                f"size {size} has {changed[0]} {named[changed[0]]}, not {data[changed[0]]};"
                " leave the numbers out, or write size: custom"
            )
        return {**named, **data, "size": "custom" if changed else size}

    @model_serializer(mode="wrap")
    def _dump_name(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = dump(self)
        if self.size != "custom":
            dumped |= dict.fromkeys(dumped.keys() & set(Size._fields))
        return dumped

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        return self


class ViTConfig(TransformerConfig):
    """The encoder and the clip it takes. YAML: `{size: vit_b}`, or any numbers written out."""

    sizes: ClassVar[dict[str, Size]] = {
        "vit_s": Size(384, 12, 6),
        "vit_b": Size(768, 12, 12),
        "vit_l": Size(1024, 24, 16),
        "vit_h": Size(1280, 32, 16),
        "mvit_v2_s": Size(768, 16, 8),
    }

    attention: Attending = Field(
        default="joint",
        description="joint: all tokens with all; divided: time, then space (TimeSformer);"
        " pooling: coarser from stage to stage (MViTv2)",
    )
    embed_dim: PositiveInt = Field(
        default=768, description="width, behind the last stage; set by size unless written out"
    )
    depth: PositiveInt = Field(
        default=12, description="number of blocks; set by size unless written out"
    )
    num_heads: PositiveInt = Field(
        default=12, description="heads, in the last stage; set by size unless written out"
    )
    stages: tuple[PositiveInt, ...] = Field(
        default=(1, 2, 11, 2),
        description="blocks per stage, for attention pooling; the others have one stage",
    )
    image_size: PositiveInt = Field(
        default=224, description="height and width of the input, pixels"
    )
    num_frames: PositiveInt = 16
    tubelet_size: PositiveInt = Field(default=2, description="frames per token; MOFO's text says 8")
    patch_size: PositiveInt = Field(default=16, description="height and width of a token, pixels")
    drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="stochastic depth of the last block; rises linearly from 0",
    )
    activation_checkpointing: bool = Field(
        default=False, description="recompute the blocks in the backward pass to save memory"
    )

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        pairs = (("image_size", "patch_size"), ("num_frames", "tubelet_size"))
        problems = [
            f"{whole} {getattr(self, whole)} is not a multiple of {part} {getattr(self, part)}"
            for whole, part in pairs
            if getattr(self, whole) % getattr(self, part)
        ]
        if self.attention == "pooling":
            problems += self._misfits_of_stages()
        elif self.size == "mvit_v2_s":
            problems.append("size mvit_v2_s has attention: pooling, which is to be written out")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _misfits_of_stages(self) -> list[str]:
        """What attention pooling asks of the numbers, and does not find."""
        first, wanted = 2 ** (len(self.stages) - 1), []
        if sum(self.stages) != self.depth:
            wanted.append(f"the {sum(self.stages)} blocks of stages {self.stages} make up depth")
        if self.embed_dim % first or self.num_heads % first:
            wanted.append(f"embed_dim and num_heads are multiples of {first}, doubling per stage")
        if self.tubelet_size != 2:
            wanted.append("tubelet_size is 2, the stride of its convolution")
        stride = CONV_STRIDE * first
        if stride % self.patch_size or self.patch_size % CONV_STRIDE or self.image_size % stride:
            wanted.append(
                f"patch_size is a multiple of {CONV_STRIDE} that divides {stride}, the pixels of"
                " an output token, and these divide image_size"
            )
        return [f"with attention pooling, {line}" for line in wanted]

    @property
    def pool(self) -> int:
        """Tokens of the grid per side of an output token; 1 unless attention pools."""
        if self.attention != "pooling":
            return 1
        return int(CONV_STRIDE * 2 ** (len(self.stages) - 1) // self.patch_size)

    @property
    def grid(self) -> Grid:
        """The clip's token grid."""
        side = self.image_size // self.patch_size
        return Grid(self.num_frames // self.tubelet_size, side, side)


def sincos_positions(num_tokens: int, embed_dim: int) -> Tensor:
    """Sin-cos table over token numbers, base 10000 (Vaswani et al. 2017, section 3.5).

    Returns:
        float32 (num_tokens, embed_dim); channels 2i, 2i + 1 are sine and cosine of one frequency.
    """
    channel = torch.arange(embed_dim, dtype=torch.float64)
    frequency = 10000.0 ** (-2 * (channel // 2) / embed_dim)
    angle = torch.arange(num_tokens, dtype=torch.float64)[:, None] * frequency
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def token_indices(keep: Tensor) -> Tensor:
    """Numbers of the kept tokens of every clip, ascending.

    Args:
        keep: bool (B, N). Best on the CPU: counting on a GPU waits for all that runs there.

    Returns:
        int64 (B, n).

    Raises:
        ValueError: the clips keep different numbers of tokens, or none.
    """
    counts = keep.sum(dim=1).tolist()
    if min(counts) != max(counts):
        raise ValueError(
            "every clip of a batch must keep the same number of tokens,"
            f" got {min(counts)} to {max(counts)} of {keep.shape[1]}"
        )
    if counts[0] == 0:
        raise ValueError(f"no token is kept of {keep.shape[1]}")
    order = torch.argsort(keep.logical_not().to(torch.uint8), dim=1, stable=True)
    return order[:, : counts[0]]


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, N, D) at `indices` (B, n) -> (B, n, D)."""
    if tokens.is_cuda and not indices.is_cuda:
        indices = indices.pin_memory()  # else the copy would wait for all that runs there
    indices = indices.to(tokens.device, non_blocking=True)
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention with learned query and value biases and none on the keys."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        x = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(rearrange(x, "b h n d -> b n (h d)"))
        return out


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.drop_path = layers.drop_path(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = layers.mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    """Linear embedding of tubelets, written as a Conv3d whose stride is its kernel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.clip_shape = (3, config.num_frames, config.image_size, config.image_size)
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.embed_dim, kernel, stride=kernel)

    def forward(self, clip: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) -> tokens (B, N, D).

        Raises:
            ValueError: the clips are not of the configured size.
        """
        if clip.shape[1:] != self.clip_shape:
            raise ValueError(
                f"the model takes clips of shape {self.clip_shape} (channels, frames, height,"
                f" width), got {tuple(clip.shape[1:])}"
            )
        volume: Tensor = self.proj(clip)
        return rearrange(volume, "b d s h w -> b (s h w) d")


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, activation_checkpointing: bool) -> Tensor:
    """Run tokens (B, N, D) through the blocks, recomputing them in the backward pass if asked."""
    for block in blocks:
        if activation_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = block(x)
    return x


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform linear layers and tubelet embedding, zero biases (MAE, appendix A.1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv3d):
            # A tubelet embedding is a linear layer on the flattened tubelet, so it is drawn as one.
            nn.init.xavier_uniform_(layer.weight.data.view(layer.weight.shape[0], -1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Backbone(nn.Module, ABC):
    """What an autoencoder and a classifier see of an encoder.

    Attributes:
        config: its size, and that of its clips.
        mask_dim: width of the mask token that stands in for a hidden token, where the network
            needs the full grid; None where it leaves hidden tokens out.
    """

    config: ViTConfig
    mask_dim: int | None = None

    @property
    def grid(self) -> Grid:
        """The token grid of its clips."""
        return self.config.grid

    @abstractmethod
    def forward(
        self, clip: Tensor, visible: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Encode clips.

        Args:
            clip: float (B, 3, T, H, W), normalised with the ImageNet mean and deviation.
            visible: bool (B, N), the tokens to look at; equally many in every clip. None = all.
            mask_token: (mask_dim,), enters for all others; None where they are left out.

        Returns:
            (B, n, D), the visible tokens in ascending order; or, of the full grid, all.
        """


class Encoder(Backbone):
    """ViT over the tokens of a clip, joint attention.

    Args:
        config: size of the network and of the clip.
        final_norm: LayerNorm after the last block; a classifier has its own after pooling instead.
    """

    positions: Tensor

    def __init__(self, config: ViTConfig, final_norm: bool = True) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        positions = sincos_positions(config.grid.tokens, config.embed_dim)
        self.register_buffer("positions", positions, persistent=False)
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, config.drop_path * i / last)
            for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS) if final_norm else nn.Identity()
        init_weights(self)

    def embed(self, clip: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) -> tokens with positions (B, N, D)."""
        tokens: Tensor = self.patch_embed(clip)
        # DeepSpeed leaves buffers in float32 when it casts parameters.
        return tokens + self.positions.to(tokens.dtype)

    def encode(self, tokens: Tensor) -> Tensor:
        """Run embedded tokens (B, n, D) through the blocks -> (B, n, D)."""
        tokens = run_blocks(self.blocks, tokens, self.config.activation_checkpointing)
        out: Tensor = self.norm(tokens)
        return out

    def forward(
        self, clip: Tensor, visible: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Clips (B, 3, T, H, W) -> visible tokens (B, n, D); see `Backbone`."""
        tokens = self.embed(clip)
        if visible is not None:
            tokens = gather_tokens(tokens, token_indices(visible))
        return self.encode(tokens)
