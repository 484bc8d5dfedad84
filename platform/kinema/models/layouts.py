"""Names and packing of weights: kinema's, VideoMAE's and Hugging Face's.

Only names and the packing of queries, keys and values differ, so a tensor that has no counterpart
keeps its name and is found to be left over. Normalisation constants differ a little: Hugging Face's
last norms have 1e-5 where VideoMAE and kinema have 1e-6, which shows only where activations hardly
vary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kinema.errors import WeightsError
from kinema.models.classifier import Classifier
from kinema.models.mae import Decoder, MaskedAutoencoder
from kinema.models.vit import NORM_EPS
from kinema.models.weights import encoder_of

Tensors = dict[str, Tensor]

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


def to_kinema(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors of any of the layouts under kinema's names: `encoder.`, `decoders.0.`, head."""
    without = {name: t for name, t in tensors.items() if not _POSITIONS.search(name)}
    if any(".layer." in name or "decoder_layers" in name for name in without):
        return _from_hugging_face(without)
    if any(name.startswith("decoders.") for name in without) or "norm.weight" in without:
        return without
    return _from_videomae(without)


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


def to_videomae(module: nn.Module) -> Tensors:
    """Tensors of a network under VideoMAE's names.

    Raises:
        WeightsError: the layout has no place for some of them.
    """
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


def to_hugging_face(module: nn.Module) -> Tensors:
    """Tensors of a network under Hugging Face's names, queries, keys and values apart.

    Raises:
        WeightsError: the layout has no place for some of them.
    """
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
