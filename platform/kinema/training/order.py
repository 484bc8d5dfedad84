"""Which clips a training takes, and in which order.

The order of a run is a pure function of (seed, step), and everything random about a sample of
(seed, epoch, id, draw, purpose): workers, GPUs and restarts change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from kinema.errors import ConfigError
from kinema.randomness import keyed_rng


class SampleKey(NamedTuple):
    """Names one sample of a run; `draw` tells repeated augmentations (or views) apart."""

    epoch: int
    clip: int
    draw: int


def too_few_clips(stage: str, num_clips: int, global_batch_size: int) -> list[str]:
    """What to say when there are fewer clips than one step of a stage takes; else nothing."""
    if num_clips >= global_batch_size:
        return []
    return [
        f"{stage}.engine.global_batch_size {global_batch_size} exceeds the {num_clips} training"
        " clips; lower it"
    ]


@dataclass(frozen=True)
class StepOrder:
    """The order of all clips of a run; the last, incomplete step of an epoch is dropped.

    Raises:
        ConfigError: there are fewer clips than one step needs.
    """

    num_clips: int
    global_batch_size: int
    seed: int
    stage: str
    """`pretrain` or `finetune`, for messages."""

    def __post_init__(self) -> None:
        if problems := too_few_clips(self.stage, self.num_clips, self.global_batch_size):
            raise ConfigError(problems)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.num_clips // self.global_batch_size

    def epoch(self, step: int) -> int:
        """Epoch of an optimizer step."""
        return step // self.steps_per_epoch

    def clips(self, step: int) -> NDArray[np.int64]:
        """Indices of the clips of one step, over all ranks."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        order = keyed_rng(self.seed, epoch, "order").permutation(self.num_clips)
        start = offset * self.global_batch_size
        return order[start : start + self.global_batch_size]


class MicroBatches(Sampler[list[SampleKey]]):
    """This rank's micro-batches of steps [start, stop), in order.

    A rank takes a contiguous share of each step, so neighbours (the partners of mixup) stay
    together at every world size. With `num_draws` > 1 each micro-batch repeats its clips, draw
    after draw.
    """

    def __init__(
        self,
        order: StepOrder,
        steps: range,
        micro_batch_size: int,
        num_draws: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order, self.steps, self.num_draws = order, steps, num_draws
        self.micro_batch_size, self.rank, self.world_size = micro_batch_size, rank, world_size

    def __len__(self) -> int:
        share = self.order.global_batch_size // self.world_size
        return len(self.steps) * (share // self.micro_batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        share = self.order.global_batch_size // self.world_size
        for step in self.steps:
            epoch = self.order.epoch(step)
            mine = self.order.clips(step)[self.rank * share : (self.rank + 1) * share]
            for micro in mine.reshape(-1, self.micro_batch_size):
                yield [
                    SampleKey(epoch, int(index), draw)
                    for draw in range(self.num_draws)
                    for index in micro
                ]
