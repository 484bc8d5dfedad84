"""What a frozen network says of a video: class logits, or features for probes. Knows no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from einops import reduce
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kinema.config import Config
from kinema.evaluation.multiview import EvaluationConfig
from kinema.models.backbones import build_encoder
from kinema.models.classifier import Classifier, Head, PlainHead
from kinema.models.pixels import normalise, unit_range
from kinema.models.vit import ViTConfig
from kinema.models.weights import load_encoder_weights, load_weights
from kinema.motion.clip import Reduce
from kinema.motion.store import MotionStore
from kinema.training.batch import collate
from kinema.training.data import ClipSource, EvaluationClips
from kinema.training.frames import HELD_BYTES, FrameCache
from kinema.training.order import SampleKey
from kinema.video.manifest import Entry
from kinema.video.sampling import DenseSampling, Sampling

READOUT_VERSION = 1
"""Raised by hand when the numbers that come out change."""

Output = Literal["logits", "mean", "tokens"]


class ReadoutConfig(Config):
    """A frozen network, and what is asked of it.

    `logits` (classes,) are a classifier's; `mean` (embed_dim,) is the mean over the encoder's
    normalised tokens, `tokens` (tokens, embed_dim) are all of them.
    """

    output: Output = "mean"
    weights: str | None = Field(None, description="safetensors; null = random, drawn from seed")
    seed: NonNegativeInt = 0
    model: ViTConfig = ViTConfig()
    head: Head = Field(default=PlainHead(), discriminator="name")
    num_classes: PositiveInt | None = Field(None, description="of a classifier's head")
    sampling: Sampling = Field(default=DenseSampling(), discriminator="name")
    reduce: Reduce = "clip"
    views: EvaluationConfig = EvaluationConfig()
    side: PositiveInt | None = Field(
        None, description="for tokens: average those of a slot to side x side; null = all"
    )


class Reader:
    """A network on a device, asked about one video after the other.

    Args:
        config: of the network.
        store: where its head's motion boxes come from; None where it reads none.
        ids: videos that will be asked about.
        device: to compute on.

    Raises:
        WeightsError: the weights are of another network.
        StoreError: the motion store lacks some of `ids`.
    """

    def __init__(
        self,
        config: ReadoutConfig,
        store: MotionStore | None,
        ids: Sequence[str],
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self._motion = None if store is None else store.open(ids)
        self._network = build_network(config).to(device).eval()

    @torch.inference_mode()
    def read(self, entry: Entry) -> NDArray[np.float32]:
        """What the network says of each view of a video: (views, ...).

        Raises:
            VideoError: the video cannot be read, or the extraction failed on it.
        """
        config = self.config
        clips = EvaluationClips(self._source(entry), config.views.num_clips, config.views.num_crops)
        parts = [self._ask(clips, views) for views in _chunks(clips.num_views, config)]
        return np.concatenate(parts)

    def _ask(self, clips: EvaluationClips, views: range) -> NDArray[np.float32]:
        config = self.config
        batch = collate([clips[SampleKey(0, 0, view)] for view in views]).to(self.device)
        clip = normalise(unit_range(batch.clip))
        if config.output == "logits":
            said: Tensor = self._network(clip, batch.inner)
        else:
            said = self._network(clip)
            if config.output == "mean":
                said = said.mean(dim=1)
            elif config.side is not None:
                said = pool_slots(said, token_grid(config.model), config.side)
        return np.asarray(said.float().cpu().numpy())

    def _source(self, entry: Entry) -> ClipSource:
        config = self.config
        return ClipSource(
            [entry],
            config.model,
            config.sampling,
            config.reduce,
            self._motion,
            FrameCache(HELD_BYTES),
        )


def token_grid(vit: ViTConfig) -> tuple[int, int, int]:
    """Slots, rows and columns of the tokens that an encoder gives."""
    grid = vit.grid
    return grid.slots, grid.height // vit.pool, grid.width // vit.pool


def pool_slots(tokens: Tensor, grid: tuple[int, int, int], side: int) -> Tensor:
    """Average the tokens of every slot: (B, N, D) -> (B, slots * side^2, D)."""
    slots, rows, columns = grid
    return reduce(
        tokens,
        "b (t h p w q) d -> b (t h w) d",
        "mean",
        t=slots,
        h=side,
        p=rows // side,
        w=side,
        q=columns // side,
    )


def _chunks(num_views: int, config: ReadoutConfig) -> Iterator[range]:
    size = config.views.micro_batch_size
    return (range(at, min(at + size, num_views)) for at in range(0, num_views, size))


def build_network(config: ReadoutConfig) -> nn.Module:
    """The network that is asked, on the CPU.

    Raises:
        WeightsError: the weights are of another network.
        StorageError: they are missing.
    """
    torch.manual_seed(config.seed)
    if config.output != "logits":
        encoder = build_encoder(config.model)
        if config.weights is not None:
            load_encoder_weights(encoder, config.weights)
        return encoder
    if config.num_classes is None or config.weights is None:
        raise ValueError("logits are a trained classifier's: give weights and num_classes")
    classifier = Classifier(config.model, config.head, config.num_classes)
    load_weights(classifier, config.weights)
    return classifier


@dataclass(frozen=True, eq=False)
class Question:
    """A network, the videos it will be asked about, and the motion store that its head reads."""

    readout: ReadoutConfig
    ids: Sequence[str]
    store: MotionStore | None = None


def ask(entry: Entry, question: Question) -> NDArray[np.float32]:
    """What a network says of a video; the network is loaded once per process and question."""
    return _reader(question).read(entry)


@lru_cache(maxsize=1)
def _reader(question: Question) -> Reader:
    if torch.cuda.is_available():
        device = torch.device("cuda")
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)  # an actor has one core; and sums depend on the number of threads
    return Reader(question.readout, question.store, question.ids, device)
