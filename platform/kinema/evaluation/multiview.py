"""Multi-view testing: softmax of every view averaged, every video exactly once, none replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from scipy.special import softmax
from torch import nn

from kinema.config import Config
from kinema.evaluation.statistics import Interval, bootstrap_interval, mean_class_accuracy
from kinema.training.data import ClipSource, EvaluationClips, LoaderConfig
from kinema.training.frames import HELD_BYTES, FrameCache
from kinema.training.predict import best_classes, predict, top_k_hits


class EvaluationConfig(Config):
    """Views per test video (papers: 2 x 3 on Something-Something V2, 5 x 3 elsewhere)."""

    num_clips: PositiveInt = Field(2, description="temporal views")
    num_crops: PositiveInt = Field(3, description="spatial views")
    micro_batch_size: PositiveInt = Field(16, description="views per GPU at once")


@dataclass(frozen=True)
class Evaluation:
    """What a test gives. `coverage` below 1 marks a number that must not be compared."""

    top1: Interval
    top5: Interval
    mean_class: float
    coverage: float
    failures: dict[str, str]
    predictions: pa.Table

    @property
    def comparable(self) -> bool:
        """Whether every test video was read."""
        return self.coverage == 1.0

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat numbers for tracking."""
        return {
            f"{prefix}/top1": self.top1.value,
            f"{prefix}/top1_low": self.top1.low,
            f"{prefix}/top1_high": self.top1.high,
            f"{prefix}/top5": self.top5.value,
            f"{prefix}/mean_class": self.mean_class,
            f"{prefix}/coverage": self.coverage,
        }


def evaluate(
    model: nn.Module,
    source: ClipSource,
    config: EvaluationConfig,
    loader: LoaderConfig,
    device: torch.device,
) -> Evaluation:
    """Test `model` on all entries of `source`, labelled ones; collective, complete on every rank.

    Raises:
        ValueError: not one video could be read.
    """
    if config.num_clips * config.num_crops > 1:  # all views of a video from one decoding
        held = max(HELD_BYTES, source.cache.max_bytes)
        source = replace(source, cache=FrameCache(held))
    clips = EvaluationClips(source, config.num_clips, config.num_crops)
    result = predict(model, clips, loader, config.micro_batch_size, device, torch.float32)
    return judge(
        ids=[source.entries[i].id for i in result.index],
        labels=result.labels,
        logits=result.logits,
        failures={source.entries[i].id: why for i, why in result.failures.items()},
    )


def judge(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    failures: Mapping[str, str],
) -> Evaluation:
    """What a test gives, from the logits of every view of the videos that were read.

    `predictions` has one row per video read: id, label, predicted, probabilities (classes,), and
    the logits of each view (views * classes,).

    Args:
        ids: (videos,).
        labels: (videos,).
        logits: (videos, views, classes).
        failures: id -> reason of every video that could not be read.

    Raises:
        ValueError: not one video could be read.
    """
    if not len(ids):
        raise ValueError(f"none of {len(failures)} test videos could be read: {dict(failures)}")
    return judge_probabilities(ids, labels, softmax(logits, axis=-1).mean(axis=1), failures, logits)


def judge_probabilities(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    failures: Mapping[str, str],
    logits: NDArray[np.float32] | None = None,
) -> Evaluation:
    """What a test gives, from what was said of each video in the end; see `judge`.

    Args:
        ids: (videos,), at least one.
        labels: (videos,).
        probabilities: (videos, classes).
        failures: id -> reason of every video that could not be read.
        logits: (videos, views, classes), to keep where there are any.
    """
    hits = top_k_hits(probabilities, labels, 1)
    top5 = top_k_hits(probabilities, labels, 5)
    return Evaluation(
        top1=bootstrap_interval(hits),
        top5=bootstrap_interval(top5),
        mean_class=mean_class_accuracy(hits, labels),
        coverage=len(ids) / (len(ids) + len(failures)),
        failures=dict(failures),
        predictions=prediction_table(ids, labels, probabilities, logits),
    )


def prediction_table(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    logits: NDArray[np.float32] | None = None,
) -> pa.Table:
    """The table that every test leaves behind and every comparison reads, a row per video.

    `predicted` equals `label` where the video counts as a hit; see `best_classes` for ties.

    Args:
        ids: (videos,).
        labels: (videos,).
        probabilities: (videos, classes).
        logits: (videos, views, classes), where there are any.
    """
    columns = {
        "id": pa.array(list(ids), pa.string()),
        "label": pa.array(labels, pa.int32()),
        "predicted": pa.array(best_classes(probabilities, labels), pa.int32()),
        "probabilities": pa.array(list(probabilities.astype(np.float32)), pa.list_(pa.float32())),
    }
    if logits is None:
        return pa.table(columns)
    flat = pa.array(list(logits.reshape(len(ids), -1)), pa.list_(pa.float32()))
    return pa.table(columns | {"view_logits": flat}, metadata={"num_views": str(logits.shape[1])})
