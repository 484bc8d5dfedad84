"""The boxes-only control: what it sees, and that it learns from that and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kinema.errors import ConfigError
from kinema.evaluation.boxes_only import (
    BoxesOnlyConfig,
    LinearClassifier,
    PerceptronClassifier,
    box_features,
    classify_groups,
    classify_split,
    video_features,
)
from kinema.evaluation.statistics import bootstrap_interval
from kinema.models.vit import ViTConfig
from kinema.motion.annotated import frame_boxes, read_boxes
from kinema.motion.extractor import FrameBoxes
from kinema.motion.fields import FlowRun
from kinema.randomness import keyed_rng
from kinema.training.data import ClipSource
from kinema.training.frames import FrameCache
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import DenseSampling
from kinema.video.synthetic import SyntheticConfig, make

SIZE = (90, 160)
VIT = ViTConfig(
    size="custom", embed_dim=16, depth=1, num_heads=1, image_size=48, num_frames=8, patch_size=8
)
CLASSES = 8


@st.composite
def clips(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (slots, 4) inside a frame of SIZE, and in which slots something moves."""
    slots = draw(st.integers(1, 9))
    corners = draw(arrays(np.float64, (slots, 2, 2), elements=st.floats(0, 1, width=32)))
    height, width = SIZE
    low, high = corners.min(axis=1), corners.max(axis=1)
    boxes = np.concatenate([low, high], axis=1) * np.array([width, height] * 2)
    return boxes, draw(arrays(np.bool_, slots))


def parts(features: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (slots, 5) and steps (slots - 1, 2)."""
    return features[: 5 * slots].reshape(slots, 5), features[5 * slots :].reshape(-1, 2)


@given(clips(), st.integers(1, 8))
def test_mirrored_boxes_mirror_the_features(clip: tuple[np.ndarray, np.ndarray], n: int) -> None:
    boxes, moving = clip
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = SIZE[1] - boxes[:, [2, 0]]
    places, steps = parts(box_features(boxes, moving, SIZE, n), n)
    other_places, other_steps = parts(box_features(mirrored, moving, SIZE, n), n)
    np.testing.assert_allclose(other_places, places * [-1, 1, 1, 1, 1], atol=1e-9)
    np.testing.assert_allclose(other_steps, steps * [-1, 1], atol=1e-9)


@given(clips(), st.integers(1, 8), st.integers(1, 12))
def test_size_of_the_frame_changes_nothing(
    clip: tuple[np.ndarray, np.ndarray], n: int, scale: int
) -> None:
    boxes, moving = clip
    larger = box_features(boxes * scale, moving, (SIZE[0] * scale, SIZE[1] * scale), n)
    np.testing.assert_allclose(larger, box_features(boxes, moving, SIZE, n), atol=1e-9)


def test_features_by_hand() -> None:
    boxes = np.array([[0, 0, 80, 45], [80, 45, 160, 90.0]])
    places, steps = parts(box_features(boxes, np.array([True, False]), SIZE, 3), 3)
    assert places.tolist() == [
        [-0.5, -0.5, 0.5, 0.5, 1],
        [0, 0, 0.5, 0.5, 0.5],
        [0.5, 0.5, 0.5, 0.5, 0],
    ]
    assert steps.tolist() == [[0.5, 0.5], [0.5, 0.5]]


class TrueBoxes:
    """The known-answer set's own boxes as motion."""

    def __init__(self, uri: str, entries: list[Entry]) -> None:
        annotation = read_boxes(uri)
        self._boxes = {e.id: frame_boxes(annotation[e.id], e.frame_range()) for e in entries}

    def boxes(self, video_id: str) -> FrameBoxes:
        return self._boxes[video_id]

    def flow(self, video_id: str, first: int, last: int) -> FlowRun:
        raise AssertionError("the control looks at no flow")


Videos = tuple[np.ndarray, np.ndarray, list[Entry]]


@pytest.fixture(scope="module")
def known_answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Videos]:
    """Features, labels and entries of both splits; the files are removed: nobody needs pixels."""
    root = tmp_path_factory.mktemp("known")
    manifest = Manifest.read(
        make(SyntheticConfig(num_train=240, num_validation=0, num_test=120), str(root))
    )
    motion = TrueBoxes(str(root / "boxes.parquet"), manifest.rows())
    for file in root.rglob("*.mp4"):
        file.unlink()
    found = {}
    for split in ("train", "test"):
        entries = manifest.select(split).rows()
        sampling = DenseSampling(stride=1)
        source = ClipSource(entries, VIT, sampling, "clip", motion, FrameCache(0))
        features = np.stack([video_features(source, entry, 2, 4) for entry in entries])
        found[split] = features, np.array([entry.label for entry in entries]), entries
    return found


CONFIGS = [BoxesOnlyConfig(classifier=c) for c in (LinearClassifier(), PerceptronClassifier())]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.classifier.name)
def test_true_boxes_tell_the_direction_of_motion(
    known_answers: dict[str, Videos], config: BoxesOnlyConfig
) -> None:
    *train, _ = known_answers["train"]
    *test, entries = known_answers["test"]
    ids = [entry.id for entry in entries]
    found = classify_split(tuple(train), tuple(test), ids, CLASSES, config, 0)
    assert found.chance == 1 / CLASSES
    assert found.top1.low > 3 * found.chance, found.top1
    rows = found.predictions.to_pylist()
    assert [row["id"] for row in rows] == ids
    hits = [row["predicted"] == row["label"] for row in rows]
    assert bootstrap_interval(hits) == found.top1
    for row in rows:
        assert len(row["probabilities"]) == CLASSES
        assert int(np.argmax(row["probabilities"])) == row["predicted"]
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
    again = classify_split(tuple(train), tuple(test), ids, CLASSES, config, 0)
    assert again.predictions.equals(found.predictions)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.classifier.name)
def test_shuffled_labels_are_at_chance(
    known_answers: dict[str, Videos], config: BoxesOnlyConfig
) -> None:
    features, labels, _ = known_answers["train"]
    *test, entries = known_answers["test"]
    ids = [entry.id for entry in entries]
    accuracies = []
    for draw in range(3):
        shuffled = keyed_rng(0, "shuffled", draw).permutation(labels)
        found = classify_split((features, shuffled), tuple(test), ids, CLASSES, config, 0)
        accuracies.append(found.top1.value)
    assert abs(np.mean(accuracies) - 1 / CLASSES) < 0.08, accuracies


def test_group_is_tested_by_the_others() -> None:
    """Class and feature agree in all groups but one, where they are the other way round."""
    labels = np.tile([0, 1], 30)
    groups = [name for name in "abc" for _ in range(20)]
    value = np.where(np.array(groups) == "c", 1 - labels, labels).astype(np.float64)
    features = np.repeat(value[:, None, None], 2, axis=1)
    ids = [str(index) for index in range(60)]
    found = classify_groups(features, labels, groups, ids, 2, BoxesOnlyConfig(), 0)
    hits = np.array([row["predicted"] == row["label"] for row in found.predictions.to_pylist()])
    assert not hits[40:].any()
    assert found.predictions["id"].to_pylist() == ids
    with pytest.raises(ConfigError, match="two groups or more"):
        classify_groups(features, labels, ["a"] * 60, ids, 2, BoxesOnlyConfig(), 0)


def test_a_class_that_training_lacks_has_no_probability() -> None:
    features = np.array([0.0, 1, 0, 1]).reshape(4, 1, 1)
    labels = np.array([0, 2, 0, 2])
    tested = features[:2], np.array([0, 1])
    found = classify_split((features, labels), tested, ["x", "y"], 3, BoxesOnlyConfig(), 0)
    probabilities = np.array(found.predictions["probabilities"].to_pylist())
    assert (probabilities[:, 1] == 0).all()
    assert found.predictions["predicted"].to_pylist() == [0, 2]
    assert found.top1.value == 0.5
    assert found.majority == 0.5


def test_one_class_is_nothing_to_learn() -> None:
    features, labels = np.zeros((3, 1, 1)), np.zeros(3, dtype=np.int64)
    with pytest.raises(ConfigError, match="all of one class"):
        classify_split((features, labels), (features, labels), list("abc"), 2, BoxesOnlyConfig(), 0)
