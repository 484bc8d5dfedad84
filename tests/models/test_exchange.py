"""Weights in and out: VideoMAE's names, Hugging Face parity both ways, and files that bite."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from kinema.errors import WeightsError
from kinema.models import exchange
from kinema.models.classifier import Classifier, MCAHead, PlainHead
from kinema.models.exchange import ConvertConfig, convert
from kinema.models.layouts import to_kinema
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.vit import Encoder, ViTConfig
from kinema.models.weights import load_encoder_weights, load_weights

VIT = ViTConfig(
    size="custom", embed_dim=32, depth=3, num_heads=4, image_size=32, num_frames=4, patch_size=8
)
DECODER = DecoderConfig(size="custom", embed_dim=16, depth=2, num_heads=2)
MODEL = {"size": "custom", **{k: getattr(VIT, k) for k in ("embed_dim", "depth", "num_heads")}}


def drawn(module: nn.Module) -> Any:
    """Weights far from their start, biases included, so that nothing is hidden by zeros."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def autoencoder() -> MaskedAutoencoder:
    return drawn(MaskedAutoencoder(VIT, DECODER, [384]))


def classifier() -> Classifier:
    return drawn(Classifier(VIT, PlainHead(), 5))


def config(source: Path, output: Path, **settings: Any) -> ConvertConfig:
    return ConvertConfig(
        source=str(source), output=str(output), model=VIT, decoder=DECODER, **settings
    )


def clip(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def mask() -> torch.Tensor:
    hidden = torch.zeros(2, 32, dtype=torch.bool)
    hidden[0, :20], hidden[1, 12:] = True, True
    return hidden


@pytest.mark.parametrize("make", [autoencoder, classifier])
@pytest.mark.parametrize("layout", ["videomae", "huggingface"])
def test_what_goes_out_comes_back(make, layout, tmp_path: Path) -> None:
    module = make()
    path = str(tmp_path / "model.safetensors")
    exchange.export(module, path, layout)
    tensors = to_kinema(exchange.read_tensors(path))
    again = exchange.network(tensors, config(tmp_path, tmp_path))
    assert type(again) is type(module)
    assert exchange.load(again, tensors, path, 1.0) == 1
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_videomaes_names_are_the_known_ones(tmp_path: Path) -> None:
    names = {}
    for kind, module in (("pretrained", autoencoder()), ("finetuned", classifier())):
        path = tmp_path / f"{kind}.safetensors"
        exchange.export(module, str(path), "videomae")
        names[kind] = set(safetensors.torch.load_file(path))
    assert names["pretrained"] >= {
        "mask_token",
        "encoder_to_decoder.weight",
        "encoder.patch_embed.proj.weight",
        "encoder.blocks.0.attn.q_bias",
        "encoder.blocks.2.attn.qkv.weight",
        "encoder.norm.weight",
        "decoder.blocks.1.mlp.fc2.bias",
        "decoder.head.weight",
    }
    assert names["finetuned"] >= {"blocks.0.norm1.weight", "fc_norm.bias", "head.weight"}


@pytest.mark.parametrize("key", ["model", "module", None])
def test_checkpoints_of_videomae_are_read(key: str | None, tmp_path: Path) -> None:
    exchange.export(autoencoder(), str(tmp_path / "a.safetensors"), "videomae")
    tensors: dict[str, Any] = safetensors.torch.load_file(tmp_path / "a.safetensors")
    tensors["pos_embed"] = torch.zeros(1, 32, 32)
    saved = tensors if key is None else {key: tensors, "args": argparse.Namespace(lr=1), "epoch": 3}
    torch.save(saved, tmp_path / "checkpoint.pth")
    output = tmp_path / "out.safetensors"
    said = convert(config(tmp_path / "checkpoint.pth", output))
    assert "MaskedAutoencoder, 100.0% of its tensors matched" in said
    loaded = MaskedAutoencoder(VIT, DECODER, [384])
    load_weights(loaded, str(output))
    torch.testing.assert_close(loaded.eval()(clip(), mask()), autoencoder()(clip(), mask()))
    encoder = Encoder(VIT)
    assert load_encoder_weights(encoder, str(output)) == 1


class Bite:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_unrun(how: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "bitten", tmp_path / "evil.pth"
    content = {"model": {"mask_token": torch.zeros(1)}, "args": Bite(trap)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError, match=r"evil\.pth: refused"):
        exchange.read_tensors(str(path))
    assert not trap.exists()
    pickle.loads(pickle.dumps(content))  # the trap does work
    assert trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"nonsense", "refused"), (pickle.dumps([1, 2]), "no tensors|refused")],
)
def test_files_that_are_no_checkpoints_are_named(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        exchange.read_tensors(str(path))


def test_too_little_that_matches_is_an_error_with_its_share(tmp_path: Path) -> None:
    exchange.export(classifier(), str(tmp_path / "c.safetensors"), "videomae")
    wider = ConvertConfig(
        source=str(tmp_path / "c.safetensors"),
        output=str(tmp_path / "out.safetensors"),
        model=VIT.model_copy(update={"embed_dim": 64, "size": "custom"}),
    )
    with pytest.raises(WeightsError, match=r"of the .* tensors of Classifier matched") as caught:
        convert(wider)
    assert "missing: encoder.blocks.0.attn.proj.bias (64,)" in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_part_of_the_tensors_is_enough_if_one_says_so(tmp_path: Path) -> None:
    exchange.export(classifier(), str(tmp_path / "c.safetensors"), "videomae")
    tensors = safetensors.torch.load_file(tmp_path / "c.safetensors")
    del tensors["head.bias"], tensors["head.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "part.safetensors")
    wanted = {"num_classes": 7, "min_share": 0.9}
    said = convert(config(tmp_path / "part.safetensors", tmp_path / "o.safetensors", **wanted))
    assert "Classifier, 96." in said or "Classifier, 95." in said
    with pytest.raises(WeightsError, match=r"missing: head\.bias \(7,\)"):
        convert(config(tmp_path / "part.safetensors", tmp_path / "o.safetensors", num_classes=7))


@pytest.mark.parametrize("make", [classifier, lambda: drawn(Encoder(VIT))])
def test_an_exported_program_computes_the_same(make, tmp_path: Path) -> None:
    module = make()
    path = tmp_path / "model.pt2"
    exchange.export_program(module, str(path))
    program = torch.export.load(path).module()
    for batch in (1, 3):
        torch.testing.assert_close(program(clip(batch)), module(clip(batch)))


def test_what_others_have_no_place_for_is_not_exported(tmp_path: Path) -> None:
    mca = Classifier(VIT, MCAHead(heads=2), 5)
    with pytest.raises(WeightsError, match="plain head"):
        exchange.export(mca, str(tmp_path / "m.safetensors"), "huggingface")
    with pytest.raises(WeightsError, match="plain head"):
        exchange.export_program(mca, str(tmp_path / "m.pt2"))
    two = MaskedAutoencoder(VIT, DECODER.model_copy(update={"separate": True}), [10, 20])
    with pytest.raises(WeightsError, match="one decoder"):
        exchange.export(two, str(tmp_path / "m.safetensors"), "videomae")
    with pytest.raises(WeightsError, match=r"m\.bin: weights are written as \.safetensors"):
        exchange.export(classifier(), str(tmp_path / "m.bin"), "videomae")


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    # Here and not on top: the import takes seconds.
    import transformers

    return transformers


def test_hugging_face_computes_what_kinema_computes(hugging_face: Any, tmp_path: Path) -> None:
    """Both networks, ours to theirs: `from_pretrained` on what was exported."""
    frames = clip().transpose(1, 2)
    exchange.export(autoencoder(), str(tmp_path / "a/model.safetensors"), "huggingface")
    theirs = hugging_face.VideoMAEForPreTraining.from_pretrained(tmp_path / "a").eval()
    logits = theirs.videomae(frames, bool_masked_pos=mask()).last_hidden_state
    ours = autoencoder()
    torch.testing.assert_close(ours.encoder(clip(), ~mask()), logits, atol=1e-5, rtol=1e-5)
    predicted = theirs(frames, bool_masked_pos=mask()).logits
    torch.testing.assert_close(ours(clip(), mask()), predicted, atol=1e-5, rtol=1e-5)

    exchange.export(classifier(), str(tmp_path / "c/model.safetensors"), "huggingface")
    theirs = hugging_face.VideoMAEForVideoClassification.from_pretrained(tmp_path / "c").eval()
    torch.testing.assert_close(classifier()(clip()), theirs(frames).logits, atol=1e-5, rtol=1e-5)


def test_kinema_computes_what_hugging_face_computes(hugging_face: Any, tmp_path: Path) -> None:
    """Both networks, theirs to ours: folders written by `save_pretrained`."""
    frames = clip().transpose(1, 2)
    settings = exchange.hugging_face_config(autoencoder())
    made = drawn(hugging_face.VideoMAEForPreTraining(hugging_face.VideoMAEConfig(**settings)))
    made.save_pretrained(tmp_path / "a")
    convert(config(tmp_path / "a", tmp_path / "a.safetensors"))
    ours = MaskedAutoencoder(VIT, DECODER, [384]).eval()
    load_weights(ours, str(tmp_path / "a.safetensors"))
    predicted = made(frames, bool_masked_pos=mask()).logits
    torch.testing.assert_close(ours(clip(), mask()), predicted, atol=1e-5, rtol=1e-5)

    settings = exchange.hugging_face_config(classifier())
    made = drawn(
        hugging_face.VideoMAEForVideoClassification(hugging_face.VideoMAEConfig(**settings))
    )
    made.save_pretrained(tmp_path / "c")
    convert(config(tmp_path / "c", tmp_path / "c.safetensors"))
    classes = Classifier(VIT, PlainHead(), 5).eval()
    load_weights(classes, str(tmp_path / "c.safetensors"))
    torch.testing.assert_close(classes(clip()), made(frames).logits, atol=1e-5, rtol=1e-5)
