"""The one training loop: steps, logging, checkpoints, exact resume.

The loop knows no Ray and no MLflow; it is given a `Reporter`. A resumed run continues at the very
step after the checkpoint, with the same clips and masks.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from kinema import storage
from kinema.config import Config, fingerprint
from kinema.errors import CheckpointError, NonFiniteLossError
from kinema.randomness import keyed_rng
from kinema.training.batch import Batch, collate
from kinema.training.data import LoaderConfig, TrainingClips, make_loader
from kinema.training.engine import Engine, gather_objects, read_meta
from kinema.training.optim import Schedule
from kinema.training.order import MicroBatches, StepOrder


class Duration(Config):
    """How long a stage runs and how often it writes things down."""

    epochs: PositiveInt = 800
    checkpoint_every: PositiveInt = Field(20, description="epochs between checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="training states kept, newest first")
    log_every: PositiveInt = Field(20, description="optimizer steps between logged metrics")


class Reporter(Protocol):
    """What a stage needs from the outside."""

    resume: Path | None
    """Folder of the newest training state of this run, until a stage has taken it up; or None."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics; called on rank 0 only, never waits."""

    def checkpoint(self, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        """Make a training state durable; collective, `save` writes this rank's part to a folder."""

    def preempted(self) -> bool:
        """Whether a machine of this run is about to be taken away; collective."""


@dataclass
class Averages:
    """Running means of named values; NaN entries (not applicable) don't count."""

    _sums: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: float, count: int = 1) -> None:
        """Count `value`, the mean of `count` entries."""
        if count and not math.isnan(value):
            self._sums[name] = self._sums.get(name, 0.0) + value * count
            self._counts[name] = self._counts.get(name, 0) + count

    def add_batch(self, statistics: Mapping[str, Tensor]) -> None:
        """Count per-sample values."""
        for name, values in statistics.items():
            valid = values[~torch.isnan(values)]
            self.add(name, float(valid.mean()) if len(valid) else math.nan, len(valid))

    def means(self) -> dict[str, float]:
        """All means so far."""
        return {name: self._sums[name] / self._counts[name] for name in self._sums}

    def as_dict(self) -> dict[str, list[float]]:
        """Sum and count by name, as JSON can hold them."""
        return {name: [total, self._counts[name]] for name, total in self._sums.items()}

    @staticmethod
    def from_dict(saved: Mapping[str, Sequence[float]]) -> Averages:
        """What `as_dict` gave."""
        return Averages(
            {name: float(total) for name, (total, _) in saved.items()},
            {name: int(count) for name, (_, count) in saved.items()},
        )

    @staticmethod
    def merge(parts: list[Averages]) -> Averages:
        """Averages over all ranks."""
        merged = Averages()
        for part in parts:
            for name, total in part._sums.items():
                merged._sums[name] = merged._sums.get(name, 0.0) + total
                merged._counts[name] = merged._counts.get(name, 0) + part._counts[name]
        return merged


@dataclass
class Feed:
    """Micro-batches, moved to `device` one at a time, while the last one is still computed.

    `waited` and `statistics` are of what was taken last: seconds until the loader gave it, and the
    batches' values.
    """

    batches: Iterator[Batch]
    device: torch.device
    waited: float = 0.0
    statistics: list[dict[str, Tensor]] = field(default_factory=list)

    def take(self, count: int) -> Iterator[Batch]:
        """The next micro-batches."""
        self.waited, self.statistics = 0.0, []
        for _ in range(count):
            asked = time.perf_counter()
            batch = next(self.batches)
            self.waited += time.perf_counter() - asked
            self.statistics.append(batch.statistics)
            yield batch.to(self.device)


EpochEnd = Callable[[int, int], tuple[Mapping[str, float], bool]]
"""Called as (epoch, step) after each epoch on all ranks -> metrics to log, and whether to stop."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its name prefixes metrics and its state tells where to resume.

    `state` is a plain JSON-able dict that `after_epoch` may change; it travels with checkpoints.
    Its entry `last_epoch` holds the means of the newest complete epoch, `begun` the sums of the one
    that a checkpoint within an epoch had begun.
    """

    name: str
    engine: Engine
    order: StepOrder
    schedule: Schedule
    duration: Duration
    loss_fn: Callable[[nn.Module, Batch], Tensor]
    clips: TrainingClips
    loader: LoaderConfig
    failures_uri: str
    state: dict[str, Any] = field(default_factory=dict)
    after_epoch: EpochEnd | None = None
    num_draws: int = 1

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.duration.epochs * self.order.steps_per_epoch

    @property
    def clips_trained_on(self) -> str:
        """Fingerprint of the clips and their order."""
        return fingerprint([entry.id for entry in self.clips.source.entries])

    def batches(self, steps: range) -> Iterator[Batch]:
        """This rank's micro-batches of some steps, in order."""
        engine = self.engine
        keys = MicroBatches(
            self.order,
            steps,
            engine.micro_batch_size,
            self.num_draws,
            engine.rank,
            engine.world_size,
        )
        return iter(make_loader(self.clips, keys, self.loader, collate))

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The loss of one micro-batch. What the network drops depends on its samples alone."""
        seed = keyed_rng(self.order.seed, self.name, *batch.keys, "network").integers(2**63)
        torch.manual_seed(int(seed))
        return self.loss_fn(module, batch)


def run(stage: Stage, reporter: Reporter) -> None:
    """Train from the newest checkpoint of this stage, or from the start, to the end.

    Raises:
        NonFiniteLossError: on all ranks together; the batch is kept for replay.
        CheckpointError: the newest checkpoint is damaged.
    """
    engine, order, duration = stage.engine, stage.order, stage.duration
    start = restore(stage, reporter)
    if start >= stage.total_steps or stage.state.get("stopped"):
        return
    feed = Feed(stage.batches(range(start, stage.total_steps)), engine.device)
    begun = Averages.from_dict(stage.state.pop("begun", {}))
    recent, epoch_means = Averages(), begun if engine.rank == 0 else Averages()
    window = time.perf_counter()
    warned = urgent = False
    for step in range(start, stage.total_steps):
        rate = stage.schedule(step)
        loss, norm = engine.step(feed.take(engine.accumulation), stage.loss, rate)
        if not math.isfinite(loss):
            _stop_on_non_finite(stage, step, start)
        for means in (recent, epoch_means):
            means.add("loss", loss)
            for statistics in feed.statistics:
                means.add_batch(statistics)
        recent.add("wait", feed.waited)
        epoch, ends = order.epoch(step), (step + 1) % order.steps_per_epoch == 0
        if ends or (step + 1) % duration.log_every == 0:
            merged = Averages.merge(gather_objects(recent)).means()
            elapsed, window = time.perf_counter() - window, time.perf_counter()
            steps = recent._counts["loss"]
            if engine.rank == 0:
                speed = steps * order.global_batch_size * stage.num_draws / elapsed
                values = {
                    **merged,
                    "epoch": (step + 1) / order.steps_per_epoch,
                    "lr": rate,
                    "grad_norm": norm,
                    "clips_per_second": speed,
                    "data_wait_share": merged["wait"] * steps / elapsed,
                }
                metrics = _named(stage.name, values)
                reporter.log(metrics, step + 1)
            recent = Averages()
            # Each warning is answered once; what follows it is lost when the machine goes.
            before, warned = warned, reporter.preempted()
            urgent = warned and not before
            if urgent and not ends:
                sums = Averages.merge(gather_objects(epoch_means)).as_dict()
                _save(stage, reporter, step, {}, {"begun": sums})
        if ends:
            stop = _end_epoch(stage, reporter, epoch, step, epoch_means, urgent)
            epoch_means, window = Averages(), time.perf_counter()
            if stop:
                return


def restore(stage: Stage, reporter: Reporter) -> int:
    """Load this stage's newest training state; returns the step to continue with."""
    # A later stage has no use for it: Ray may have removed it by then, or it is that stage's own,
    # and what it was trained from is being made anew here.
    folder, reporter.resume = reporter.resume, None
    if folder is None:
        return 0
    meta = read_meta(folder)
    if meta["stage"] != stage.name:
        return 0
    if meta["clips"] != stage.clips_trained_on:
        raise CheckpointError(
            f"{folder}: this training state was made on other clips than there are now, of which"
            " motion was extracted since or is missing; remove the run's folder under train/ to"
            " train anew"
        )
    stage.engine.load(folder)
    stage.state.update(meta["state"])
    return int(meta["step"])


def _end_epoch(
    stage: Stage, reporter: Reporter, epoch: int, step: int, means: Averages, urgent: bool
) -> bool:
    """Validate, log the epoch, save when it is time; returns whether the stage ends here."""
    merged = Averages.merge(gather_objects(means)).means()
    named = _named(stage.name, merged)
    stage.state["last_epoch"] = named
    metrics = {f"{stage.name}/epoch_loss": merged["loss"]}
    stop = False
    if stage.after_epoch is not None:
        extra, stop = stage.after_epoch(epoch, step + 1)
        metrics |= extra
    if stop:
        stage.state["stopped"] = True
    if stage.engine.rank == 0:
        reporter.log(metrics, step + 1)
    last = stop or step + 1 == stage.total_steps
    if last or urgent or (epoch + 1) % stage.duration.checkpoint_every == 0:
        _save(stage, reporter, step, {**metrics, "stage_epoch": float(epoch + 1)})
    return stop


def _save(
    stage: Stage,
    reporter: Reporter,
    step: int,
    metrics: Mapping[str, float],
    extra: Mapping[str, Any] | None = None,
) -> None:
    meta = {
        "stage": stage.name,
        "step": step + 1,
        "clips": stage.clips_trained_on,
        "state": {**stage.state, **(extra or {})},
    }
    reporter.checkpoint(metrics, lambda folder: stage.engine.save(folder, meta))


_GROUPS = {
    "mask_ratio": "mask/realised_ratio",
    "inside_ratio": "mask/realised_inside_ratio",
    "inside_share": "mask/inside_share",
    "clipped_share": "mask/clipped_share",
    "fallback_share": "motion/fallback_share",
    "flow_guided_share": "mask/flow_guided_share",
    "valid_share": "motion/valid_share",
    "padded_share": "data/padded_share",
    "clips_per_second": "perf/clips_per_second",
    "data_wait_share": "perf/data_wait_share",
}
"""Names in pretraining. A name has one value per step, and every stage counts its steps from 0:
finetuning's are `perf/finetune_clips_per_second` and so on."""


def _named(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    """MLflow names of values."""
    return {_name(stage, name): value for name, value in values.items() if name != "wait"}


def _name(stage: str, name: str) -> str:
    if name not in _GROUPS:
        return f"{stage}/{name}"
    group, _, rest = _GROUPS[name].partition("/")
    return _GROUPS[name] if stage == "pretrain" else f"{group}/{stage}_{rest}"


def _stop_on_non_finite(stage: Stage, step: int, start: int) -> None:
    """Keep this rank's samples of the step, drawn once more, and end on all ranks together."""
    parts = ("keys", "clip", "labels", "mask", "inner", "motion")
    batches = [
        {part: getattr(batch, part) for part in parts}
        for batch in stage.batches(range(step, step + 1))
    ]
    buffer = io.BytesIO()
    torch.save(batches, buffer)
    uri = storage.join(stage.failures_uri, f"{stage.name}-step{step}-rank{stage.engine.rank}.pt")
    storage.write_bytes(uri, buffer.getvalue())
    raise NonFiniteLossError(
        f"{stage.name}: loss or gradient is not finite at step {step} (this attempt began at"
        f" {start}); the batch is kept in {uri}. Lower the learning rate, set optim.clip_grad, or"
        " use bf16."
    )
