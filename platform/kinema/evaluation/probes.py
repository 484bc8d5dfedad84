"""Probes: what frozen features say about labels, on the official split or group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from kinema.errors import ConfigError
from kinema.evaluation.attentive_probe import AttentiveProbe
from kinema.evaluation.features import Features
from kinema.evaluation.knn_probe import KnnProbe
from kinema.evaluation.linear_probe import LinearProbe
from kinema.evaluation.probe_rule import Setting
from kinema.training.predict import top_k_hits
from kinema.video.manifest import Entry

Probe = Annotated[LinearProbe | KnnProbe | AttentiveProbe, Field(discriminator="name")]
"""Every probe there is, told apart by `name`."""


@dataclass(frozen=True)
class Answer:
    """What a probe says of videos it was not fitted to.

    Attributes:
        about: the videos, ordered by id.
        probabilities: (videos, classes) float32, averaged over views.
        settings: what was chosen, by name of the fit: `all` of the official split, or the group
            that was left out.
    """

    about: Features
    probabilities: NDArray[np.float32]
    settings: Mapping[str, Setting]

    def accuracy_by_group(self) -> dict[str, float]:
        """Top-1 of each group's videos."""
        hits = top_k_hits(self.probabilities, self.about.labels, 1)
        groups = np.array(self.about.groups)
        return {str(name): float(hits[groups == name].mean()) for name in np.unique(groups)}


def official(
    probe: Probe, train: Features, test: Features, num_classes: int, seed: int, device: torch.device
) -> Answer:
    """Fit to the training videos and answer about the test videos."""
    train, test = train.ordered(), test.ordered()
    chosen = choose(probe, train, num_classes, seed, device)
    said = probe.fit_predict(train, test.values, num_classes, chosen, seed, device)
    return Answer(test, _over_views(said), {"all": chosen})


def groups_of(entries: Sequence[Entry], key: str) -> list[str]:
    """The videos' groups, of which each is to be left out once.

    Args:
        entries: the videos.
        key: the setting that asks for it, for the error.

    Raises:
        ConfigError: a video has no group, or all have the same.
    """
    alone = [entry.id for entry in entries if entry.group is None]
    problem = None
    if alone:
        problem = f"{len(alone)} videos have no group, such as {alone[0]}"
    elif len({entry.group for entry in entries}) < 2:
        problem = "all videos are of one group"
    if problem is not None:
        raise ConfigError(
            [
                f"{key}=leave_one_group_out: {problem}; index them again with dataset.group=REGEX,"
                r" a regular expression on the path that gives the group, such as '(S\d)_'"
            ]
        )
    return [str(entry.group) for entry in entries]


def leave_one_group_out(
    probe: Probe, features: Features, num_classes: int, seed: int, device: torch.device
) -> Answer:
    """Answer about each group's videos with a probe fitted to all the others.

    Every video is answered about exactly once, by a probe that saw none of its group, neither in
    fitting nor in choosing. `groups_of` checks that there are several.
    """
    features = features.ordered()
    names = sorted(set(features.groups))
    groups = np.array(features.groups)
    probabilities = np.empty((len(features), num_classes), np.float32)
    settings = {}
    for name in names:
        rest, own = np.flatnonzero(groups != name), np.flatnonzero(groups == name)
        train = features.take(rest)
        chosen = choose(probe, train, num_classes, seed, device)
        said = probe.fit_predict(train, features.values[own], num_classes, chosen, seed, device)
        probabilities[own] = _over_views(said)
        settings[name] = chosen
    return Answer(features, probabilities, settings)


def choose(
    probe: Probe, train: Features, num_classes: int, seed: int, device: torch.device
) -> Setting:
    """The setting that is best on a held-out tenth of the training groups; the first of equals.

    Raises:
        ConfigError: there are several settings and too few groups to hold any out.
    """
    settings = probe.settings()
    if len(settings) == 1:
        return settings[0]
    kept, aside = train.held_out(seed)
    scores = []
    for setting in settings:
        said = probe.fit_predict(kept, aside.values, num_classes, setting, seed, device)
        scores.append(top_k_hits(_over_views(said), aside.labels, 1).mean())
    return settings[int(np.argmax(scores))]


def _over_views(said: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(said.mean(axis=1), dtype=np.float32)
