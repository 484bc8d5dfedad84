"""timm's parts of a transformer block.

timm is imported when a network is built: with torchvision and torch's compiler behind it, it takes
longer to load than everything else, and most processes of a job (drivers, controllers) build none.
"""

from __future__ import annotations

from torch import nn


def mlp(dim: int, ratio: float) -> nn.Module:
    """Linear, GELU, linear over (..., dim), with `ratio` times as many features between."""
    from timm.layers.mlp import Mlp

    made: nn.Module = Mlp(dim, hidden_features=int(dim * ratio))
    return made


def drop_path(rate: float) -> nn.Module:
    """Stochastic depth (Huang et al. 2016): zeroes a share `rate` of the samples in training."""
    from timm.layers.drop import DropPath

    made: nn.Module = DropPath(rate)
    return made
