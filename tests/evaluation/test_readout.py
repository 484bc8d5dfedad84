"""A frozen network's answers equal those of the network called by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.errors import VideoError, WeightsError
from kinema.evaluation.multiview import EvaluationConfig
from kinema.evaluation.readout import Question, Reader, ReadoutConfig, ask
from kinema.models.backbones import build_encoder
from kinema.models.classifier import Classifier, PlainHead
from kinema.models.pixels import normalise, unit_range
from kinema.models.vit import ViTConfig
from kinema.models.weights import save_weights
from kinema.training.batch import collate
from kinema.training.data import ClipSource, EvaluationClips
from kinema.training.frames import FrameCache
from kinema.training.order import SampleKey
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import DenseSampling
from kinema.video.synthetic import SyntheticConfig, make

VIT = ViTConfig(
    size="custom",
    embed_dim=24,
    depth=2,
    num_heads=2,
    image_size=32,
    num_frames=4,
    tubelet_size=2,
    patch_size=8,
)
VIEWS = EvaluationConfig(num_clips=2, num_crops=3, micro_batch_size=4)
SAMPLING = DenseSampling(stride=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    config = SyntheticConfig(num_train=8, num_validation=0, num_test=8, num_frames=8, size=48)
    uri = make(config, str(tmp_path_factory.mktemp("clips")))
    return Manifest.read(uri).rows()[:3]


def views_of(entry: Entry) -> torch.Tensor:
    """All six views of a video, normalised."""
    source = ClipSource([entry], VIT, SAMPLING, "clip", None, FrameCache(0))
    clips = EvaluationClips(source, VIEWS.num_clips, VIEWS.num_crops)
    batch = collate([clips[SampleKey(0, 0, view)] for view in range(6)])
    return normalise(unit_range(batch.clip))


def config(**changes: object) -> ReadoutConfig:
    return ReadoutConfig(model=VIT, sampling=SAMPLING, views=VIEWS).model_copy(update=changes)


def test_features_are_the_encoders(entries: list[Entry], tmp_path: Path) -> None:
    torch.manual_seed(5)
    encoder = build_encoder(VIT).eval()
    path = str(tmp_path / "encoder.safetensors")
    save_weights(encoder, VIT, path)
    with torch.inference_mode():
        tokens = encoder(views_of(entries[0])).numpy()
    ids = [entry.id for entry in entries]
    mean = Reader(config(weights=path), None, ids, CPU).read(entries[0])
    assert mean.shape == (6, 24)
    np.testing.assert_allclose(mean, tokens.mean(axis=1), rtol=1e-5, atol=1e-6)
    every = Reader(config(weights=path, output="tokens"), None, ids, CPU).read(entries[0])
    assert every.shape == (6, 32, 24)
    np.testing.assert_allclose(every, tokens, rtol=1e-5, atol=1e-5)


def test_logits_are_the_classifiers(entries: list[Entry], tmp_path: Path) -> None:
    torch.manual_seed(6)
    classifier = Classifier(VIT, PlainHead(init_scale=1.0), 5).eval()
    path = str(tmp_path / "best.safetensors")
    save_weights(classifier, PlainHead(), path)
    with torch.inference_mode():
        expected = classifier(views_of(entries[1])).numpy()
    asked = config(weights=path, output="logits", num_classes=5)
    said = ask(entries[1], Question(asked, [entries[1].id]))
    np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-6)


def test_random_weights_depend_on_the_seed_alone(entries: list[Entry]) -> None:
    one, two, other = (
        Reader(config(seed=seed), None, [entries[0].id], CPU).read(entries[0]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3


def test_a_network_is_loaded_once_per_question(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinema.evaluation import readout

    built = []
    build = readout.build_network
    monkeypatch.setattr(readout, "build_network", lambda asked: built.append(asked) or build(asked))
    question = Question(config(seed=3), [entry.id for entry in entries])
    for entry in entries:
        ask(entry, question)
    assert len(built) == 1
    ask(entries[0], Question(config(seed=4), [entries[0].id]))
    assert len(built) == 2


def test_wrong_weights_and_unreadable_videos_are_errors(
    entries: list[Entry], tmp_path: Path
) -> None:
    path = str(tmp_path / "encoder.safetensors")
    save_weights(build_encoder(VIT), VIT, path)
    wide = VIT.model_copy(update={"embed_dim": 48})
    with pytest.raises(WeightsError, match="embed_dim: 24 in the file, 48 in the model"):
        Reader(config(weights=path, model=wide), None, [], CPU)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    reader = Reader(config(), None, [entries[0].id], CPU)

    with pytest.raises(VideoError):
        reader.read(dataclasses.replace(entries[0], path=str(text)))
