"""Logits of every clip, every view, exactly once, over all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, Sampler

from kinema.errors import NonFiniteLossError, VideoError
from kinema.models.pixels import normalise, unit_range
from kinema.training.batch import Sample, collate
from kinema.training.data import EvaluationClips, LoaderConfig, make_loader
from kinema.training.engine import gather_objects, world
from kinema.training.order import SampleKey


@dataclass(frozen=True)
class Predictions:
    """Logits (videos, views, classes) float32 of the readable videos, and who could not be read.

    `index` (videos,) points into the data set's entries; `failures` maps an entry's index to the
    reason.
    """

    index: NDArray[np.int64]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    failures: dict[int, str]


def top_k_hits(
    scores: NDArray[np.floating], labels: NDArray[np.int64], k: int
) -> NDArray[np.bool_]:
    """(videos,) True where the label is among the k best of `scores` (videos, classes).

    A class that ties with the label counts as better, so constant scores score no luck, and so
    does one that cannot be compared with it, so NaN scores nothing.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    better: NDArray[np.int64] = (~(scores < own)).sum(axis=1) - 1
    return np.asarray(better < k)


def best_classes(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(videos,) the best class of `scores` (videos, classes), the label where `top_k_hits` says so.

    Of several best ones it is one that is not the label.
    """
    rivals = np.array(scores, dtype=np.float64)
    np.put_along_axis(rivals, labels[:, None], -np.inf, axis=1)
    return np.where(top_k_hits(scores, labels, 1), labels, rivals.argmax(axis=1))


class _Shards(Sampler[list[SampleKey]]):
    """All views of this rank's videos (every world-size-th), micro-batch by micro-batch."""

    def __init__(self, num_videos: int, num_views: int, micro_batch_size: int) -> None:
        rank, size = world()
        self.keys = [
            SampleKey(0, video, view)
            for video in range(rank, num_videos, size)
            for view in range(num_views)
        ]
        self.micro_batch_size = micro_batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self.keys), self.micro_batch_size):
            yield self.keys[start : start + self.micro_batch_size]

    def __len__(self) -> int:
        return -(-len(self.keys) // self.micro_batch_size)


class _Reported(Dataset["tuple[SampleKey, Sample | str]"]):
    """Turns an unreadable video into its reason, so that it is reported and never replaced."""

    def __init__(self, clips: EvaluationClips) -> None:
        self.clips = clips

    def __getitem__(self, key: SampleKey) -> tuple[SampleKey, Sample | str]:
        try:
            return key, self.clips[key]
        except VideoError as error:
            return key, str(error)


@torch.no_grad()
def predict(
    model: nn.Module,
    clips: EvaluationClips,
    loader: LoaderConfig,
    micro_batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Predictions:
    """Logits of all views of all videos; collective, complete on every rank.

    Ranks call `model` as often as they have clips to read, so its forward must not be collective.
    A video any of whose views cannot be read is left out as a whole and listed in `failures`.

    Raises:
        NonFiniteLossError: on all ranks together; the model has diverged.
    """
    training = model.training
    model.eval()
    shards = _Shards(len(clips), clips.num_views, micro_batch_size)
    logits: dict[tuple[int, int], NDArray[np.float32]] = {}
    failures: dict[int, str] = {}
    for items in make_loader(_Reported(clips), shards, loader, collate_fn=list):
        good = [(key, sample) for key, sample in items if isinstance(sample, Sample)]
        failures |= {key.clip: sample for key, sample in items if isinstance(sample, str)}
        if not good:
            continue
        batch = collate([sample for _, sample in good]).to(device)
        output = model(normalise(unit_range(batch.clip)).to(dtype), batch.inner)
        for (key, _), row in zip(good, output.float().cpu().numpy(), strict=True):
            logits[key.clip, key.draw] = row
    model.train(training)
    merged: dict[tuple[int, int], NDArray[np.float32]] = {}
    for part, failed in gather_objects((logits, failures)):
        merged |= part
        failures |= failed
    if not all(np.isfinite(row).all() for row in merged.values()):
        raise NonFiniteLossError(
            "the network's answers are not finite: its training has diverged. Lower the learning"
            " rate, set optim.clip_grad, or use bf16."
        )
    index = [i for i in range(len(clips)) if i not in failures]
    labels = [clips.source.entries[i].label for i in index]
    return Predictions(
        index=np.array(index, dtype=np.int64),
        logits=np.stack([[merged[i, v] for v in range(clips.num_views)] for i in index])
        if index
        else np.zeros((0, clips.num_views, 0), dtype=np.float32),
        labels=np.array([-1 if label is None else label for label in labels], dtype=np.int64),
        failures=dict(sorted(failures.items())),
    )
