"""What masks and targets get of a clip's motion, through the store, the decoder and the loader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from kinema.errors import NoVectorsError
from kinema.geometry import Transform
from kinema.masking.masks import MGMMask, TubeMask
from kinema.models.target_rule import MotionRequest
from kinema.models.targets import TrajectoryTarget
from kinema.models.vit import ViTConfig
from kinema.motion.extractor import MotionConfig
from kinema.motion.fields import FieldConfig
from kinema.motion.flow import DIS
from kinema.motion.parts import MotionReader
from kinema.motion.store import MotionStore
from kinema.motion.tracks import patch_points, track
from kinema.pipelines.one_video import extract_one
from kinema.training.batch import collate
from kinema.training.data import ClipSource, TrainingClips
from kinema.training.frames import FrameCache
from kinema.training.motion_inputs import request_times
from kinema.training.order import SampleKey
from kinema.video.augment import CentreCrop, MultiScaleCrop
from kinema.video.decode import probe, read_frames
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import DenseSampling
from kinema.video.synthetic import SyntheticConfig, load_truth, make

VIT = ViTConfig(
    size="custom", embed_dim=16, depth=1, num_heads=1, image_size=32, num_frames=4, patch_size=8
)
CONFIG = MotionConfig(flow=DIS(), fields=FieldConfig(cell=2))
TRAJECTORY = TrajectoryTarget(length=3, features=("position", "shape", "hof"))


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Three clips, the last of them once more as VP9, which gives no vectors."""
    root = tmp_path_factory.mktemp("clips")
    clips = SyntheticConfig(
        num_train=3,
        num_validation=0,
        num_test=0,
        num_frames=12,
        size=96,
        object_size=(24, 28),
        speed=(1.5, 2),
    )
    found = Manifest.read(make(clips, str(root))).rows()
    path = root / "v.webm"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libvpx-vp9", rate=12)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for frame in read_frames(found[-1].path):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        output.mux(stream.encode(None))
    info = probe(str(path))
    return [
        *found,
        replace(found[-1], id="vp9", path=str(path), num_frames=info.num_frames),
    ]


@pytest.fixture(scope="module")
def motion(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> MotionReader:
    store = MotionStore(str(tmp_path_factory.mktemp("store")), CONFIG)
    store.write_part([extract_one(entry, CONFIG) for entry in entries], "000")
    return store.open([entry.id for entry in entries])


def source(
    entries: list[Entry], motion: MotionReader | None, cache: float = 0, stride: int = 2
) -> ClipSource:
    return ClipSource(entries, VIT, DenseSampling(stride=stride), "clip", motion, FrameCache(cache))


def test_requests_look_at_raw_frames_from_each_slots_first() -> None:
    requests = {
        "raw": MotionRequest(at="raw", length=3, frames=True),
        "sampled": MotionRequest(at="sampled", length=2, flow=True),
    }
    times = request_times(requests, np.array([3, 6, 9, 12]), VIT, stride=1)
    assert times.times["raw"].tolist() == [[3, 4, 5], [9, 10, 11]]
    assert times.times["sampled"].tolist() == [[3, 6], [9, 12]]
    assert times.frames(range(11)).tolist() == [3, 4, 5, 9, 10, 10]  # the last one is repeated
    assert times.flow_span() == (3, 12)
    apart = request_times(requests, np.array([3, 6, 9, 12]), VIT, stride=3)
    assert apart.times["raw"].tolist() == [[3, 6, 9], [9, 12, 15]]
    nothing = request_times({}, np.array([3, 6, 9, 12]), VIT, stride=1)
    assert nothing.flow_span() is None
    assert len(nothing.frames(range(20))) == 0


def test_a_sample_brings_what_the_target_asks_for(
    entries: list[Entry], motion: MotionReader
) -> None:
    clips = TrainingClips(
        source(entries, motion),
        CentreCrop(),
        0,
        mask=TubeMask(mask_ratio=0.5),
        requests=TRAJECTORY.requests(VIT),
    )
    sample = clips[SampleKey(0, 1, 0)]
    assert sample.motion["tracks/frames"].shape == (2, 3, 3, 32, 32)
    assert sample.motion["tracks/frames"].dtype == np.uint8
    assert sample.motion["tracks/flow"].shape == (2, 3, 32, 32, 2)
    assert sample.motion["tracks/positions"].shape == (2, 64, 4, 2)
    assert sample.statistics is not None
    assert 0 < sample.statistics["valid_share"] <= 1

    # Against the parts, one by one, for the frames that the clip was seen to hold.
    transform = Transform.identity((96, 96)).resize((32, 32))
    every = transform.frames(read_frames(entries[1].path))
    start = next(
        first for first in range(7) if (every[first] == sample.clip[:, 0].transpose(1, 2, 0)).all()
    )
    frames = sample.motion["tracks/frames"].transpose(0, 1, 3, 4, 2)
    for slot, first in enumerate((start, start + 4)):
        np.testing.assert_array_equal(frames[slot], every[first : first + 3])
    run = motion.flow(entries[1].id, 0, 99)
    np.testing.assert_allclose(
        sample.motion["tracks/flow"][1], transform.field(run.flow[start + 4 : start + 7])
    )
    expected = track(run, np.array([start, start + 4]), patch_points(32, 8, 4), 3, 1, transform)
    np.testing.assert_allclose(sample.motion["tracks/positions"], expected.positions)
    np.testing.assert_array_equal(sample.motion["tracks/valid"], expected.valid)

    batch = collate([sample, clips[SampleKey(0, 0, 0)]])
    inputs = batch.to(torch.device("cpu")).inputs()
    assert inputs.motion["tracks/frames"].max() <= 1
    assert batch.mask is not None
    wanted = TRAJECTORY.compute(inputs, batch.mask, VIT)
    assert torch.isfinite(wanted.values).all()


@pytest.mark.parametrize("guide", ["vectors", "flow"])
def test_samples_do_not_depend_on_what_is_in_memory(
    entries: list[Entry], motion: MotionReader, guide
) -> None:
    keys = [SampleKey(epoch, clip, 0) for epoch in range(3) for clip in range(3)]
    found = []
    for cache in (0, 1e9):
        clips = TrainingClips(
            source(entries, motion, cache), MultiScaleCrop(), 5, mask=MGMMask(guide=guide)
        )
        found.append([clips[key] for key in keys])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.clip, other.clip)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_guided_masks_follow_the_moving_disc(entries: list[Entry], motion: MotionReader) -> None:
    """With the codec's vectors and with flow, the hidden share of the disc beats the mask ratio."""
    for guide in ("vectors", "flow"):
        mask = MGMMask(mask_ratio=0.25, guide=guide, first_slot="motion", jitter=0)
        clips = TrainingClips(source(entries, motion, stride=3), CentreCrop(), 0, mask=mask)
        shares = []
        for clip, entry in enumerate(entries[:3]):
            sample = clips[SampleKey(0, clip, 0)]
            assert sample.mask is not None
            truth = load_truth(str(Path(entry.path).parents[3]), entry.split, entry.id)
            covered = truth.masks[:10].reshape(10, 4, 24, 4, 24).mean(axis=(2, 4))
            tokens = np.stack([covered[0:6].mean(axis=0), covered[6:10].mean(axis=0)]) > 0.5
            shares.append(sample.mask.reshape(2, 4, 4)[tokens].mean())
            assert sample.statistics is not None
            assert sample.statistics["fallback_share"] == 0
            assert sample.statistics["flow_guided_share"] == float(guide == "flow")
        assert np.mean(shares) > 0.6


def test_a_codec_without_vectors_is_an_error_or_a_counted_fallback(
    entries: list[Entry], motion: MotionReader
) -> None:
    strict = TrainingClips(source(entries, motion), CentreCrop(), 0, mask=MGMMask())
    with pytest.raises(NoVectorsError, match=r"v\.webm: codec vp9 gives no motion vectors"):
        strict[SampleKey(0, 3, 0)]
    lenient = TrainingClips(
        source(entries, motion), CentreCrop(), 0, mask=MGMMask(guide="vectors_or_flow")
    )
    shares = [
        (lenient[SampleKey(0, clip, 0)].statistics or {})["flow_guided_share"] for clip in (0, 3)
    ]
    assert shares == [0, 1]


def test_cache_counts_what_it_holds_also_when_vectors_are_asked_for_later(
    entries: list[Entry],
) -> None:
    first, second, _, vp9 = entries
    one_video = 12 * 96 * 96 * 3
    cache, indices = FrameCache(2.2 * one_video), np.array([0, 3])

    def counted() -> int:
        return sum(video.nbytes for video in cache._videos.values())

    cache.read(vp9, indices, with_vectors=False)
    with pytest.raises(NoVectorsError):
        cache.read(vp9, indices, with_vectors=True)
    assert list(cache._videos) == [vp9.path]  # its frames are good
    assert cache._bytes == counted()
    cache.read(first, indices, with_vectors=False)
    cache.read(second, indices, with_vectors=False)
    cache.max_bytes = counted()  # now a vector is too much
    assert cache.read(first, indices, with_vectors=True).vectors is not None
    assert list(cache._videos) == [first.path]  # the one that was just read stays
    assert cache._bytes == counted() <= cache.max_bytes


def test_shuffled_frames_are_the_same_in_another_order(entries: list[Entry]) -> None:
    orders = set()
    for epoch in range(6):
        plain, shuffled = (
            TrainingClips(
                source(entries, None),
                CentreCrop(),
                0,
                mask=TubeMask(mask_ratio=0.5),
                shuffle=shuffle,
            )[SampleKey(epoch, 0, 0)].clip
            for shuffle in (False, True)
        )
        order = [
            next(i for i in range(4) if (plain[:, i] == shuffled[:, frame]).all())
            for frame in range(4)
        ]
        assert sorted(order) == [0, 1, 2, 3]
        orders.add(tuple(order))
    assert len(orders) > 2
