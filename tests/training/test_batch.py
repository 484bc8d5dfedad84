"""Mixing, erasing and labels against their definitions."""

import numpy as np
import pytest
import torch

from kinema.models.pixels import normalise
from kinema.training.batch import (
    Batch,
    ErasingConfig,
    MixingConfig,
    Sample,
    collate,
    mix,
    random_erase,
    soft_labels,
    unit_range,
)


def batch_of(values: list[float], keys: list[str]) -> tuple[Batch, torch.Tensor]:
    """Constant clips, so that any mixture can be read off a pixel."""
    clip = torch.stack([torch.full((3, 2, 8, 8), value) for value in values])
    inner = torch.zeros(len(values), 4, dtype=torch.bool)
    for i in range(len(values)):
        inner[i, i % 4] = True
    labels = torch.arange(len(values))
    batch = Batch(tuple(keys), clip, labels, None, inner, {})
    return batch, soft_labels(labels, len(values), 0.0)


def test_mixup_mixes_clip_and_target_with_one_weight() -> None:
    batch, targets = batch_of([0.0, 1.0], ["a", "b"])
    mixed, soft = mix(batch, targets, MixingConfig(cutmix=0), seed=3)
    weight = float(soft[0, 0])
    assert 0 < weight < 1
    torch.testing.assert_close(mixed.clip[0], torch.full_like(mixed.clip[0], 1 - weight))
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    torch.testing.assert_close(soft[1], soft[0].flip(0))


def test_cutmix_target_is_the_pixel_share() -> None:
    batch, targets = batch_of([0.0, 1.0], ["a", "b"])
    for seed in range(20):
        mixed, soft = mix(batch, targets, MixingConfig(mixup=0), seed=seed)
        assert float(mixed.clip[0].mean()) == pytest.approx(float(soft[0, 1]), abs=1e-6)
        assert set(mixed.clip.unique().tolist()) <= {0.0, 1.0}


def test_mixing_does_not_depend_on_batch_mates() -> None:
    four, targets = batch_of([0.0, 1.0, 2.0, 3.0], ["a", "b", "c", "d"])
    mixed, soft = mix(four, targets, MixingConfig(), seed=0)
    half = Batch(four.keys[2:], four.clip[2:], four.labels[2:], None, four.inner[2:], {})
    again, soft_again = mix(half, targets[2:], MixingConfig(), seed=0)
    torch.testing.assert_close(again.clip, mixed.clip[2:])
    torch.testing.assert_close(soft_again, soft[2:])


@pytest.mark.parametrize(("rule", "expected"), [("union", [[0, 1], [0, 1]]), ("keep", [[0], [1]])])
def test_inner_tokens_of_a_mixture(rule: str, expected: list[list[int]]) -> None:
    batch, targets = batch_of([0.0, 1.0], ["a", "b"])
    mixed, _ = mix(batch, targets, MixingConfig(mix_boxes=rule), seed=0)
    assert mixed.inner is not None
    assert [row.nonzero().flatten().tolist() for row in mixed.inner] == expected


def test_no_mixing_leaves_the_batch_alone() -> None:
    batch, targets = batch_of([0.0, 1.0], ["a", "b"])
    assert mix(batch, targets, MixingConfig(probability=0), seed=0) == (batch, targets)


def test_soft_labels_sum_to_one_and_peak_at_the_label() -> None:
    soft = soft_labels(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(soft[0], torch.tensor([0.025, 0.025, 0.925, 0.025]))
    torch.testing.assert_close(soft.sum(1), torch.ones(2))


def test_erasing_touches_one_rectangle_in_every_frame_alike() -> None:
    clip = np.full((3, 4, 32, 32), 7, np.uint8)
    always = ErasingConfig(probability=1.0)
    erased = random_erase(clip, always, np.random.default_rng(0))
    changed = (erased != clip).any(axis=(0, 1))
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert 0.02 * 1024 * 0.8 <= box.size <= 1024 / 3 * 1.2
    assert box.mean() > 0.95
    assert (clip == 7).all()


def test_erasing_probability_zero_returns_the_clip() -> None:
    clip = np.zeros((3, 2, 8, 8), np.uint8)
    assert random_erase(clip, ErasingConfig(probability=0), np.random.default_rng(0)) is clip


def test_normalise_is_imagenet() -> None:
    clip = unit_range(torch.full((1, 3, 1, 1, 1), 255, dtype=torch.uint8))
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(normalise(clip).flatten(), expected)


def test_collate_keeps_optional_parts_and_statistics() -> None:
    clip = np.zeros((3, 2, 4, 4), np.uint8)
    samples = [
        Sample("a", 1, clip, mask=np.array([True, False]), statistics={"mask_ratio": 0.5}),
        Sample(
            "b", -1, clip, mask=np.array([False, True]), statistics={"mask_ratio": float("nan")}
        ),
    ]
    batch = collate(samples)
    assert batch.clip.shape == (2, 3, 2, 4, 4)
    assert batch.mask is not None
    assert batch.mask.tolist() == [[True, False], [False, True]]
    assert batch.inner is None
    assert batch.labels.tolist() == [1, -1]
    assert torch.isnan(batch.statistics["mask_ratio"]).tolist() == [False, True]
