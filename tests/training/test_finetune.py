"""Finetuning's own parts: the held-out clips, the classifier's start, prediction on all views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from two_ranks import in_two_ranks

from kinema.errors import ConfigError, NonFiniteLossError
from kinema.models.classifier import MCAHead, PlainHead
from kinema.models.pixels import normalise, unit_range
from kinema.models.vit import ViTConfig
from kinema.training import finetune as module
from kinema.training.data import ClipSource, EvaluationClips, FrameCache, LoaderConfig
from kinema.training.engine import Engine, EngineConfig
from kinema.training.finetune import (
    FinetuneConfig,
    FinetuneTask,
    _check,
    build_classifier,
    split_holdout,
)
from kinema.training.order import SampleKey
from kinema.training.predict import predict, top_k_hits
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import DenseSampling
from kinema.video.synthetic import SyntheticConfig, make

VIT = ViTConfig(
    size="custom", embed_dim=16, depth=1, num_heads=1, image_size=32, num_frames=4, patch_size=8
)


def entry(index: int, group: str | None = None, path: str = "v.mp4") -> Entry:
    return Entry(f"v{index}", path, "train", index % 3, group, None, None, 48, 48, 8, 12.0)


@given(st.integers(2, 200), st.integers(0, 9))
def test_a_tenth_is_held_out(count: int, seed: int) -> None:
    clips = [entry(i) for i in range(count)]
    kept, aside = split_holdout(clips, seed)
    assert sorted([*kept, *aside], key=lambda e: int(e.id[1:])) == clips
    assert len(aside) == max(1, round(0.1 * count))
    assert (kept, aside) == split_holdout(clips, seed)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=60), st.integers(0, 3))
def test_groups_are_held_out_whole(groups: list[str], seed: int) -> None:
    clips = [entry(i, group) for i, group in enumerate(groups)]
    if len(set(groups)) == 1:
        with pytest.raises(ConfigError, match="one group of training clips cannot be split"):
            split_holdout(clips, seed)
        return
    kept, aside = split_holdout(clips, seed)
    assert kept
    assert aside
    assert not {clip.group for clip in kept} & {clip.group for clip in aside}


@pytest.mark.parametrize("head", [PlainHead(), MCAHead(heads=2)])
def test_classifier_is_drawn_from_the_seed(head: PlainHead | MCAHead) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        config = FinetuneConfig(drop_path=0.3)
        task = FinetuneTask(config, VIT, head, 5, LoaderConfig(num_workers=0), seed, None)
        return build_classifier(task).state_dict()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert one["head.weight"].shape == (5, 16)


class Brightness(nn.Module):
    """Scores that are known by hand: the mean of each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, clip: Tensor, inner: Tensor | None) -> Tensor:
        return self.dropout(clip.mean(dim=(2, 3, 4)))


@pytest.mark.parametrize("micro_batch_size", [1, 4, 64])
def test_predictions_are_complete_in_order_and_without_dropout(
    micro_batch_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("clips")
    uri = make(SyntheticConfig(num_train=0, num_validation=0, num_test=3), str(root))
    bad = root / "bad.mp4"
    bad.write_bytes(b"")
    readable = Manifest.read(uri).rows()
    entries = [readable[0], entry(9, path=str(bad)), *readable[1:]]
    source = ClipSource(entries, VIT, DenseSampling(stride=1), "clip", None, FrameCache(1e9))
    clips = EvaluationClips(source, num_clips=2, num_crops=3)
    model = Brightness().train()
    found = predict(
        model,
        clips,
        LoaderConfig(num_workers=0),
        micro_batch_size,
        torch.device("cpu"),
        torch.float32,
    )
    assert found.index.tolist() == [0, 2, 3]
    assert found.labels.tolist() == [entries[i].label for i in (0, 2, 3)]
    assert list(found.failures) == [1]
    assert "bad.mp4" in found.failures[1]
    assert model.training
    assert found.logits.shape == (3, 6, 3)
    for row, index in enumerate((0, 2, 3)):
        for view in range(6):
            clip = torch.from_numpy(clips[SampleKey(0, index, view)].clip)[None]
            expected = normalise(unit_range(clip)).mean(dim=(2, 3, 4))[0].numpy()
            np.testing.assert_allclose(found.logits[row, view], expected, rtol=1e-5, atol=1e-6)


def test_mixing_needs_pairs_on_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineConfig(global_batch_size=12, micro_batch_size=4)
    config = FinetuneConfig(engine=engine)
    task = FinetuneTask(config, VIT, PlainHead(), 3, LoaderConfig(num_workers=0), 0, None)
    source = ClipSource([], VIT, DenseSampling(stride=1), "clip", None, FrameCache(1e9))
    _check(task, source)
    monkeypatch.setattr(module, "world", lambda: (0, 4))
    with pytest.raises(ConfigError, match=r"a worker takes 3 clips at once .*: make it even"):
        _check(task, source)


def test_a_network_that_has_diverged_is_told_and_scores_nothing(tmp_path: Path) -> None:
    uri = make(SyntheticConfig(num_train=0, num_validation=0, num_test=3), str(tmp_path))
    entries = Manifest.read(uri).rows()
    source = ClipSource(entries, VIT, DenseSampling(stride=1), "clip", None, FrameCache(1e9))
    model = build_classifier(
        FinetuneTask(FinetuneConfig(), VIT, PlainHead(), 8, LoaderConfig(num_workers=0), 0, None)
    )
    with torch.no_grad():
        model.head.bias[3] = torch.nan
    with pytest.raises(NonFiniteLossError, match="not finite: its training has diverged"):
        predict(
            model,
            EvaluationClips(source),
            LoaderConfig(num_workers=0),
            2,
            torch.device("cpu"),
            torch.float32,
        )
    scores = np.full((4, 8), np.nan, np.float32)
    scores[1, 3] = scores[2, 0] = 1.0
    assert not top_k_hits(scores, np.array([0, 1, 2, 3]), 1).any()


WIDE = VIT.model_copy(update={"embed_dim": 192, "num_heads": 3})
"""ZeRO stage 3 keeps tensors of less than 100,000 numbers whole on every rank; this has larger."""


def predict_as_rank(rank: int, folder: Path, manifest: str) -> None:
    """One of two ranks: logits of three videos by ZeRO stage 0 and 3, one video at a time."""
    entries = Manifest.read(manifest).rows()
    source = ClipSource(entries, WIDE, DenseSampling(stride=1), "clip", None, FrameCache(1e9))
    loader = LoaderConfig(num_workers=0)
    task = FinetuneTask(FinetuneConfig(), WIDE, PlainHead(), 3, loader, 0, None)
    for stage in (0, 3):
        config = EngineConfig(global_batch_size=2, micro_batch_size=1, zero_stage=stage)
        engine = Engine(build_classifier(task), 1, config, task.config.optim)
        found = predict(
            engine.predictor(build_classifier(task)),
            EvaluationClips(source),
            loader,
            1,
            engine.device,
            engine.dtype,
        )
        np.save(folder / f"{stage}-{rank}.npy", found.logits)


def test_stage_3_predicts_although_one_rank_has_more_clips(tmp_path: Path) -> None:
    manifest = make(SyntheticConfig(num_train=0, num_validation=0, num_test=3), str(tmp_path))
    in_two_ranks(predict_as_rank, tmp_path, manifest)
    expected = np.load(tmp_path / "0-0.npy")
    assert expected.shape == (3, 1, 3)
    for file in ("0-1.npy", "3-0.npy", "3-1.npy"):
        np.testing.assert_allclose(np.load(tmp_path / file), expected, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_top_k_is_that_of_a_sorted_list(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(6.0), (8, 1)), axis=1)
    labels = rng.integers(0, 6, 8)
    order: NDArray[np.int64] = np.argsort(-scores, axis=1)[:, :k]
    expected = [label in best for label, best in zip(labels, order, strict=True)]
    assert top_k_hits(scores, labels, k).tolist() == expected
