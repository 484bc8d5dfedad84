"""The boxes-only control: how much of the class do motion boxes tell by themselves?

A method that masks by motion boxes, or fuses tokens inside of them with those outside (MOFO),
sees where the boxes are. A classifier that sees nothing else, and no pixel, says what an accuracy
owes to them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from einops import rearrange
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from kinema.config import Config
from kinema.errors import ConfigError
from kinema.evaluation.multiview import prediction_table
from kinema.evaluation.statistics import Interval, bootstrap_interval, mean_class_accuracy
from kinema.geometry import Size
from kinema.motion.clip import slot_boxes
from kinema.training.data import ClipSource
from kinema.training.predict import top_k_hits
from kinema.video.augment import evaluation_transform
from kinema.video.manifest import Entry
from kinema.video.sampling import sample

Features = NDArray[np.float64]


class LinearClassifier(Config):
    """Multinomial logistic regression."""

    name: Literal["linear"] = "linear"
    inverse_penalty: PositiveFloat = Field(1.0, description="the smaller, the smaller the weights")

    def estimator(self, seed: int) -> Any:
        """A scikit-learn classifier."""
        return LogisticRegression(C=self.inverse_penalty, max_iter=10_000)


class PerceptronClassifier(Config):
    """One hidden layer, trained for a fixed number of epochs."""

    name: Literal["mlp"] = "mlp"
    hidden: PositiveInt = Field(64, description="units of the hidden layer")
    epochs: PositiveInt = 300
    weight_decay: PositiveFloat = 1e-2

    def estimator(self, seed: int) -> Any:
        """A scikit-learn classifier."""
        return MLPClassifier(
            (self.hidden,),
            alpha=self.weight_decay,
            max_iter=self.epochs,
            n_iter_no_change=self.epochs,
            random_state=seed % 2**32,
        )


Classifier = Annotated[LinearClassifier | PerceptronClassifier, Field(discriminator="name")]


class BoxesOnlyConfig(Config):
    """What the control sees, what it is, and how it is tested."""

    classifier: Classifier = Field(default=LinearClassifier())
    num_slots: PositiveInt = Field(8, description="boxes per clip, after resampling in time")
    protocol: Literal["split", "leave_one_group_out"] = Field(
        "split",
        description="train and test on the manifest's splits, or test each group (such as a"
        " subject) by a classifier of all others, whatever their split",
    )


@dataclass(frozen=True)
class BoxesOnly:
    """Outcome of the control.

    Attributes:
        top1: accuracy with its 95 % interval over videos.
        mean_class: accuracy averaged over classes.
        chance: one over the number of classes.
        majority: share of the tested videos that are of the largest class among them.
        predictions: a row per video: id, label, predicted, probabilities (classes,).
    """

    top1: Interval
    mean_class: float
    chance: float
    majority: float
    predictions: pa.Table


def box_features(
    boxes: Features, moving: NDArray[np.bool_], size: Size, num_slots: int
) -> Features:
    """What the control sees of a clip: geometry that neither scale nor frame rate change.

    Args:
        boxes: (slots, 4) xyxy, one per slot, none of them NaN.
        moving: (slots,) whether something moves in the slot, so that the box is its own.
        size: (height, width) of the frame.
        num_slots: slots after linear resampling in time.

    Returns:
        (5 * num_slots + 2 * (num_slots - 1),): slot by slot the centre's x and y, from -1 (left,
        top) to 1, the width and height as shares of the frame's, and `moving`; then, slot by slot,
        the motion of the centre to the next slot.
    """
    height, width = size
    scaled = boxes / np.array([width, height, width, height])
    centres = scaled[:, :2] + scaled[:, 2:] - 1
    slots = np.concatenate([centres, scaled[:, 2:] - scaled[:, :2], moving[:, None]], axis=1)
    times = np.linspace(0, len(slots) - 1, num_slots)
    resampled = np.stack([np.interp(times, np.arange(len(slots)), row) for row in slots.T], axis=1)
    steps = np.diff(resampled[:, :2], axis=0)
    return np.concatenate([resampled.reshape(-1), steps.reshape(-1)])


def video_features(source: ClipSource, entry: Entry, num_views: int, num_slots: int) -> Features:
    """Features (views, features) of a video's temporal test views, in their central crop."""
    assert source.motion is not None
    transform = evaluation_transform((entry.height, entry.width), source.output_size)
    views = []
    for view in range(num_views):
        indices, _ = sample(
            source.sampling,
            source.model.num_frames,
            entry.frame_range(),
            entry.fps,
            None,
            (view, num_views),
        )
        clip = source.boxes(entry, indices, transform)
        assert clip is not None
        found = source.motion.boxes(entry.id)
        own = slot_boxes(found, indices, transform, source.model.tubelet_size)
        moving = np.asarray(np.isfinite(own).all(axis=1), dtype=np.bool_)
        views.append(box_features(clip.boxes, moving, source.output_size, num_slots))
    return np.stack(views)


def classify_split(
    train: tuple[Features, NDArray[np.int64]],
    test: tuple[Features, NDArray[np.int64]],
    ids: Sequence[str],
    num_classes: int,
    config: BoxesOnlyConfig,
    seed: int,
) -> BoxesOnly:
    """Train on some videos and test on others.

    Args:
        train: features (N, views, features) and labels (N,).
        test: likewise.
        ids: of the tested videos.
        num_classes: of the data set.
        config: which classifier.
        seed: of its weights.

    Raises:
        ConfigError: the training videos are all of one class.
    """
    probabilities = _predict(*train, test[0], num_classes, config, seed)
    return _outcome(ids, test[1], probabilities)


def classify_groups(
    features: Features,
    labels: NDArray[np.int64],
    groups: Sequence[str],
    ids: Sequence[str],
    num_classes: int,
    config: BoxesOnlyConfig,
    seed: int,
) -> BoxesOnly:
    """Test the videos of each group by a classifier of all others.

    Raises:
        ConfigError: there is one group only, or one class without it.
    """
    if len(set(groups)) < 2:
        raise ConfigError(["control.protocol: leave_one_group_out needs two groups or more"])
    probabilities = np.zeros((len(labels), num_classes))
    for others, held_out in LeaveOneGroupOut().split(features, labels, list(groups)):
        probabilities[held_out] = _predict(
            features[others], labels[others], features[held_out], num_classes, config, seed
        )
    return _outcome(ids, labels, probabilities)


def _predict(
    features: Features,
    labels: NDArray[np.int64],
    tested: Features,
    num_classes: int,
    config: BoxesOnlyConfig,
    seed: int,
) -> Features:
    """Probabilities (M, classes) averaged over the views of `tested` (M, views, features)."""
    if len(np.unique(labels)) < 2:
        raise ConfigError(["control: the training videos are all of one class"])
    num_views = features.shape[1]
    model: Pipeline = make_pipeline(StandardScaler(), config.classifier.estimator(seed))
    with warnings.catch_warnings():
        # a fixed number of epochs ends before or after convergence, as was asked for
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rearrange(features, "n v f -> (n v) f"), np.repeat(labels, num_views))
    known = model.predict_proba(rearrange(tested, "n v f -> (n v) f"))
    probabilities = np.zeros((len(known), num_classes))
    probabilities[:, model.classes_] = known
    grouped = rearrange(probabilities, "(n v) c -> n v c", v=tested.shape[1])
    return np.asarray(grouped.mean(axis=1), dtype=np.float64)


def _outcome(ids: Sequence[str], labels: NDArray[np.int64], probabilities: Features) -> BoxesOnly:
    hits = top_k_hits(probabilities, labels, 1)
    return BoxesOnly(
        top1=bootstrap_interval(hits),
        mean_class=mean_class_accuracy(hits, labels),
        chance=1 / probabilities.shape[1],
        majority=float(np.bincount(labels).max() / len(labels)),
        predictions=prediction_table(ids, labels, probabilities),
    )
