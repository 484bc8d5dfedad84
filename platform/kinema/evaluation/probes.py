"""Probes: what frozen features say about labels, on the official split or group by group."""

from __future__ import annotations

from collections.abc import Mapping
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


def leave_one_group_out(
    probe: Probe, features: Features, num_classes: int, seed: int, device: torch.device
) -> Answer:
    """Answer about each group's videos with a probe fitted to all the others.

    Every video is answered about exactly once, by a probe that saw none of its group, neither in
    fitting nor in choosing.

    Raises:
        ConfigError: there is one group only.
    """
    features = features.ordered()
    names = sorted(set(features.groups))
    if len(names) < 2:
        raise ConfigError(
            ["protocol=leave_one_group_out: the manifest has one group; index it with group=..."]
        )
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
