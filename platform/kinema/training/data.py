"""From manifest and motion store to batches: which clips, in which order, cut and masked how.

The order of a run is a pure function of (seed, step), and everything random about a sample of
(seed, epoch, id, draw, purpose): workers, GPUs and restarts change nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch.utils.data import DataLoader, Dataset, Sampler

from kinema.config import Config
from kinema.errors import ConfigError
from kinema.geometry import Transform
from kinema.masking.grid import Grid, inside_positions
from kinema.masking.masks import Mask, MotionBoxMask, mask_statistics
from kinema.models.vit import ViTConfig
from kinema.motion.clip import BoxSource, ClipMotion, Reduce, clip_motion
from kinema.randomness import keyed_rng
from kinema.training.batch import ErasingConfig, Sample, random_erase
from kinema.video.augment import Augment, evaluation_transform, sample_transform
from kinema.video.decode import read_frames
from kinema.video.manifest import Entry
from kinema.video.sampling import Sampling, sample

Item = TypeVar("Item")
Out = TypeVar("Out")


class LoaderConfig(Config):
    """How clips reach the model. Changes speed, not results."""

    num_workers: NonNegativeInt = Field(4, description="decoding processes per GPU; 0 = in place")
    cache_gb: NonNegativeFloat = Field(
        0.0, description="keep decoded videos in memory up to this size, per decoding process"
    )


class SampleKey(NamedTuple):
    """Names one sample of a run; `draw` tells repeated augmentations (or views) apart."""

    epoch: int
    clip: int
    draw: int


@dataclass(frozen=True)
class StepOrder:
    """The order of all clips of a run; the last, incomplete step of an epoch is dropped.

    Raises:
        ConfigError: there are fewer clips than one step needs.
    """

    num_clips: int
    global_batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_clips < self.global_batch_size:
            raise ConfigError(
                [
                    f"engine.global_batch_size {self.global_batch_size} exceeds the "
                    f"{self.num_clips} training clips; lower it"
                ]
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.num_clips // self.global_batch_size

    def epoch(self, step: int) -> int:
        """Epoch of an optimizer step."""
        return step // self.steps_per_epoch

    def clips(self, step: int) -> NDArray[np.int64]:
        """Indices of the clips of one step, over all ranks."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        order = keyed_rng(self.seed, epoch, "order").permutation(self.num_clips)
        start = offset * self.global_batch_size
        return order[start : start + self.global_batch_size]


class MicroBatches(Sampler[list[SampleKey]]):
    """This rank's micro-batches of steps [start, stop), in order.

    A rank takes a contiguous share of each step, so neighbours (the partners of mixup) stay
    together at every world size. With `num_draws` > 1 each micro-batch repeats its clips, draw
    after draw.
    """

    def __init__(
        self,
        order: StepOrder,
        steps: range,
        micro_batch_size: int,
        num_draws: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order, self.steps, self.num_draws = order, steps, num_draws
        self.micro_batch_size, self.rank, self.world_size = micro_batch_size, rank, world_size

    def __len__(self) -> int:
        share = self.order.global_batch_size // self.world_size
        return len(self.steps) * (share // self.micro_batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        share = self.order.global_batch_size // self.world_size
        for step in self.steps:
            epoch = self.order.epoch(step)
            mine = self.order.clips(step)[self.rank * share : (self.rank + 1) * share]
            for micro in mine.reshape(-1, self.micro_batch_size):
                yield [
                    SampleKey(epoch, int(index), draw)
                    for draw in range(self.num_draws)
                    for index in micro
                ]


class FrameCache:
    """Decoded videos, least recently used first out, up to a number of bytes."""

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes, self._bytes = max_bytes, 0
        self._videos: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()

    def frames(self, entry: Entry, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames (T, H, W, 3) of the entry's video at `indices`."""
        size = entry.num_frames * entry.height * entry.width * 3
        if size > self.max_bytes:
            return read_frames(entry.path, indices.tolist())
        if entry.path not in self._videos:
            self._videos[entry.path] = read_frames(entry.path)
            self._bytes += self._videos[entry.path].nbytes
            while self._bytes > self.max_bytes and len(self._videos) > 1:
                self._bytes -= self._videos.popitem(last=False)[1].nbytes
        self._videos.move_to_end(entry.path)
        return self._videos[entry.path][indices]


@dataclass(frozen=True)
class ClipSource:
    """Everything the training and the evaluation data set share.

    `motion` is the opened motion store, or None when neither mask nor head reads it.
    """

    entries: Sequence[Entry]
    model: ViTConfig
    sampling: Sampling
    reduce: Reduce
    motion: BoxSource | None
    cache: FrameCache

    @property
    def grid(self) -> Grid:
        """Token grid of a clip."""
        return self.model.grid

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return (self.model.image_size, self.model.image_size)

    def frames(self, entry: Entry, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames (T, H, W, 3) uint8 of a clip, at source size."""
        return self.cache.frames(entry, indices)

    def clip_motion(
        self, entry: Entry, indices: NDArray[np.int64], transform: Transform
    ) -> ClipMotion | None:
        """The clip's motion in input pixels, or None without a store."""
        if self.motion is None:
            return None
        boxes = self.motion.boxes(entry.id)
        return clip_motion(boxes, indices, transform, self.model.tubelet_size, self.reduce)

    def inner_tokens(self, motion: ClipMotion | None) -> NDArray[np.bool_] | None:
        """(tokens,) True where a token overlaps the motion box of its slot (MOFO, section 3.3)."""
        if motion is None:
            return None
        return inside_positions(self.grid, motion.boxes, self.output_size).reshape(-1)


class TrainingClips(Dataset[Sample]):
    """Randomly cut, augmented and masked clips, named by `SampleKey`."""

    def __init__(
        self,
        source: ClipSource,
        augment: Augment,
        seed: int,
        mask: Mask | None = None,
        erasing: ErasingConfig | None = None,
    ) -> None:
        self.source, self.augment, self.seed = source, augment, seed
        self.mask, self.erasing = mask, erasing

    def __len__(self) -> int:
        return len(self.source.entries)

    def __getitem__(self, key: SampleKey) -> Sample:
        source, entry = self.source, self.source.entries[key.clip]

        def rng(purpose: str) -> np.random.Generator:
            return keyed_rng(self.seed, key.epoch, entry.id, key.draw, purpose)

        indices, padded = sample(
            source.sampling, source.model.num_frames, entry.frame_range(), entry.fps, rng("frames")
        )
        frames = source.frames(entry, indices)
        transform, recolour = sample_transform(
            self.augment, frames.shape[1:3], source.output_size, rng("augment")
        )
        frames = transform.frames(frames)
        if recolour is not None:
            frames = recolour(frames)
        clip = np.ascontiguousarray(frames.transpose(3, 0, 1, 2))
        if self.erasing is not None:
            clip = random_erase(clip, self.erasing, rng("erase"))
        motion = source.clip_motion(entry, indices, transform)
        statistics = {"padded_share": padded}
        if motion is not None:
            statistics["fallback_share"] = float(motion.fallback)
        mask = None
        if self.mask is not None:
            mask = self.mask.sample(source.grid, motion, source.output_size, rng("mask"))
            statistics |= _mask_statistics(self.mask, mask, motion, source)
            mask = mask.reshape(-1)
        return Sample(
            key=f"{entry.id}#{key.epoch}.{key.draw}",
            label=-1 if entry.label is None else entry.label,
            clip=clip,
            mask=mask,
            inner=source.inner_tokens(motion) if self.mask is None else None,
            statistics=statistics,
        )


def _mask_statistics(
    config: Mask, mask: NDArray[np.bool_], motion: ClipMotion | None, source: ClipSource
) -> dict[str, float]:
    """What is logged of one mask: realised ratios, and whether the asked ratio had to give way."""
    if motion is None:
        return {"mask_ratio": float(mask.mean())}
    overlap = config.overlap if isinstance(config, MotionBoxMask) else "overlap"
    inside = inside_positions(source.grid, motion.box, source.output_size, overlap)
    statistics = mask_statistics(mask, inside)
    if isinstance(config, MotionBoxMask):
        _, clipped = config.quota(int(inside.sum()), source.grid.positions)
        statistics["clipped_share"] = float(clipped)
    return statistics


class EvaluationClips(Dataset[Sample]):
    """Deterministic views of each clip: `draw` = temporal view * num_crops + spatial crop."""

    def __init__(self, source: ClipSource, num_clips: int = 1, num_crops: int = 1) -> None:
        self.source, self.num_clips, self.num_crops = source, num_clips, num_crops

    def __len__(self) -> int:
        return len(self.source.entries)

    @property
    def num_views(self) -> int:
        """Views per video."""
        return self.num_clips * self.num_crops

    def __getitem__(self, key: SampleKey) -> Sample:
        source, entry = self.source, self.source.entries[key.clip]
        view, crop = divmod(key.draw, self.num_crops)
        indices, padded = sample(
            source.sampling,
            source.model.num_frames,
            entry.frame_range(),
            entry.fps,
            None,
            (view, self.num_clips),
        )
        frames = source.frames(entry, indices)
        transform = evaluation_transform(
            frames.shape[1:3], source.output_size, crop, self.num_crops
        )
        motion = source.clip_motion(entry, indices, transform)
        return Sample(
            key=entry.id,
            label=-1 if entry.label is None else entry.label,
            clip=np.ascontiguousarray(transform.frames(frames).transpose(3, 0, 1, 2)),
            inner=source.inner_tokens(motion),
            statistics={"padded_share": padded},
        )


def make_loader(
    dataset: Dataset[Item],
    batches: Sampler[list[SampleKey]],
    config: LoaderConfig,
    collate_fn: Callable[[list[Item]], Out],
) -> Iterable[Out]:
    """A loader over named samples; worker processes are spawned, never forked (Ray's advice)."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.num_workers,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if config.num_workers else None,
    )
