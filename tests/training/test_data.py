"""Which clips a step holds, on whatever number of ranks, and what a clip is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinema.errors import ConfigError, VideoError
from kinema.masking.masks import TubeMask
from kinema.models.vit import ViTConfig
from kinema.training.batch import collate
from kinema.training.data import (
    ClipSource,
    EvaluationClips,
    FrameCache,
    LoaderConfig,
    TrainingClips,
    make_loader,
)
from kinema.training.order import MicroBatches, SampleKey, StepOrder
from kinema.video.augment import MultiScaleCrop
from kinema.video.decode import read_frames
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import DenseSampling
from kinema.video.synthetic import SyntheticConfig, make

VIT = ViTConfig(
    size="custom", embed_dim=16, depth=1, num_heads=1, image_size=32, num_frames=4, patch_size=8
)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_an_epoch_holds_each_clip_at_most_once(clips: int, batch: int, epoch: int) -> None:
    if clips < batch:
        message = rf"finetune\.engine\.global_batch_size {batch} exceeds the {clips} training clips"
        with pytest.raises(ConfigError, match=message):
            StepOrder(clips, batch, 0, "finetune")
        return
    order = StepOrder(clips, batch, 0, "pretrain")
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    seen = np.concatenate([order.clips(step) for step in steps])
    assert len(seen) == len(set(seen.tolist())) == clips // batch * batch
    assert {order.epoch(step) for step in steps} == {epoch}


def test_every_clip_has_its_turn_and_epochs_differ() -> None:
    order = StepOrder(10, 4, 1, "pretrain")
    epochs = [np.concatenate([order.clips(2 * e), order.clips(2 * e + 1)]) for e in range(20)]
    assert set(np.concatenate(epochs).tolist()) == set(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()


@given(st.sampled_from([1, 2, 4]), st.integers(0, 3), st.integers(1, 2))
def test_ranks_together_hold_the_step_in_its_order(world: int, start: int, draws: int) -> None:
    order = StepOrder(21, 8, 0, "pretrain")
    whole = list(MicroBatches(order, range(start, 4), 2, draws))
    ranks = [list(MicroBatches(order, range(start, 4), 2, draws, r, world)) for r in range(world)]
    per_step = 4 // world
    merged = [
        micro
        for step in range(4 - start)
        for rank in ranks
        for micro in rank[step * per_step : (step + 1) * per_step]
    ]
    assert merged == whole
    assert [len(MicroBatches(order, range(start, 4), 2, draws, 0, world))] == [len(ranks[0])]
    assert {len(micro) for micro in whole} <= {2 * draws}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    root = tmp_path_factory.mktemp("clips")
    uri = make(SyntheticConfig(num_train=4, num_validation=0, num_test=0), str(root))
    return Manifest.read(uri).rows()


def source(entries: list[Entry], cache: FrameCache) -> ClipSource:
    return ClipSource(entries, VIT, DenseSampling(stride=1), "clip", None, cache)


def test_cache_keeps_to_its_size_and_changes_nothing(entries: list[Entry]) -> None:
    indices = np.array([0, 3, 3, 7])
    one_video = 8 * 48 * 48 * 3
    for size in (0, one_video, 2.5 * one_video, 1e9):
        cache = FrameCache(size)
        for entry in [*entries, *reversed(entries)]:
            frames = cache.read(entry, indices, with_vectors=False).frames
            np.testing.assert_array_equal(frames, read_frames(entry.path, indices.tolist()))
            assert cache._bytes <= size
            assert cache._bytes == sum(video.nbytes for video in cache._videos.values())


@pytest.mark.parametrize("size", [0, 1e9])
def test_a_file_shorter_than_its_manifest_says_is_named(entries: list[Entry], size: float) -> None:
    longer = replace(entries[0], num_frames=20)
    with pytest.raises(VideoError, match=r"\.mp4: has 8 frames; frame 11 was asked for"):
        FrameCache(size).read(longer, np.array([11, 0]), with_vectors=False)


def test_a_sample_depends_on_its_key_alone(entries: list[Entry]) -> None:
    keys = [SampleKey(epoch, clip, draw) for epoch in (0, 1) for clip in (0, 2) for draw in (0, 1)]
    first, second = (
        TrainingClips(source(entries, FrameCache(0)), MultiScaleCrop(), 7, TubeMask(mask_ratio=0.5))
        for _ in range(2)
    )
    forward = {key: first[key] for key in keys}
    backward = {key: second[key] for key in reversed(keys)}
    for key in keys:
        np.testing.assert_array_equal(forward[key].clip, backward[key].clip)
        np.testing.assert_array_equal(forward[key].mask, backward[key].mask)
        assert forward[key].clip.shape == (3, 4, 32, 32)
        assert forward[key].clip.dtype == np.uint8
        assert forward[key].mask is not None
        assert forward[key].mask.shape == (2 * 16,)
    masks = {forward[key].mask.tobytes() for key in keys}
    assert len(masks) == len(keys)


def test_worker_processes_give_the_same_batches(entries: list[Entry]) -> None:
    clips = TrainingClips(source(entries, FrameCache(0)), MultiScaleCrop(), 7, TubeMask())
    keys = MicroBatches(StepOrder(4, 2, 0, "pretrain"), range(4), 2)
    here, there = (
        list(make_loader(clips, keys, LoaderConfig(num_workers=count), collate)) for count in (0, 1)
    )
    assert [batch.keys for batch in here] == [batch.keys for batch in there]
    for mine, theirs in zip(here, there, strict=True):
        assert torch.equal(mine.clip, theirs.clip)
        assert torch.equal(mine.mask, theirs.mask)


def test_evaluation_views_are_spread_and_repeatable(entries: list[Entry]) -> None:
    clips = EvaluationClips(source(entries, FrameCache(1e9)), num_clips=2, num_crops=1)
    assert clips.num_views == 2
    early, late = (clips[SampleKey(0, 1, draw)] for draw in range(2))
    frames = read_frames(entries[1].path)
    assert early.label == entries[1].label
    centre = frames.transpose(3, 0, 1, 2)
    for view, indices in ((early, range(4)), (late, range(4, 8))):
        expected = [np.asarray(centre[:, i]) for i in indices]
        small = view.clip.transpose(1, 0, 2, 3)
        errors = [
            [np.abs(_shrunk(frame) - found.astype(float)).mean() for frame in expected]
            for found in small
        ]
        assert np.argmin(errors, axis=1).tolist() == [0, 1, 2, 3]


def _shrunk(frame: np.ndarray) -> np.ndarray:
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(frame.astype(np.float32))[None], (32, 32), mode="bilinear", antialias=True
    )
    return resized[0].numpy()


def test_unreadable_video_is_an_error_and_not_another_clip(
    entries: list[Entry], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    entry = Entry("x", str(broken), "train", 0, None, None, None, 48, 48, 8, 12.0)
    clips = TrainingClips(source([entry], FrameCache(1e9)), MultiScaleCrop(), 0)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        clips[SampleKey(0, 0, 0)]
