"""Supervised finetuning of a pretrained encoder, with a plain or a multi-cross-attention head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kinema import storage
from kinema.errors import CheckpointError, ConfigError
from kinema.masking.masks import RandomMask
from kinema.models.classifier import Classifier, Head
from kinema.models.pixels import normalise, unit_range
from kinema.models.vit import ViTConfig
from kinema.models.weights import load_encoder_weights, load_weights, save_weights
from kinema.randomness import keyed_rng
from kinema.training.batch import (
    Batch,
    ErasingConfig,
    MixingConfig,
    mix,
    soft_labels,
)
from kinema.training.data import ClipSource, EvaluationClips, LoaderConfig, TrainingClips
from kinema.training.engine import Engine, EngineConfig, gather_objects, world
from kinema.training.loop import Duration, Reporter, Stage, run
from kinema.training.optim import OptimConfig, schedule
from kinema.training.order import StepOrder
from kinema.training.predict import predict, top_k_hits
from kinema.video.augment import Augment, RandomResizedCrop
from kinema.video.manifest import Entry
from kinema.video.sampling import Sampling, SegmentSampling

BEST_FILE = "best.safetensors"
HOLDOUT_SHARE = 0.1


class FinetuneConfig(Duration):
    """Recipe of the finetuning stage (defaults: VideoMAE on Something-Something V2)."""

    epochs: PositiveInt = 50
    checkpoint_every: PositiveInt = Field(1, description="epochs between checkpoints")
    engine: EngineConfig = EngineConfig(global_batch_size=512, micro_batch_size=8)
    optim: OptimConfig = OptimConfig(
        base_lr=5e-4, min_lr=1e-6, warmup_epochs=5, betas=(0.9, 0.999), layer_decay=0.75
    )
    sampling: Sampling = Field(
        default=SegmentSampling(), discriminator="name", description="also of the test"
    )
    augment: Augment = Field(default=RandomResizedCrop(), discriminator="name")
    repeated_augmentation: PositiveInt = Field(1, description="draws of each clip per step")
    label_share: float = Field(
        1.0, gt=0, le=1, description="share of each class's training clips that are finetuned on"
    )
    keep_tokens: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the tokens, drawn anew each time, that training looks at (MME, Table"
        " 10: 0.5); tests look at all",
    )
    erasing: ErasingConfig = ErasingConfig()
    mixing: MixingConfig = MixingConfig()
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    drop_path: float = Field(0.1, ge=0, lt=1)
    early_stopping: NonNegativeInt = Field(
        0, description="end after this many epochs without a better val/top1; 0 = off"
    )
    min_matched_share: NonNegativeFloat = Field(
        1.0, description="least share of encoder tensors that the checkpoint must provide"
    )


@dataclass(frozen=True)
class FinetuneTask:
    """One finetuning, complete. `encoder_uri` None trains from random weights."""

    config: FinetuneConfig
    model: ViTConfig
    head: Head
    num_classes: int
    loader: LoaderConfig
    seed: int
    encoder_uri: str | None


def holdout_groups(groups: Iterable[str], seed: int) -> set[str]:
    """A fixed tenth of the groups, at least one of them and never all.

    Raises:
        ConfigError: there is one group only.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise ConfigError(["data: one group of training clips cannot be split for validation"])
    count = min(max(1, round(HOLDOUT_SHARE * len(names))), len(names) - 1)
    chosen = keyed_rng(seed, "holdout").choice(len(names), count, replace=False)
    return {names[i] for i in chosen}


def split_holdout(entries: Sequence[Entry], seed: int) -> tuple[list[Entry], list[Entry]]:
    """Set a fixed tenth of the training clips aside for choosing the best epoch.

    Whole groups (subjects, say) are set aside where the manifest names any, so that none is on both
    sides.

    Raises:
        ConfigError: too few clips or groups to set any aside.
    """
    aside = holdout_groups([entry.group or entry.id for entry in entries], seed)
    return (
        [entry for entry in entries if (entry.group or entry.id) not in aside],
        [entry for entry in entries if (entry.group or entry.id) in aside],
    )


def keep_labels(entries: Sequence[Entry], share: float, seed: int) -> list[Entry]:
    """The clips of the few-label protocol: a fixed `share` of each class, at least one clip.

    Larger shares contain the smaller ones, so results at several shares can be compared.
    """
    if share == 1:
        return list(entries)
    order = keyed_rng(seed, "labels").permutation(len(entries))
    ranked: dict[int | None, list[int]] = {}
    for index in order:
        ranked.setdefault(entries[index].label, []).append(int(index))
    kept = sorted(i for ids in ranked.values() for i in ids[: max(1, round(share * len(ids)))])
    return [entries[index] for index in kept]


def build_classifier(task: FinetuneTask) -> Classifier:
    """The classifier of a task, with random weights drawn from its seed."""
    torch.manual_seed(task.seed)
    model = task.model.model_copy(update={"drop_path": task.config.drop_path})
    return Classifier(model, task.head, task.num_classes)


def finetune(
    task: FinetuneTask,
    train: ClipSource,
    validation: ClipSource,
    output_uri: str,
    reporter: Reporter,
) -> Classifier:
    """Train a classifier, choosing the best epoch on `validation`; returns it at its best.

    Collective. The best weights also lie in `<output_uri>/best.safetensors`.

    Raises:
        ConfigError: settings or clips that do not fit.
        CheckpointError: the training state is damaged or of other clips, or its best weights are
            gone.
        NonFiniteLossError: the training diverged.
    """
    config = task.config
    _check(task, train)
    model = build_classifier(task)
    if task.encoder_uri is not None:
        load_encoder_weights(model, task.encoder_uri, config.min_matched_share)
    engine = Engine(model, task.model.depth, config.engine, config.optim)
    order = StepOrder(len(train.entries), config.engine.global_batch_size, task.seed, "finetune")
    dropped = RandomMask(mask_ratio=1 - config.keep_tokens) if config.keep_tokens < 1 else None
    if dropped is not None:
        dropped.check(task.model.grid)
    clips = TrainingClips(train, config.augment, task.seed, mask=dropped, erasing=config.erasing)
    best = build_classifier(task)
    best_uri = storage.join(output_uri, BEST_FILE)
    state: dict[str, float] = {"top1_best": -1.0, "best_epoch": -1.0}

    def loss_fn(module: nn.Module, batch: Batch) -> Tensor:
        batch = replace(batch, clip=normalise(unit_range(batch.clip)))
        targets = soft_labels(batch.labels, task.num_classes, config.label_smoothing)
        batch, targets = mix(batch, targets, config.mixing, task.seed)
        visible = None if batch.mask is None else ~batch.mask
        logits = module(batch.clip.to(engine.dtype), batch.inner, visible).float()
        return torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1).mean()

    def after_epoch(epoch: int, step: int) -> tuple[Mapping[str, float], bool]:
        result = predict(
            engine.predictor(best),
            EvaluationClips(validation),
            task.loader,
            engine.micro_batch_size,
            engine.device,
            engine.dtype,
        )
        if result.failures:
            raise ConfigError(
                [f"validation clip unreadable: {why}" for why in result.failures.values()]
            )
        top1, top5 = (
            float(top_k_hits(result.logits[:, 0], result.labels, k).mean()) for k in (1, 5)
        )
        if top1 > state["top1_best"]:
            state.update(top1_best=top1, best_epoch=float(epoch))
            weights = engine.full_weights()
            if engine.rank == 0:
                best.load_state_dict(weights)
                save_weights(best, task.head, best_uri)
        patience = config.early_stopping
        stop = patience > 0 and epoch - state["best_epoch"] >= patience
        return {"val/top1": top1, "val/top5": top5, "val/top1_best": state["top1_best"]}, stop

    stage = Stage(
        name="finetune",
        engine=engine,
        order=order,
        schedule=schedule(
            config.optim, config.engine.global_batch_size, order.steps_per_epoch, config.epochs
        ),
        duration=config,
        loss_fn=loss_fn,
        clips=clips,
        loader=task.loader,
        failures_uri=storage.join(output_uri, "nonfinite"),
        state=state,
        after_epoch=after_epoch,
        num_draws=config.repeated_augmentation,
    )
    run(stage, reporter)
    gather_objects(None)  # no rank reads the best weights before rank 0 has written them
    if not storage.exists(best_uri):  # a training that was complete is not gone through again
        raise CheckpointError(
            f"{best_uri} is gone; remove the run's folder under train/, too, to train anew"
        )
    load_weights(best, best_uri)
    return best


def _check(task: FinetuneTask, train: ClipSource) -> None:
    problems = []
    micro_batch_size, _ = task.config.engine.per_rank(world()[1])
    if task.config.mixing.active and micro_batch_size % 2:
        problems.append(
            f"a worker takes {micro_batch_size} clips at once (finetune.engine.micro_batch_size"
            f" {task.config.engine.micro_batch_size} or its share of global_batch_size"
            f" {task.config.engine.global_batch_size}), an odd number; mixup and cutmix mix pairs:"
            " make it even or set finetune.mixing.probability=0"
        )
    if task.head.needs and train.motion is None:
        problems.append(f"head.name={task.head.name} needs a motion store")
    if problems:
        raise ConfigError(problems)
