"""From manifest and motion store to samples and batches: how clips are cut and masked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch.utils.data import DataLoader, Dataset

from kinema.config import Config
from kinema.errors import NoVectorsError
from kinema.geometry import Transform
from kinema.masking.grid import Grid, inside_positions
from kinema.masking.masks import Mask, MotionBoxMask, mask_statistics
from kinema.models.target_rule import MotionRequest
from kinema.models.vit import ViTConfig
from kinema.motion.clip import (
    BoxSource,
    ClipBoxes,
    ClipMotion,
    Reduce,
    SlotField,
    clip_boxes,
    slot_field,
)
from kinema.motion.fields import FlowRun
from kinema.motion.vectors import GRID
from kinema.randomness import keyed_rng
from kinema.training.batch import ErasingConfig, Sample, random_erase
from kinema.training.frames import Decoded, FrameCache
from kinema.training.motion_inputs import request_times
from kinema.training.order import SampleKey
from kinema.video.augment import Augment, evaluation_transform, sample_transform
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


class MotionSource(BoxSource, Protocol):
    """Whatever knows boxes and dense flow of a video: the motion store, or annotations."""

    def flow(self, video_id: str, first: int, last: int) -> FlowRun:
        """Dense flow that starts at frames `first` to `last`, as far as there is any."""
        ...


@dataclass(frozen=True)
class ClipSource:
    """Everything the training and the evaluation data set share.

    `motion` is the opened motion store, or None when nothing reads it; `stride` the frames that its
    dense flow spans.
    """

    entries: Sequence[Entry]
    model: ViTConfig
    sampling: Sampling
    reduce: Reduce
    motion: MotionSource | None
    cache: FrameCache
    stride: int = 1

    @property
    def grid(self) -> Grid:
        """Token grid of a clip."""
        return self.model.grid

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return (self.model.image_size, self.model.image_size)

    def boxes(
        self, entry: Entry, indices: NDArray[np.int64], transform: Transform
    ) -> ClipBoxes | None:
        """The clip's motion boxes in input pixels, or None without a store."""
        if self.motion is None:
            return None
        boxes = self.motion.boxes(entry.id)
        return clip_boxes(boxes, indices, transform, self.model.tubelet_size, self.reduce)

    def flow(self, entry: Entry, first: int, last: int) -> FlowRun:
        """Dense flow that starts at frames `first` to `last`."""
        assert self.motion is not None
        return self.motion.flow(entry.id, first, last)

    def inner_tokens(self, boxes: ClipBoxes | None) -> NDArray[np.bool_] | None:
        """(tokens,) True where a token overlaps the motion box of its slot (MOFO, section 3.3)."""
        if boxes is None:
            return None
        return inside_positions(self.grid, boxes.boxes, self.output_size).reshape(-1)


class TrainingClips(Dataset[Sample]):
    """Randomly cut, augmented and masked clips, named by `SampleKey`.

    Args:
        source: which clips.
        augment: how they are cut.
        seed: of everything random.
        mask: which tokens are hidden; None for finetuning.
        erasing: which region is overwritten.
        requests: what a target reads besides the clip.
        shuffle: give the sampled frames in random order.
    """

    def __init__(
        self,
        source: ClipSource,
        augment: Augment,
        seed: int,
        mask: Mask | None = None,
        erasing: ErasingConfig | None = None,
        requests: Mapping[str, MotionRequest] = MappingProxyType({}),
        shuffle: bool = False,
    ) -> None:
        self.source, self.augment, self.seed = source, augment, seed
        self.mask, self.erasing = mask, erasing
        self.requests, self.shuffle = dict(requests), shuffle

    def __len__(self) -> int:
        return len(self.source.entries)

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.draw(key)[0]

    def draw(self, key: SampleKey) -> tuple[Sample, ClipMotion]:
        """A sample, and the motion that its mask saw."""
        source, entry = self.source, self.source.entries[key.clip]

        def rng(purpose: str) -> np.random.Generator:
            return keyed_rng(self.seed, key.epoch, entry.id, key.draw, purpose)

        indices, padded = sample(
            source.sampling, source.model.num_frames, entry.frame_range(), entry.fps, rng("frames")
        )
        if self.shuffle:
            indices = rng("shuffle").permutation(indices)
        times = request_times(self.requests, indices, source.model, source.stride)
        extra = times.frames(entry.frame_range())
        decoded, field_source = self._read(entry, np.concatenate([indices, extra]))
        frames = decoded.frames
        transform, recolour = sample_transform(
            self.augment, frames.shape[1:3], source.output_size, rng("augment")
        )
        frames = transform.frames(frames)
        if recolour is not None:
            frames = recolour(frames)
        clip = np.ascontiguousarray(frames[: len(indices)].transpose(3, 0, 1, 2))
        if self.erasing is not None:
            clip = random_erase(clip, self.erasing, rng("erase"))
        boxes = None if self.shuffle else source.boxes(entry, indices, transform)
        statistics = {"padded_share": padded}
        if boxes is not None:
            statistics["fallback_share"] = float(boxes.fallback)
        mask, seen = None, ClipMotion(boxes, None)
        if self.mask is not None:
            field = self._field(entry, indices, transform, decoded, field_source)
            seen = ClipMotion(boxes, field)
            mask = self.mask.sample(source.grid, seen, source.output_size, rng("mask"))
            statistics |= _mask_statistics(self.mask, mask, boxes, source)
            if field is not None:
                statistics["fallback_share"] = float(field.still)
                statistics["flow_guided_share"] = float(field_source == "flow")
            mask = mask.reshape(-1)
        span = times.flow_span()
        run = None if span is None else source.flow(entry, *span)
        motion = times.read(frames[len(indices) :], run, transform)
        valid = [values.mean() for name, values in motion.items() if name.endswith("/valid")]
        if valid:
            statistics["valid_share"] = float(np.mean(valid))
        drawn = Sample(
            key=f"{entry.id}#{key.epoch}.{key.draw}",
            label=-1 if entry.label is None else entry.label,
            clip=clip,
            mask=mask,
            inner=source.inner_tokens(boxes),
            statistics=statistics,
            motion=motion,
        )
        return drawn, seen

    def _read(self, entry: Entry, indices: NDArray[np.int64]) -> tuple[Decoded, str | None]:
        """The frames, and where the mask's field of motion comes from."""
        needs = frozenset() if self.mask is None else self.mask.needs
        if "vectors" in needs:
            try:
                return self.source.cache.read(entry, indices, with_vectors=True), "vectors"
            except NoVectorsError:
                if "flow" not in needs:
                    raise
        field_source = "flow" if "flow" in needs else None
        return self.source.cache.read(entry, indices, with_vectors=False), field_source

    def _field(
        self,
        entry: Entry,
        indices: NDArray[np.int64],
        transform: Transform,
        decoded: Decoded,
        field_source: str | None,
    ) -> SlotField | None:
        tubelet_size = self.source.model.tubelet_size
        if field_source == "vectors":
            assert decoded.vectors is not None
            numbers, fields = decoded.vectors
            return slot_field(numbers, fields, (GRID, GRID), indices, transform, tubelet_size)
        if field_source == "flow":
            run = self.source.flow(entry, int(indices[0]), int(indices[-1]))
            # stored flow is named by the frame it starts from, a field by the one it leads to
            numbers = run.frames + self.source.stride
            return slot_field(numbers, run.raw(), run.cell, indices, transform, tubelet_size)
        return None


def _mask_statistics(
    config: Mask, mask: NDArray[np.bool_], boxes: ClipBoxes | None, source: ClipSource
) -> dict[str, float]:
    """What is logged of one mask: realised ratios, and whether the asked ratio had to give way."""
    if boxes is None:
        return {"mask_ratio": float(mask.mean())}
    overlap = config.overlap if isinstance(config, MotionBoxMask) else "overlap"
    inside = inside_positions(source.grid, boxes.box, source.output_size, overlap)
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
        frames = source.cache.read(entry, indices, with_vectors=False).frames
        transform = evaluation_transform(
            frames.shape[1:3], source.output_size, crop, self.num_crops
        )
        boxes = source.boxes(entry, indices, transform)
        return Sample(
            key=entry.id,
            label=-1 if entry.label is None else entry.label,
            clip=np.ascontiguousarray(transform.frames(frames).transpose(3, 0, 1, 2)),
            inner=source.inner_tokens(boxes),
            statistics={"padded_share": padded},
        )


def make_loader(
    dataset: Dataset[Item],
    batches: Iterable[list[SampleKey]],
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
