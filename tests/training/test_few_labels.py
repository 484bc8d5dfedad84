"""Parts of the training clips: those that keep their labels, and those that pretraining sees."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kinema.training.finetune import keep_labels
from kinema.training.pretrain import keep_clips
from kinema.video.manifest import Entry

shares = st.floats(0.01, 1.0)


def entries(labels: list[int]) -> list[Entry]:
    return [
        Entry(f"v{i}", f"v{i}.mp4", "train", label, None, None, None, 64, 48, 10, 25.0)
        for i, label in enumerate(labels)
    ]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), shares, st.integers(0, 9))
def test_each_class_keeps_its_share_and_at_least_one(labels: list[int], share: float, seed: int):
    clips = entries(labels)
    kept = keep_labels(clips, share, seed)
    have, left = Counter(labels), Counter(clip.label for clip in kept)
    assert left == {label: max(1, round(share * count)) for label, count in have.items()}
    assert [clip for clip in clips if clip in kept] == kept


@given(shares, shares)
def test_a_larger_share_contains_a_smaller(one: float, other: float):
    clips = entries([0, 1, 2] * 20)
    fewer, more = (
        {clip.id for clip in keep_labels(clips, share, 3)} for share in sorted([one, other])
    )
    assert fewer <= more


def test_the_seed_decides_which():
    clips = entries([0] * 100)
    assert keep_labels(clips, 0.1, 1) != keep_labels(clips, 0.1, 2)
    assert keep_labels(clips, 0.1, 1) == keep_labels(clips, 0.1, 1)


@given(shares, shares, st.integers(0, 9))
def test_shares_of_clips_are_nested_and_in_order(one: float, other: float, seed: int):
    clips = entries([0] * 60)
    fewer, more = (keep_clips(clips, share, seed) for share in sorted([one, other]))
    assert len(fewer) == max(1, round(min(one, other) * 60))
    assert [clip for clip in clips if clip in fewer] == fewer
    assert {clip.id for clip in fewer} <= {clip.id for clip in more}
    assert keep_clips(clips, 1.0, seed) == clips
