"""Intervals against the binomial truth, accuracies by hand."""

import numpy as np
import pytest
from scipy.stats import binom

from kinema.evaluation.statistics import bootstrap_interval, mean_class_accuracy
from kinema.training.predict import top_k_hits


def test_interval_matches_the_binomial_quantiles() -> None:
    hits = np.zeros(400, bool)
    hits[:120] = True
    interval = bootstrap_interval(hits)
    assert interval.value == 0.3
    low, high = binom.ppf([0.025, 0.975], 400, 0.3) / 400
    assert interval.low == pytest.approx(low, abs=0.006)
    assert interval.high == pytest.approx(high, abs=0.006)


def test_interval_is_the_same_every_time() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_interval_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval(np.zeros(0))


def test_mean_class_weighs_classes_not_videos() -> None:
    labels = np.array([0] * 9 + [1])
    hits = np.array([True] * 9 + [False])
    assert mean_class_accuracy(hits, labels) == 0.5


def test_top_k() -> None:
    scores = np.array([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1]])
    assert top_k_hits(scores, np.array([2, 0]), 1).tolist() == [False, True]
    assert top_k_hits(scores, np.array([2, 2]), 2).tolist() == [True, False]


def test_constant_scores_are_no_hit() -> None:
    assert not top_k_hits(np.zeros((3, 4)), np.array([0, 1, 2]), 1).any()
