"""Paired comparison against hand-made counts and an enumeration of McNemar's test."""

from __future__ import annotations

from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema.errors import KinemaError
from kinema.evaluation.multiview import prediction_table
from kinema.evaluation.paired import compare


def table(hits: list[bool], names: list[str] | None = None) -> pa.Table:
    """Predictions of class 0 where right and 1 where wrong; every label is 0."""
    probabilities = np.array([[0.9, 0.1] if hit else [0.1, 0.9] for hit in hits])
    ids = names or [f"v{index}" for index in range(len(hits))]
    return prediction_table(ids, np.zeros(len(hits), dtype=np.int64), probabilities)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_counts_and_p_value_are_those_of_the_definition(pairs: list[tuple[bool, bool]]) -> None:
    found = compare(table([a for a, _ in pairs]), table([b for _, b in pairs]))
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    assert found.counts == {
        "both": pairs.count((True, True)),
        "only_a": only_a,
        "only_b": only_b,
        "neither": pairs.count((False, False)),
    }
    assert found.difference.value == pytest.approx((only_b - only_a) / len(pairs))
    # every way in which fair coins could have decided the videos that only one gets right
    ways = [sum(coins) for coins in product((0, 1), repeat=only_a + only_b)]
    even = (only_a + only_b) / 2
    uneven = [way for way in ways if abs(way - even) >= abs(only_a - even)]
    assert found.p_value == pytest.approx(len(uneven) / len(ways))
    assert found.won_by("a").num_rows == only_a
    assert found.won_by("b").num_rows == only_b


def test_videos_drawn_together_give_a_narrower_interval_than_apart() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(400) < 0.6
    b = a.copy()
    b[np.flatnonzero(~a)[:20]] = True  # better on 20 videos, worse on none
    found = compare(table(a.tolist()), table(b.tolist()))
    assert found.difference.low > 0
    assert found.p_value == pytest.approx(2 * 0.5**20)
    assert found.a.high > found.b.low  # which the two intervals alone would not tell


def test_order_and_missing_videos_are_told() -> None:
    a = table([True, False, True], ["x", "y", "z"])
    b = table([False, True], ["z", "x"])
    found = compare(a, b)
    assert (found.only_in_a, found.only_in_b) == (1, 0)
    assert found.counts == {"both": 1, "only_a": 1, "only_b": 0, "neither": 0}
    assert found.videos["id"].to_pylist() == ["x", "z"]


def test_other_data_are_refused() -> None:
    with pytest.raises(KinemaError, match="no video is in both"):
        compare(table([True], ["x"]), table([True], ["y"]))
    relabelled = table([True, True]).set_column(1, "label", pa.array([0, 1], pa.int32()))
    with pytest.raises(KinemaError, match=r"1 videos have another label.*v1 \(0 and 1\)"):
        compare(table([True, True]), relabelled)


def test_a_video_that_is_there_twice_is_told() -> None:
    twice = table([True, False, True], ["x", "y", "x"])
    with pytest.raises(KinemaError, match="B's predictions have a video more than once"):
        compare(table([True, True], ["x", "y"]), twice)
