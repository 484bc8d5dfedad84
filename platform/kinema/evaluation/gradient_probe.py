"""Training a small network on frozen features: the loop that linear and attentive probes share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor, nn

from kinema.evaluation.features import Features
from kinema.randomness import keyed_rng

LR_REFERENCE = 256
"""Batch size at which a base rate is the rate (linear scaling rule)."""


def cosine_rate(step: int, num_steps: int, num_warmup: int) -> float:
    """Share of the peak rate: linear from 0 over the warm-up, then half a cosine to 0."""
    if step < num_warmup:
        return step / num_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))


def train_on_views(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    features: Features,
    *,
    epochs: int,
    warmup_epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> None:
    """Train a classifier of views in place; every view of a video is a sample.

    The order of samples is a function of (seed, epoch). Batches of an epoch differ in size by at
    most one, so that none is too small for a batch norm.
    """
    values = rearrange(features.values, "n v ... -> (n v) ...")
    labels = repeat(features.labels, "n -> (n v)", v=features.num_views)
    per_epoch = math.ceil(len(values) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: cosine_rate(step, epochs * per_epoch, warmup_epochs * per_epoch),
    )
    network.to(device).train()
    for epoch in range(epochs):
        order = keyed_rng(seed, epoch, "probe order").permutation(len(values))
        for batch in np.array_split(order, per_epoch):
            scores = network(_tensor(values[batch], device))
            loss = F.cross_entropy(scores, torch.from_numpy(labels[batch]).to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def view_probabilities(
    network: nn.Module, values: NDArray[np.floating], batch_size: int, device: torch.device
) -> NDArray[np.float32]:
    """Softmax of a trained classifier: (videos, views, *dims) -> (videos, views, classes)."""
    flat = rearrange(values, "n v ... -> (n v) ...")
    parts = [
        network(part).softmax(dim=-1).cpu().numpy() for part in _batches(flat, batch_size, device)
    ]
    return np.asarray(rearrange(np.concatenate(parts), "(n v) c -> n v c", v=values.shape[1]))


def _batches(flat: NDArray[np.floating], batch_size: int, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(flat), batch_size):
        yield _tensor(flat[start : start + batch_size], device)


def _tensor(values: NDArray[np.floating], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
