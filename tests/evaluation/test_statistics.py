"""Intervals against the binomial truth, accuracies by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from kinema.evaluation.statistics import bootstrap_interval, mean_class_accuracy
from kinema.training.predict import best_classes, top_k_hits


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


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_what_is_predicted_is_the_label_where_it_is_a_hit(
    classes: int, videos: int, data: st.DataObject
) -> None:
    """Of scores that often tie."""
    draw = data.draw(
        st.lists(st.integers(0, 2), min_size=classes * videos, max_size=classes * videos)
    )
    scores = np.array(draw, dtype=np.float64).reshape(videos, classes)
    labels = np.array(
        data.draw(st.lists(st.integers(0, classes - 1), min_size=videos, max_size=videos))
    )
    best = best_classes(scores, labels)
    np.testing.assert_array_equal(best == labels, top_k_hits(scores, labels, 1))
    np.testing.assert_array_equal(scores[np.arange(videos), best], scores.max(axis=1))
