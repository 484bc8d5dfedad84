"""Masked pretraining: hide tokens, reconstruct them, keep the encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kinema import storage
from kinema.errors import ConfigError
from kinema.masking.masks import Mask
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.pixels import normalise
from kinema.models.targets import Target
from kinema.models.vit import ViTConfig
from kinema.models.weights import save_weights
from kinema.randomness import keyed_rng
from kinema.training.batch import Batch, collate
from kinema.training.data import ClipSource, LoaderConfig, TrainingClips, make_loader
from kinema.training.engine import Engine, EngineConfig, gather_objects
from kinema.training.held_out import held_out_loss
from kinema.training.loop import Duration, Reporter, Stage, run
from kinema.training.optim import OptimConfig, schedule
from kinema.training.order import SampleKey, StepOrder
from kinema.video.augment import Augment, CentreCrop, MultiScaleCrop
from kinema.video.manifest import Entry
from kinema.video.sampling import DenseSampling, Sampling

ENCODER_FILE = "encoder.safetensors"
SUMMARY_FILE = "summary.json"


class PretrainConfig(Duration):
    """Recipe of the pretraining stage (defaults: VideoMAE on Something-Something V2)."""

    engine: EngineConfig = EngineConfig(global_batch_size=1024, micro_batch_size=32)
    optim: OptimConfig = OptimConfig()
    sampling: Sampling = Field(default=DenseSampling(stride=2), discriminator="name")
    augment: Augment = Field(default=MultiScaleCrop(), discriminator="name")
    repeated_augmentation: PositiveInt = Field(1, description="draws of each clip per step")
    decoder: DecoderConfig = DecoderConfig()
    held_out_clips: NonNegativeInt = Field(
        256, description="validation clips whose reconstruction is tested at the end; 0 = none"
    )
    clip_share: float = Field(
        1.0, gt=0, le=1, description="share of the training clips that is seen (MME, Table 10)"
    )
    shuffle_frames: bool = Field(
        False, description="sampled frames in random order (MME, section 4.2.1)"
    )


def keep_clips(entries: Sequence[Entry], share: float, seed: int) -> list[Entry]:
    """A fixed `share` of the clips, at least one; larger shares contain the smaller ones."""
    order = keyed_rng(seed, "clips").permutation(len(entries))
    kept = sorted(order[: max(1, round(share * len(entries)))].tolist())
    return [entries[index] for index in kept]


@dataclass(frozen=True)
class PretrainTask:
    """One pretraining, complete: what is hidden, what is predicted, of which clips."""

    config: PretrainConfig
    model: ViTConfig
    mask: Mask
    target: Target
    loader: LoaderConfig
    seed: int


def pretrain(
    task: PretrainTask,
    source: ClipSource,
    held_out: ClipSource,
    output_uri: str,
    reporter: Reporter,
) -> None:
    """Train a masked autoencoder and write its encoder to `<output_uri>/encoder.safetensors`.

    The means of the last epoch are written beside it, with the loss on `held_out`, clips that
    `source` does not hold; it may be empty. They are read once before the training, too.

    Collective: every rank calls it. The encoder file appears only when the stage is complete, so
    its presence is what tells a later run to skip the stage.
    """
    config = task.config
    for part in (task.mask, task.target):
        if part.needs - {"vectors"} and source.motion is None:
            raise ConfigError([f"{part.name} needs a motion store"])
    torch.manual_seed(task.seed)
    model = MaskedAutoencoder(task.model, config.decoder, task.target.dims(task.model))
    engine = Engine(model, task.model.depth, config.engine, config.optim)
    order = StepOrder(len(source.entries), config.engine.global_batch_size, task.seed, "pretrain")
    clips = TrainingClips(
        source,
        config.augment,
        task.seed,
        mask=task.mask,
        requests=task.target.requests(task.model),
        shuffle=config.shuffle_frames,
    )

    def loss_fn(module: nn.Module, batch: Batch) -> Tensor:
        assert batch.mask is not None
        inputs = batch.inputs()
        prediction = module(normalise(inputs.clip).to(engine.dtype), batch.mask)
        wanted = task.target.compute(inputs, batch.mask, task.model)
        return task.target.loss(prediction.float(), wanted)

    stage = Stage(
        name="pretrain",
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
        num_draws=config.repeated_augmentation,
    )
    tests = _held_out(task, held_out)
    if engine.rank == 0 and tests is not None:
        for _ in tests():
            pass  # a clip that cannot be read is told before weeks of training
    run(stage, reporter)
    weights = engine.full_weights()
    if engine.rank == 0:
        trained = MaskedAutoencoder(task.model, config.decoder, task.target.dims(task.model))
        trained.load_state_dict(weights)
        trained.to(engine.device).eval()
        tested = {}
        if tests is not None:
            tested = held_out_loss(trained, tests, task.target, task.model, engine.device)
            reporter.log(tested, stage.total_steps)
        summary = stage.state["last_epoch"] | tested
        storage.write_json(storage.join(output_uri, SUMMARY_FILE), summary)
        save_weights(trained.encoder, task.model, storage.join(output_uri, ENCODER_FILE))
    gather_objects(None)  # no rank goes on before the encoder is written


def _held_out(task: PretrainTask, held_out: ClipSource) -> Callable[[], Iterator[Batch]] | None:
    """The first of the held-out clips, centred, each with one mask of its own; None without any."""
    count = min(task.config.held_out_clips, len(held_out.entries))
    if count == 0:
        return None
    clips = TrainingClips(
        held_out,
        CentreCrop(),
        task.seed,
        mask=task.mask,
        requests=task.target.requests(task.model),
        shuffle=task.config.shuffle_frames,
    )
    size = task.config.engine.micro_batch_size
    keys = [SampleKey(0, index, 0) for index in range(count)]
    parts = [keys[at : at + size] for at in range(0, count, size)]

    def batches() -> Iterator[Batch]:
        return iter(make_loader(clips, parts, task.loader, collate))

    return batches
