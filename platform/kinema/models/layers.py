"""Parts of a transformer block."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def mlp(dim: int, ratio: float) -> nn.Sequential:
    """Linear, GELU, linear over (..., dim), with `ratio` times as many features between."""
    hidden = int(dim * ratio)
    parts = [("fc1", nn.Linear(dim, hidden)), ("act", nn.GELU()), ("fc2", nn.Linear(hidden, dim))]
    return nn.Sequential(OrderedDict(parts))


def drop_path(rate: float) -> nn.Module:
    """Stochastic depth (Huang et al. 2016): zeroes a share `rate` of the samples in training."""
    if rate == 0:
        return nn.Identity()
    # Late: with torchvision and torch's compiler behind it, timm takes 3 s to load per process.
    from timm.layers.drop import DropPath

    made: nn.Module = DropPath(rate)
    return made
