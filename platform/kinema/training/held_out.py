"""How well hidden tokens of clips that were not trained on are predicted, against a constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from kinema.models.pixels import normalise
from kinema.models.target_rule import TargetRule, Wanted
from kinema.models.vit import ViTConfig
from kinema.training.batch import Batch


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    batches: Callable[[], Iterator[Batch]],
    target: TargetRule,
    vit: ViTConfig,
    device: torch.device,
) -> dict[str, float]:
    """Mean loss on held-out clips, and that of the best constant prediction.

    The constant is one vector for all tokens, the mean of these very targets, so it knows more than
    any constant learned from other clips: a model below it has learned something that varies.

    Args:
        model: a masked autoencoder in float32 on `device`.
        batches: gives the same batches each time it is called.
        target: what is predicted.
        vit: the clips' size.
        device: where to compute.

    Returns:
        `held_out/loss`, `held_out/constant_loss`, and their ratio `held_out/ratio`.
    """
    total = count = torch.zeros(target.dim(vit), dtype=torch.float64, device=device)
    for _, wanted in _wanted(batches(), target, vit, device):
        weights = torch.ones_like(wanted.values) if wanted.weights is None else wanted.weights
        total = total + (wanted.values * weights).double().sum(dim=(0, 1))
        count = count + weights.double().sum(dim=(0, 1))
    constant = (total / count.clamp_min(1e-12)).float()
    losses, constants, clips = [], [], []
    for batch, wanted in _wanted(batches(), target, vit, device):
        prediction = model(normalise(batch.inputs().clip), batch.mask)
        losses.append(target.loss(prediction, wanted))
        constants.append(target.loss(constant.expand_as(wanted.values), wanted))
        clips.append(len(batch.clip))
    share = torch.tensor(clips, device=device) / sum(clips)
    loss, baseline = (float((torch.stack(values) * share).sum()) for values in (losses, constants))
    return {
        "held_out/loss": loss,
        "held_out/constant_loss": baseline,
        "held_out/ratio": loss / baseline if baseline else float("nan"),
    }


def _wanted(
    batches: Iterator[Batch], target: TargetRule, vit: ViTConfig, device: torch.device
) -> Iterator[tuple[Batch, Wanted]]:
    for batch in batches:
        moved = batch.to(device)
        mask = moved.mask
        assert isinstance(mask, Tensor)
        yield moved, target.compute(moved.inputs(), mask, vit)
