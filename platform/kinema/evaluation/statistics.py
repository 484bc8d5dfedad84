"""Numbers out of per-video predictions: accuracies and their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from kinema.randomness import keyed_rng

BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean, a difference or a ratio, with its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(per_video: npt.ArrayLike, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of `per_video` values with its percentile bootstrap interval over videos.

    Raises:
        ValueError: no values.
    """
    values = np.asarray(per_video, dtype=np.float64)
    if not len(values):
        raise ValueError("no values to average")
    rng = keyed_rng(seed, "bootstrap", len(values))
    means = np.empty(BOOTSTRAP_SAMPLES)
    chunk = max(1, 4_000_000 // len(values))
    for start in range(0, BOOTSTRAP_SAMPLES, chunk):
        stop = min(start + chunk, BOOTSTRAP_SAMPLES)
        drawn = rng.integers(0, len(values), (stop - start, len(values)))
        means[start:stop] = values[drawn].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def mean_class_accuracy(hits: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """Accuracy averaged over the classes that occur in `labels`."""
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))
