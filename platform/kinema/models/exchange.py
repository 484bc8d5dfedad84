"""Weights from and for other code: VideoMAE's checkpoints, Hugging Face's layout, `torch.export`.

What `layouts` finds no counterpart for is an error and not a guess.
"""

from __future__ import annotations

import argparse
import io
import pickle
import warnings
from collections.abc import Mapping
from typing import Literal

import safetensors.torch
import torch
from pydantic import Field, PositiveInt
from safetensors import SafetensorError
from torch import Tensor, nn

from kinema import storage
from kinema.config import Config
from kinema.errors import WeightsError
from kinema.models.backbones import build_encoder
from kinema.models.classifier import Classifier, Head, PlainHead
from kinema.models.layouts import (
    Tensors,
    hugging_face_config,
    to_hugging_face,
    to_kinema,
    to_videomae,
)
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.targets import PixelTarget
from kinema.models.vit import Backbone, ViTConfig
from kinema.models.weights import encoder_of, save_weights

Layout = Literal["kinema", "videomae", "huggingface", "torch_export"]
ALLOWED_CLASSES = [argparse.Namespace]
"""What a `.pth` may hold besides tensors and plain values: the settings VideoMAE saves along."""

STATE_KEYS = ("model", "module", "state_dict")
"""Where a checkpoint may keep its tensors: VideoMAE, DeepSpeed, others."""


class ConvertConfig(Config):
    """Which weights to read, what network they are of, and how to write them."""

    source: str = Field(description="safetensors file or folder, or a .pth; path or URI")
    output: str = Field(description="file ending in .safetensors or .pt2; path or URI")
    layout: Layout = Field(
        "kinema", description="names to write, or torch_export: the network itself, as .pt2"
    )
    model: ViTConfig = ViTConfig()
    decoder: DecoderConfig = DecoderConfig()
    head: Head = Field(default=PlainHead(), discriminator="name")
    num_classes: PositiveInt | None = Field(None, description="of a classifier; null = as stored")
    min_share: float = Field(1.0, ge=0, le=1, description="least share of tensors that must match")


def convert(config: ConvertConfig) -> str:
    """Read, match and write; returns what was done in a line.

    Raises:
        WeightsError: too little matched, or the layout has no place for something.
        StorageError: a file is missing or cannot be written.
    """
    tensors = to_kinema(read_tensors(config.source))
    module = network(tensors, config)
    share = load(module, tensors, config.source, config.min_share)
    if config.layout == "kinema":
        save_weights(module, config, config.output)
    elif config.layout == "torch_export":
        export_program(module, config.output)
    else:
        export(module, config.output, config.layout)
    kind = type(module).__name__
    return f"{config.source}: {kind}, {share:.1%} of its tensors matched; wrote {config.output}"


def read_tensors(path: str) -> Tensors:
    """All tensors of a file, under its own names.

    Args:
        path: safetensors, a folder with `model.safetensors`, or `.pth`/`.pt`; path or URI.

    Raises:
        WeightsError: not a file of weights, or one that would run code when opened.
    """
    if path.endswith((".pth", ".pt", ".bin")):
        return _read_pickled(path)
    file = path if path.endswith(".safetensors") else storage.join(path, "model.safetensors")
    try:
        return safetensors.torch.load(storage.read_bytes(file))
    except SafetensorError as error:
        raise WeightsError(f"{file}: not a readable safetensors file ({error})") from error


def network(tensors: Mapping[str, Tensor], config: ConvertConfig) -> nn.Module:
    """The network that tensors under kinema's names belong to, with random weights."""
    if any(name.startswith("decoders.") for name in tensors):
        dims = PixelTarget().dims(config.model)
        head = tensors.get("decoders.0.head.weight")
        outputs = dims if head is None else [len(head)]
        return MaskedAutoencoder(config.model, config.decoder, outputs)
    if "head.weight" in tensors or config.num_classes is not None:
        stored = tensors.get("head.weight")
        count = config.num_classes or (0 if stored is None else len(stored))
        return Classifier(config.model, config.head, count)
    return build_encoder(config.model)


def load(module: nn.Module, tensors: Mapping[str, Tensor], source: str, min_share: float) -> float:
    """Load tensors under kinema's names; returns the share of the module's that was there.

    Raises:
        WeightsError: less than `min_share`, or tensors are left over or of another shape.
    """
    wanted = module.state_dict()
    if isinstance(module, Backbone):
        tensors = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
    matched = {
        name: tensor
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape == wanted[name].shape
    }
    share = len(matched) / len(wanted)
    lost = sorted(tensors.keys() - matched.keys())
    missing = sorted(wanted.keys() - matched.keys())
    if share < min_share or (min_share == 1 and lost):
        lines = [
            *(f"left over: {_shaped(name, tensors)}" for name in lost[:5]),
            *(f"missing: {_shaped(name, wanted)}" for name in missing[:5]),
        ]
        raise WeightsError(
            f"{source}: {share:.1%} of the {len(wanted)} tensors of {type(module).__name__}"
            f" matched, {len(lost)} are left over, {len(missing)} missing (min_share"
            f" {min_share:g}); is the model of another size?\n"
            + "\n".join(f"  - {line}" for line in lines)
        )
    module.load_state_dict({**wanted, **matched})
    return share


def export(module: nn.Module, path: str, layout: Literal["videomae", "huggingface"]) -> None:
    """Write weights under the names of other code; for Hugging Face with `config.json` beside.

    Args:
        module: `MaskedAutoencoder` with one decoder, or `Classifier` with the plain head.
        path: ending in `.safetensors`; Hugging Face looks for `model.safetensors`.
        layout: whose names.

    Raises:
        WeightsError: the layout has no place for some of the tensors.
    """
    if not path.endswith(".safetensors"):
        raise WeightsError(f"{path}: weights are written as .safetensors")
    foreign = to_videomae(module) if layout == "videomae" else to_hugging_face(module)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in foreign.items()}
    if layout == "huggingface":
        described = hugging_face_config(module)
        storage.write_json(path.rpartition("/")[0] + "/config.json", described)
    storage.write_bytes(path, safetensors.torch.save(tensors, metadata={"format": "pt"}))


def export_program(module: nn.Module, path: str) -> None:
    """Write an encoder or a classifier with a plain head as a `torch.export` program, any batch.

    Its input is a clip (B, 3, T, H, W), float32, normalised with ImageNet's mean and deviation.

    Raises:
        WeightsError: another network, or another ending than `.pt2`.
    """
    plain = isinstance(module, Backbone) or (
        isinstance(module, Classifier) and not module.needs_inner
    )
    if not plain:
        raise WeightsError("torch.export takes an encoder, or a classifier with the plain head")
    if not path.endswith(".pt2"):
        raise WeightsError(f"{path}: exported programs end in .pt2")
    encoder = encoder_of(module)
    assert encoder is not None
    vit = encoder.config
    clip = torch.zeros(2, 3, vit.num_frames, vit.image_size, vit.image_size)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(module.cpu().eval(), (clip,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    storage.write_bytes(path, buffer.getvalue())


def _read_pickled(path: str) -> Tensors:
    content = io.BytesIO(storage.read_bytes(path))
    try:
        with (
            torch.serialization.safe_globals(ALLOWED_CLASSES),  # type: ignore[arg-type]
            warnings.catch_warnings(),
        ):
            # Torch warns of unusual pickles before it refuses them.
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(content, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{path}: refused, it is damaged or holds more than tensors and plain values, which may"
            f" run code ({str(error).splitlines()[0]}); ask its author for safetensors"
        ) from error
    for key in STATE_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not any(isinstance(t, Tensor) for t in loaded.values()):
        known = ", ".join(STATE_KEYS)
        raise WeightsError(f"{path}: no tensors by name in it, nor under one of {known}")
    return {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


def _shaped(name: str, tensors: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(tensors[name].shape)}"
