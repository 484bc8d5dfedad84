"""Weights between stages: round trips, transfer of the encoder, and refusals that say why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kinema.errors import StorageError, WeightsError
from kinema.models.classifier import Classifier, MCAHead, PlainHead
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.vit import Encoder, ViTConfig
from kinema.models.weights import (
    check_encoder_weights,
    load_encoder_weights,
    load_weights,
    read_description,
    save_weights,
    saw_labels,
)

VIT = ViTConfig(image_size=16, patch_size=4, num_frames=4, embed_dim=24, depth=3, num_heads=2)
DECODER = DecoderConfig(embed_dim=12, depth=1, num_heads=2)


def autoencoder(vit: ViTConfig = VIT) -> MaskedAutoencoder:
    return MaskedAutoencoder(vit, DECODER, [96])


def altered(**settings: object) -> ViTConfig:
    return ViTConfig.model_validate({**VIT.model_dump(), **settings})


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, MaskedAutoencoder]:
    torch.manual_seed(0)
    model = autoencoder()
    path = str(tmp_path / "run" / "weights.safetensors")
    save_weights(model, DECODER, path)
    return path, model


def test_all_weights_come_back_bit_for_bit(saved) -> None:
    path, model = saved
    other = autoencoder()
    load_weights(other, path)
    clip, mask = torch.rand(1, 3, 4, 16, 16), torch.arange(32)[None] < 20
    assert torch.equal(model(clip, mask), other(clip, mask))


def test_description_lies_beside_the_weights(saved) -> None:
    path, _ = saved
    assert Path(path).with_suffix(".json").is_file()
    described = read_description(path)
    assert described["model"] == "MaskedAutoencoder"
    assert ViTConfig.model_validate(described["encoder"]) == VIT
    assert DecoderConfig.model_validate(described["config"]) == DECODER


def test_description_spells_out_a_named_size(tmp_path: Path) -> None:
    path = str(tmp_path / "small.safetensors")
    small = ViTConfig(size="vit_s", image_size=16, patch_size=4, num_frames=2)
    save_weights(Encoder(small), small, path)
    assert read_description(path)["encoder"]["embed_dim"] == 384


def test_classifier_gets_the_whole_pretrained_encoder(saved) -> None:
    path, model = saved
    classifier = Classifier(VIT, MCAHead(), 5)
    head = classifier.head.weight.clone()
    assert load_encoder_weights(classifier, path) == 1.0
    for name, tensor in classifier.encoder.state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[name]), name
    assert torch.equal(classifier.head.weight, head)


@pytest.mark.parametrize("cls", [Encoder, MaskedAutoencoder])
def test_pretraining_can_go_on_from_a_saved_encoder(saved, cls) -> None:
    path, model = saved
    other = Encoder(VIT) if cls is Encoder else autoencoder()
    assert load_encoder_weights(other, path) == 1.0
    encoder = other if isinstance(other, Encoder) else other.encoder
    clip = torch.rand(1, 3, 4, 16, 16)
    assert torch.equal(encoder(clip), model.encoder(clip))


def test_a_bare_encoder_can_be_saved(tmp_path: Path) -> None:
    path = str(tmp_path / "encoder.safetensors")
    encoder = Encoder(VIT)
    save_weights(encoder, VIT, path)
    classifier = Classifier(VIT, PlainHead(), 5)
    assert load_encoder_weights(classifier, path) == 1.0
    assert torch.equal(
        classifier.encoder.blocks[2].mlp.fc2.weight, encoder.blocks[2].mlp.fc2.weight
    )


def test_a_classifier_lacks_the_final_norm_an_autoencoder_has(tmp_path: Path) -> None:
    path = str(tmp_path / "classifier.safetensors")
    save_weights(Classifier(VIT, PlainHead(), 5), VIT, path)
    share = 1 - 2 / len(Encoder(VIT).state_dict())
    assert load_encoder_weights(autoencoder(), path, min_share=0.9) == pytest.approx(share)
    with pytest.raises(WeightsError, match=r"missing: norm\.bias, norm\.weight"):
        load_encoder_weights(autoencoder(), path, min_share=1.0)


def test_weights_are_checked_without_being_loaded(tmp_path: Path) -> None:
    encoder, classifier = str(tmp_path / "e.safetensors"), str(tmp_path / "c.safetensors")
    save_weights(Encoder(VIT), VIT, encoder)
    save_weights(Classifier(VIT, PlainHead(), 5), VIT, classifier)
    with torch.device("meta"):
        whole, part = Encoder(VIT), Classifier(VIT, PlainHead(), 2)
    assert check_encoder_weights(whole, encoder) == check_encoder_weights(part, classifier) == 1.0
    assert check_encoder_weights(whole, classifier, 0.9) == 1 - 2 / len(whole.state_dict())
    with pytest.raises(WeightsError, match=r"missing: norm\.bias, norm\.weight"):
        check_encoder_weights(whole, classifier, 1.0)
    assert saw_labels(classifier)
    assert not saw_labels(encoder)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"embed_dim": 48}, "embed_dim: 24 in the file, 48 in the model"),
        ({"depth": 2}, "depth: 3 in the file, 2 in the model"),
        ({"num_heads": 4}, "num_heads: 2 in the file, 4 in the model"),
        ({"tubelet_size": 4}, "tubelet_size: 2 in the file, 4 in the model"),
        ({"image_size": 32}, "image_size: 16 in the file, 32 in the model"),
    ],
)
def test_another_architecture_is_refused_even_when_shapes_fit(saved, settings, line) -> None:
    path, _ = saved
    with pytest.raises(WeightsError, match=line) as caught:
        load_encoder_weights(Classifier(altered(**settings), PlainHead(), 5), path)
    assert "the encoder has another architecture" in str(caught.value)
    assert "matched" not in str(caught.value)  # so many tensors may, and mean nothing


def test_a_refused_file_changes_nothing(saved) -> None:
    path, _ = saved
    classifier = Classifier(altered(depth=4), PlainHead(), 5)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    with pytest.raises(WeightsError):
        load_encoder_weights(classifier, path)
    assert all(torch.equal(before[name], t) for name, t in classifier.state_dict().items())


@pytest.mark.parametrize("settings", [{"num_frames": 8}, {"drop_path": 0.1}])
def test_settings_that_weights_do_not_depend_on_may_differ(saved, settings) -> None:
    path, _ = saved
    assert load_encoder_weights(Classifier(altered(**settings), PlainHead(), 5), path) == 1.0


def test_share_is_reported_when_tensors_are_missing(saved) -> None:
    path, _ = saved
    tensors = safetensors.torch.load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if ".blocks.1." not in name}
    safetensors.torch.save_file(kept, path)
    total = len(Classifier(VIT, PlainHead(), 5).encoder.state_dict())
    with pytest.raises(WeightsError, match=f"{1 - 13 / total:.1%} of the encoder's tensors"):
        load_encoder_weights(Classifier(VIT, PlainHead(), 5), path)


def test_loading_everything_refuses_another_model(saved) -> None:
    path, _ = saved
    with pytest.raises(WeightsError, match="of a network of class MaskedAutoencoder, not Cl"):
        load_weights(Classifier(VIT, PlainHead(), 5), path)


def test_loading_everything_refuses_another_number_of_heads(saved) -> None:
    path, _ = saved
    with pytest.raises(WeightsError, match="num_heads: 2 in the file, 4 in the model"):
        load_weights(autoencoder(altered(num_heads=4)), path)


def test_missing_description_is_explained(saved) -> None:
    path, _ = saved
    Path(path).with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match="copy it along with the weights"):
        load_encoder_weights(autoencoder(), path)


@pytest.mark.parametrize("content", ["[]", json.dumps({"model": "Encoder"})])
def test_a_foreign_description_is_refused(saved, content) -> None:
    path, _ = saved
    Path(path).with_suffix(".json").write_text(content)
    with pytest.raises(WeightsError, match="not a description of weights"):
        read_description(path)


def test_damaged_weights_are_refused(saved) -> None:
    path, _ = saved
    Path(path).write_bytes(Path(path).read_bytes()[:100])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_encoder_weights(autoencoder(), path)


def test_missing_weights_are_a_storage_error(saved) -> None:
    path, _ = saved
    Path(path).unlink()
    with pytest.raises(StorageError):
        load_weights(autoencoder(), path)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"stored as \.safetensors"):
        save_weights(autoencoder(), VIT, str(tmp_path / "weights.pt"))


def test_a_network_without_encoder_can_be_saved_but_not_donate_one(tmp_path: Path) -> None:
    path = str(tmp_path / "probe.safetensors")
    save_weights(torch.nn.Linear(2, 2), VIT, path)
    with pytest.raises(WeightsError, match="holds a Linear, which has no encoder"):
        load_encoder_weights(autoencoder(), path)
