"""Multi-view testing: softmax of every view averaged, every video exactly once, none replaced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, PositiveInt
from scipy.special import softmax
from torch import nn

from kinema.config import Config
from kinema.evaluation.statistics import Interval, bootstrap_interval, mean_class_accuracy
from kinema.training.data import ClipSource, EvaluationClips, LoaderConfig
from kinema.training.predict import predict, top_k_hits


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
    """Test `model` on all labelled entries of `source`; collective, complete on every rank.

    `predictions` has one row per video read: id, label, probabilities (classes,), and the logits of
    each view (views * classes,).

    Raises:
        ValueError: not one video could be read.
    """
    clips = EvaluationClips(source, config.num_clips, config.num_crops)
    result = predict(model, clips, loader, config.micro_batch_size, device, torch.float32)
    if not len(result.index):
        raise ValueError(f"none of {len(clips)} test videos could be read: {result.failures}")
    probabilities = softmax(result.logits, axis=-1).mean(axis=1)
    hits = top_k_hits(probabilities, result.labels, 1)
    top5 = top_k_hits(probabilities, result.labels, 5)
    return Evaluation(
        top1=bootstrap_interval(hits),
        top5=bootstrap_interval(top5),
        mean_class=mean_class_accuracy(hits, result.labels),
        coverage=len(result.index) / len(clips),
        failures={source.entries[i].id: why for i, why in result.failures.items()},
        predictions=_table(source, result.index, result.labels, probabilities, result.logits),
    )


def _table(
    source: ClipSource,
    index: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    logits: np.ndarray,
) -> pa.Table:
    return pa.table(
        {
            "id": [source.entries[i].id for i in index],
            "label": pa.array(labels, pa.int32()),
            "predicted": pa.array(probabilities.argmax(1), pa.int32()),
            "probabilities": pa.array(
                list(probabilities.astype(np.float32)), pa.list_(pa.float32())
            ),
            "view_logits": pa.array(list(logits.reshape(len(index), -1)), pa.list_(pa.float32())),
        },
        metadata={"num_views": str(logits.shape[1])},
    )
