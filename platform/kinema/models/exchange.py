"""Weights from and for other code: VideoMAE's checkpoints, Hugging Face's layout, `torch.export`.

Only names and the packing of queries, keys and values differ, so a tensor that has no counterpart
is an error and not a guess. Normalisation constants differ a little: Hugging Face's last norms have
1e-5 where VideoMAE and kinema have 1e-6, which shows only where activations hardly vary.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

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
from kinema.models.mae import Decoder, DecoderConfig, MaskedAutoencoder
from kinema.models.targets import PixelTarget
from kinema.models.vit import NORM_EPS, Backbone, ViTConfig
from kinema.models.weights import encoder_of, save_weights

Layout = Literal["kinema", "videomae", "huggingface", "torch_export"]
Tensors = dict[str, Tensor]

ALLOWED_CLASSES = [argparse.Namespace]
"""What a `.pth` may hold besides tensors and plain values: the settings VideoMAE saves along."""

STATE_KEYS = ("model", "module", "state_dict")
"""Where a checkpoint may keep its tensors: VideoMAE, DeepSpeed, others."""

_POSITIONS = re.compile(r"(^|\.)(pos_embed|position_embeddings)$")
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Parts of a block here and at Hugging Face."""
_QKV = ("query", "key", "value")
_HUGGING_FACE_BLOCK = re.compile(r"(videomae\.encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)")


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


def to_kinema(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors of any of the layouts under kinema's names: `encoder.`, `decoders.0.`, head."""
    without = {name: t for name, t in tensors.items() if not _POSITIONS.search(name)}
    if any(".layer." in name or "decoder_layers" in name for name in without):
        return _from_hugging_face(without)
    if any(name.startswith("decoders.") for name in without) or "norm.weight" in without:
        return without
    return _from_videomae(without)


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
    foreign = _to_videomae(module) if layout == "videomae" else _to_hugging_face(module)
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


def hugging_face_config(module: nn.Module) -> dict[str, Any]:
    """The `config.json` with which `from_pretrained` rebuilds the network."""
    encoder = encoder_of(module)
    assert encoder is not None
    vit = encoder.config
    described: dict[str, Any] = {
        "model_type": "videomae",
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "num_channels": 3,
        "num_frames": vit.num_frames,
        "tubelet_size": vit.tubelet_size,
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "intermediate_size": int(vit.embed_dim * vit.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": True,
        "use_mean_pooling": isinstance(module, Classifier),
    }
    if isinstance(module, Classifier):
        labels = {str(i): f"LABEL_{i}" for i in range(module.head.out_features)}
        architecture = "VideoMAEForVideoClassification"
        return {**described, "architectures": [architecture], "id2label": labels}
    assert isinstance(module, MaskedAutoencoder)
    decoder = module.decoders[0]
    assert isinstance(decoder, Decoder)
    size = decoder.config
    return {
        **described,
        "architectures": ["VideoMAEForPreTraining"],
        "decoder_hidden_size": size.embed_dim,
        "decoder_num_hidden_layers": size.depth,
        "decoder_num_attention_heads": size.num_heads,
        "decoder_intermediate_size": int(size.embed_dim * size.mlp_ratio),
    }


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


def _from_videomae(tensors: Mapping[str, Tensor]) -> Tensors:
    """VideoMAE's names: a pretrained network has `encoder.` and `decoder.`, a finetuned neither."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(("patch_embed.", "blocks.")):
            renamed[f"encoder.{name}"] = tensor
        elif name.startswith("decoder."):
            renamed[f"decoders.0.{name.removeprefix('decoder.')}"] = tensor
        elif name == "encoder_to_decoder.weight":
            renamed["decoders.0.embed.weight"] = tensor
        elif name == "mask_token":
            renamed["decoders.0.mask_token"] = tensor
        elif name.startswith("fc_norm."):
            renamed[f"norm.{name.removeprefix('fc_norm.')}"] = tensor
        else:
            renamed[name] = tensor
    return renamed


def _to_videomae(module: nn.Module) -> Tensors:
    tensors = _exchangeable(module)
    if isinstance(module, Classifier):
        names = {
            name: re.sub(r"^norm\.", "fc_norm.", name).removeprefix("encoder.") for name in tensors
        }
    else:
        special = {
            "decoders.0.embed.weight": "encoder_to_decoder.weight",
            "decoders.0.mask_token": "mask_token",
        }
        names = {
            name: special.get(name, re.sub(r"^decoders\.0\.", "decoder.", name)) for name in tensors
        }
    return {names[name]: tensor for name, tensor in tensors.items()}


def _from_hugging_face(tensors: Mapping[str, Tensor]) -> Tensors:
    renamed: Tensors = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _HUGGING_FACE_BLOCK.fullmatch(name)
        if found is None:
            renamed[_outside_blocks(name)] = tensor
            continue
        stack, number, part = found.groups()
        block = f"{'encoder' if stack.startswith('videomae') else 'decoders.0'}.blocks.{number}."
        of_attention = re.fullmatch(r"attention\.attention\.(.+)", part)
        if of_attention is not None:
            packed.setdefault(block, {})[of_attention[1]] = tensor
            continue
        for here, there in _BLOCK.items():
            if part.startswith(f"{there}."):
                renamed[block + here + part.removeprefix(there)] = tensor
                break
        else:
            renamed[name] = tensor  # has no counterpart: it will be left over
    for block, parts in packed.items():
        if all(f"{which}.weight" in parts for which in _QKV):
            weight = torch.cat([parts.pop(f"{which}.weight") for which in _QKV])
            renamed[f"{block}attn.qkv.weight"] = weight
        # Older checkpoints keep the two biases beside the layers.
        for bias, which in (("q_bias", "query.bias"), ("v_bias", "value.bias")):
            if bias in parts or which in parts:
                renamed[f"{block}attn.{bias}"] = parts.pop(bias if bias in parts else which)
        renamed |= {f"{block}attention.attention.{name}": t for name, t in parts.items()}
    return renamed


_OUTSIDE = {
    "videomae.embeddings.patch_embeddings.projection.": "encoder.patch_embed.proj.",
    "videomae.layernorm.": "encoder.norm.",
    "decoder.norm.": "decoders.0.norm.",
    "decoder.head.": "decoders.0.head.",
    "encoder_to_decoder.": "decoders.0.embed.",
    "fc_norm.": "norm.",
    "classifier.": "head.",
}
"""Hugging Face's names outside of blocks -> kinema's."""


def _outside_blocks(name: str) -> str:
    if name == "mask_token":
        return "decoders.0.mask_token"
    for there, here in _OUTSIDE.items():
        if name.startswith(there):
            return here + name.removeprefix(there)
    return name


def _to_hugging_face(module: nn.Module) -> Tensors:
    renamed: Tensors = {}
    for name, tensor in _exchangeable(module).items():
        found = re.fullmatch(r"(encoder|decoders\.0)\.blocks\.(\d+)\.(.+)", name)
        if found is None:
            renamed[_outside_blocks_back(name)] = tensor
            continue
        stack, number, part = found.groups()
        layers = "videomae.encoder.layer" if stack == "encoder" else "decoder.decoder_layers"
        block = f"{layers}.{number}."
        if part == "attn.qkv.weight":
            for which, rows in zip(_QKV, tensor.chunk(3), strict=True):
                renamed[f"{block}attention.attention.{which}.weight"] = rows.clone()
        elif part in ("attn.q_bias", "attn.v_bias"):
            which = "query" if part == "attn.q_bias" else "value"
            renamed[f"{block}attention.attention.{which}.bias"] = tensor
        else:
            here, _, kind = part.rpartition(".")
            renamed[f"{block}{_BLOCK[here]}.{kind}"] = tensor
    return renamed


def _outside_blocks_back(name: str) -> str:
    if name == "decoders.0.mask_token":
        return "mask_token"
    for there, here in _OUTSIDE.items():
        if name.startswith(here):
            return there + name.removeprefix(here)
    raise WeightsError(f"{name} has no place in Hugging Face's layout")


def _exchangeable(module: nn.Module) -> Tensors:
    """The tensors of a network that other code knows."""
    encoder = encoder_of(module)
    if encoder is not None and encoder.config.attention != "joint":
        raise WeightsError(
            f"attention {encoder.config.attention} has no place in other code's layout"
        )
    if isinstance(module, MaskedAutoencoder) and len(module.decoders) == 1:
        return module.state_dict()
    if isinstance(module, Classifier) and not list(module.pooling.parameters()):
        if module.needs_inner:
            raise WeightsError(f"the {module.head_name} head has no place in other code's layout")
        return module.state_dict()
    raise WeightsError(
        "only an autoencoder with one decoder, or a classifier with the plain head, can be written"
        " in other code's layout"
    )


def _shaped(name: str, tensors: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(tensors[name].shape)}"
