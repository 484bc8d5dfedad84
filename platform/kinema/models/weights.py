"""Weights between stages: safetensors, and beside them a JSON that says what they are weights of.

`weights.safetensors` goes with `weights.json`, whose keys are `model`, the class; `encoder`, its
settings or null; and `config`, the config given when saving. Both may lie at any URI.
"""

from __future__ import annotations

from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kinema import storage
from kinema.config import Config
from kinema.errors import StorageError, WeightsError
from kinema.models.classifier import Classifier
from kinema.models.mae import MaskedAutoencoder
from kinema.models.vit import Backbone, ViTConfig

SUFFIX = ".safetensors"

MIN_SHARE = 0.95
"""Least share of an encoder's tensors that weights must provide, where nothing else is said."""

ARCHITECTURE = (
    "attention",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "tubelet_size",
    "patch_size",
    "image_size",
)
"""Encoder settings that weights depend on. The image size counts because the fixed positions number
tokens row by row; num_frames does not, since more slots only add numbers at the end."""


def save_weights(module: nn.Module, config: Config, path: str) -> None:
    """Write a module's weights and what they belong to; each file appears whole or not at all.

    Args:
        module: the network, on any device.
        config: what it was built from, kept for people and for reports.
        path: local path or URI ending in `.safetensors`.

    Raises:
        WeightsError: `path` has another ending.
        StorageError: it cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    encoder = encoder_of(module)
    described = {
        "model": type(module).__name__,
        "encoder": None if encoder is None else _settings(encoder.config),
        "config": config.model_dump(mode="json"),
    }
    # The description first: whoever finds weights also finds what they are.
    storage.write_json(description_path(path), described)
    storage.write_bytes(path, safetensors.torch.save(tensors))


def load_weights(module: nn.Module, path: str) -> None:
    """Load all weights of a module, from a file saved from the same kind of module.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape, or the encoder was built
            with other settings.
        StorageError: the file is missing.
    """
    saved, described, encoder = _read_tensors(path), read_description(path), encoder_of(module)
    if described["model"] != type(module).__name__:
        raise WeightsError(
            f"{path}: weights of a network of class {described['model']}, not"
            f" {type(module).__name__}"
        )
    lines = [] if encoder is None else _differences(described["encoder"], encoder.config)
    wanted = module.state_dict()
    wrong = sorted(
        name
        for name in wanted.keys() | saved.keys()
        if name not in wanted or name not in saved or wanted[name].shape != saved[name].shape
    )
    if wrong:
        share = 1 - len(wanted.keys() & set(wrong)) / len(wanted)
        raise WeightsError(
            f"{path}: {share:.1%} of the tensors of {type(module).__name__} matched;"
            f" missing, left over or of another shape: {_some(wrong)}"
            + "".join(f"\n  - {line}" for line in lines)
        )
    if lines:
        raise WeightsError(
            f"{path}: all tensors matched, but not the encoder's settings: {'; '.join(lines)}"
        )
    module.load_state_dict(saved)


def load_encoder_weights(module: nn.Module, path: str, min_share: float = MIN_SHARE) -> float:
    """Load the encoder of a saved network into another network.

    An encoder's final LayerNorm is skipped where the receiving network has none (a classifier
    normalises after pooling instead).

    Args:
        module: `Encoder`, `MaskedAutoencoder` or `Classifier`.
        path: local path or URI written by `save_weights`.
        min_share: least share of the receiving encoder's tensors that the file must provide.

    Returns:
        The share of the receiving encoder's tensors that was loaded, in [0, 1].

    Raises:
        WeightsError: the file holds no encoder, one of another architecture, or too little of it.
        StorageError: the file is missing.
    """
    encoder, matched = _matching(module, path, min_share)
    wanted = encoder.state_dict()
    encoder.load_state_dict({**wanted, **matched})
    return len(matched) / len(wanted)


def check_encoder_weights(module: nn.Module, path: str, min_share: float = MIN_SHARE) -> float:
    """As `load_encoder_weights`, with the same errors, but nothing is loaded.

    Args:
        module: may be on the `meta` device.
        path: of the weights.
        min_share: see there.
    """
    encoder, matched = _matching(module, path, min_share)
    return len(matched) / len(encoder.state_dict())


def _matching(module: nn.Module, path: str, min_share: float) -> tuple[Backbone, dict[str, Tensor]]:
    """The encoder of `module`, and what the file has for it, by the encoder's names."""
    encoder = encoder_of(module)
    if encoder is None:
        raise TypeError(f"{type(module).__name__} has no encoder")
    described = read_description(path)
    if described["encoder"] is None:
        raise WeightsError(f"{path}: holds a {described['model']}, which has no encoder")
    differences = _differences(described["encoder"], encoder.config)
    if differences:
        raise WeightsError(
            f"{path}: the encoder has another architecture"
            + "".join(f"\n  - {line}" for line in differences)
        )
    saved = _encoder_tensors(_read_tensors(path))
    wanted = encoder.state_dict()
    matched = {
        name: saved[name]
        for name in wanted
        if name in saved and saved[name].shape == wanted[name].shape
    }
    share = len(matched) / len(wanted)
    if share < min_share:
        missing = _some(sorted(wanted.keys() - matched.keys()))
        raise WeightsError(
            f"{path}: {share:.1%} of the encoder's tensors matched, at least {min_share:.1%} are"
            f" needed; missing: {missing}"
        )
    return encoder, matched


def saw_labels(path: str) -> bool:
    """Whether the weights are of a classifier, whose encoder was trained with labels."""
    return bool(read_description(path)["model"] == Classifier.__name__)


def read_description(path: str) -> dict[str, Any]:
    """What the weights at `path` belong to: keys model, encoder, config.

    Raises:
        WeightsError: the JSON beside the weights is missing or holds something else.
        StorageError: so are the weights.
    """
    beside = description_path(path)
    if not storage.exists(beside):
        if not storage.exists(path):
            raise StorageError(f"weights {path} do not exist; check the path")
        raise WeightsError(
            f"{path}: {beside} is missing, so it is unknown what the weights belong to;"
            " copy it along with the weights"
        )
    described = storage.read_json(beside)
    if not isinstance(described, dict) or not {"model", "encoder", "config"} <= described.keys():
        raise WeightsError(f"{beside}: not a description of weights (keys model, encoder, config)")
    return described


def description_path(path: str) -> str:
    """The JSON beside weights at `path`.

    Raises:
        WeightsError: `path` does not end in `.safetensors`.
    """
    if not path.endswith(SUFFIX):
        raise WeightsError(f"{path}: weights are stored as {SUFFIX}")
    return path.removesuffix(SUFFIX) + ".json"


def encoder_of(module: nn.Module) -> Backbone | None:
    """The encoder of a network, itself if it is one, None if it has none."""
    if isinstance(module, Backbone):
        return module
    if isinstance(module, MaskedAutoencoder | Classifier):
        return module.encoder
    return None


def _read_tensors(path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(storage.read_bytes(path))
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def _encoder_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under its own names; those of an encoder alone have no prefix."""
    prefix = "encoder."
    if not any(name.startswith(prefix) for name in tensors):
        return tensors
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _differences(saved: dict[str, Any], config: ViTConfig) -> list[str]:
    """Architecture settings that differ, one line each."""
    wanted = _settings(config)
    found = dict.fromkeys(ARCHITECTURE, "absent") | saved
    return [
        f"{key}: {found[key]} in the file, {wanted[key]} in the model"
        for key in ARCHITECTURE
        if found[key] != wanted[key]
    ]


def _settings(config: ViTConfig) -> dict[str, Any]:
    """All settings by name; a dump would leave out the numbers that a named size stands for."""
    return {name: getattr(config, name) for name in ViTConfig.model_fields}


def _some(names: list[str], limit: int = 5) -> str:
    """The first few names and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
