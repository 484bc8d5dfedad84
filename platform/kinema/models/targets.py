"""What the decoder has to predict for a hidden token, and the loss on it.

A target is a frozen config that does the work itself: `dim`, `compute`, `loss`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from kinema.config import Config
from kinema.models.vit import ViTConfig, gather_tokens, token_indices

EPS = 1e-6


def patches(clip: Tensor, vit: ViTConfig) -> Tensor:
    """Cut clips (B, 3, T, H, W) into tubelets (B, N, pixels, 3).

    Pixels run frame by frame, row by row; pixels = tubelet_size * patch_size ** 2.
    """
    return rearrange(
        clip,
        "b c (s t) (h p) (w q) -> b (s h w) (t p q) c",
        t=vit.tubelet_size,
        p=vit.patch_size,
        q=vit.patch_size,
    )


def clip_of(tubelets: Tensor, vit: ViTConfig) -> Tensor:
    """Put tubelets (B, N, pixels, 3) back together: (B, 3, T, H, W), the inverse of `patches`."""
    return rearrange(
        tubelets,
        "b (s h w) (t p q) c -> b c (s t) (h p) (w q)",
        s=vit.grid.slots,
        h=vit.grid.height,
        t=vit.tubelet_size,
        p=vit.patch_size,
    )


class PixelTarget(Config):
    """Pixels of the hidden tubelets, each normalised by its own statistics (VideoMAE; MOFO, 3.2).

    A target vector holds the pixels frame by frame and row by row, the three colours of a pixel
    next to each other. `norm`:

    - `per_channel`: minus the mean, over (standard deviation + 1e-6), of each colour (VideoMAE).
    - `joint`: minus the mean, over sqrt(variance + 1e-6), of all colours together (MAE, MAE-ST).
    - `none`: pixels in [0, 1].

    Deviation and variance are the unbiased ones.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """What must be in the motion store: nothing."""

    name: Literal["pixel"] = "pixel"
    norm: Literal["per_channel", "joint", "none"] = "per_channel"

    def dim(self, vit: ViTConfig) -> int:
        """Numbers per token."""
        return 3 * vit.tubelet_size * vit.patch_size**2

    def compute(self, clip: Tensor, mask: Tensor, vit: ViTConfig) -> Tensor:
        """Targets of the hidden tokens.

        Args:
            clip: float (B, 3, T, H, W) in [0, 1], before ImageNet normalisation.
            mask: bool (B, N), True = hidden; equally many in every clip.
            vit: the clip's size.

        Returns:
            (B, hidden, dim), hidden tokens in ascending order; at least float32.
        """
        tubelets = self._hidden(clip, mask, vit)
        mean, scale = self._statistics(tubelets)
        return ((tubelets - mean) / scale).flatten(-2)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error over (B, hidden, dim): a scalar of the target's dtype."""
        return F.mse_loss(prediction.to(target.dtype), target)

    def invert(
        self,
        prediction: Tensor,
        mask: Tensor,
        clip: Tensor,
        vit: ViTConfig,
        statistics: Literal["hidden", "visible"] = "hidden",
    ) -> Tensor:
        """The clip with its hidden tokens replaced by predictions, for figures.

        Args:
            prediction: (B, hidden, dim), hidden tokens in ascending order.
            mask: bool (B, N), True = hidden; equally many in every clip.
            clip: float (B, 3, T, H, W) in [0, 1].
            vit: the clip's size.
            statistics: where mean and scale of a predicted token come from. `hidden` takes the true
                ones of that token, as published reconstructions do, which flatters them; `visible`
                the average over the clip's visible tokens, so that nothing hidden is used.

        Returns:
            (B, 3, T, H, W), not clipped to [0, 1].
        """
        source = mask if statistics == "hidden" else ~mask
        mean, scale = self._statistics(self._hidden(clip, source, vit))
        if statistics == "visible":
            mean, scale = mean.mean(dim=1, keepdim=True), scale.mean(dim=1, keepdim=True)
        pixels = rearrange(prediction, "b n (pixels c) -> b n pixels c", c=3) * scale + mean
        whole = patches(clip, vit).to(pixels.dtype, copy=True)
        whole[mask.to(whole.device)] = pixels.flatten(0, 1)
        return clip_of(whole, vit)

    def _hidden(self, clip: Tensor, mask: Tensor, vit: ViTConfig) -> Tensor:
        """Tubelets (B, hidden, pixels, 3) of the masked tokens, at least float32."""
        tubelets = patches(clip, vit)
        hidden = gather_tokens(tubelets.flatten(-2), token_indices(mask))
        hidden = hidden.to(torch.promote_types(clip.dtype, torch.float32))
        return rearrange(hidden, "b n (pixels c) -> b n pixels c", c=3)

    def _statistics(self, tubelets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale that normalise tubelets (B, n, pixels, 3), each (B, n, 1, 1 or 3)."""
        if self.norm == "none":
            one = tubelets.new_ones(*tubelets.shape[:2], 1, 1)
            return torch.zeros_like(one), one
        dims = (-2,) if self.norm == "per_channel" else (-2, -1)
        variance, mean = torch.var_mean(tubelets, dim=dims, keepdim=True)
        if self.norm == "per_channel":
            return mean, variance.sqrt() + EPS
        return mean, (variance + EPS).sqrt()


Target = PixelTarget
"""Every target there is."""
