"""Which frames make a clip."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kinema.randomness import keyed_rng
from kinema.video.sampling import DenseSampling, Sampling, SegmentSampling, sample

CONFIGS = st.one_of(
    st.builds(DenseSampling, stride=st.integers(1, 8)),
    st.builds(DenseSampling, interval_s=st.floats(0.01, 0.5)),
    st.builds(SegmentSampling),
)


@given(
    CONFIGS,
    st.integers(1, 32),
    st.integers(0, 50),
    st.integers(1, 300),
    st.floats(1, 60),
    st.one_of(st.none(), st.integers(0, 5)),
    st.integers(1, 5).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))),
)
def test_indices_lie_in_the_span_and_ascend(config, num_frames, start, length, fps, seed, view):
    span = range(start, start + length)
    rng = None if seed is None else keyed_rng(seed)
    indices, padded = sample(config, num_frames, span, fps, rng, view)
    assert indices.shape == (num_frames,)
    assert indices.dtype == np.int64
    assert indices.min() >= span.start
    assert indices.max() <= span[-1]
    assert (np.diff(indices) >= 0).all()
    assert 0 <= padded < 1
    if isinstance(config, SegmentSampling):
        assert padded == 0


def test_dense_steps_by_stride_from_every_start():
    config = DenseSampling(stride=4)
    starts = set()
    for key in range(300):
        indices, padded = sample(config, 16, range(70), 25.0, keyed_rng(key))
        np.testing.assert_array_equal(np.diff(indices), 4)
        assert padded == 0
        starts.add(int(indices[0]))
    assert starts == set(range(10))  # 70 frames less the 61 a clip spans, and the last one counts


def test_interval_in_seconds_is_the_same_time_at_every_rate():
    config = DenseSampling(interval_s=0.15)
    slow, _ = sample(config, 8, range(100), 10.0, None)
    fast, _ = sample(config, 8, range(200), 20.0, None)
    np.testing.assert_array_equal(np.diff(fast), 3)
    assert set(np.diff(slow).tolist()) == {1, 2}
    assert slow[-1] - slow[0] == 10  # 7 x 0.15 s = 1.05 s
    # 0.1 s at 30 fps is 3 frames, although 0.1 * 30 is not 3 in floats.
    exact, _ = sample(DenseSampling(interval_s=0.1), 16, range(300), 30.0, None)
    np.testing.assert_array_equal(np.diff(exact), 3)


def test_short_videos_repeat_their_last_frame_and_say_so():
    indices, padded = sample(DenseSampling(stride=3), 16, range(5, 25), 12.0, keyed_rng(0))
    np.testing.assert_array_equal(indices[:7], [5, 8, 11, 14, 17, 20, 23])
    np.testing.assert_array_equal(indices[7:], 24)
    assert padded == pytest.approx(9 / 16)


def test_dense_test_views_are_evenly_spread_from_end_to_end():
    views = [sample(DenseSampling(stride=4), 16, range(301), 25, None, (k, 5))[0] for k in range(5)]
    assert [int(view[0]) for view in views] == [0, 60, 120, 180, 240]
    assert views[-1][-1] == 300
    middle, _ = sample(DenseSampling(stride=4), 16, range(301), 25, None)
    np.testing.assert_array_equal(middle, views[2])


def test_segments_each_give_one_frame_and_reach_all():
    seen = set()
    for key in range(300):
        indices, _ = sample(SegmentSampling(), 8, range(40), 12.0, keyed_rng(key))
        np.testing.assert_array_equal(indices // 5, np.arange(8))
        seen |= set(indices.tolist())
    assert seen == set(range(40))


def test_two_segment_views_are_the_starts_and_the_middles():
    # VideoMAE merges the 16 starts and 16 middles in order and takes every second one.
    starts, middles = np.arange(16) * 4, np.arange(16) * 4 + 2
    for view, expected in ((0, starts), (1, middles)):
        indices, _ = sample(SegmentSampling(), 16, range(64), 12.0, None, (view, 2))
        np.testing.assert_array_equal(indices, expected)
    single, _ = sample(SegmentSampling(), 16, range(64), 12.0, None)
    np.testing.assert_array_equal(single, middles)


def test_segments_of_a_short_video_repeat_frames_evenly():
    indices, padded = sample(SegmentSampling(), 8, range(3, 7), 12.0, None)
    np.testing.assert_array_equal(indices, [3, 3, 4, 4, 5, 5, 6, 6])
    assert padded == 0


def test_same_generator_same_clip():
    for config in (DenseSampling(), SegmentSampling()):
        first = sample(config, 16, range(200), 25.0, keyed_rng(1, "a"))[0]
        again = sample(config, 16, range(200), 25.0, keyed_rng(1, "a"))[0]
        other = sample(config, 16, range(200), 25.0, keyed_rng(1, "b"))[0]
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="no view 2 of 2"):
        sample(SegmentSampling(), 16, range(64), 12.0, None, (2, 2))
    with pytest.raises(ValueError, match="no frame"):
        sample(SegmentSampling(), 16, range(5, 5), 12.0, None)


def test_the_name_chooses_the_sampling():
    read = TypeAdapter(Sampling).validate_python
    assert read({"name": "dense", "interval_s": 0.15}) == DenseSampling(interval_s=0.15)
    assert read({"name": "tsn"}) == SegmentSampling()
