"""What a frozen encoder says of labelled videos: what probes are fitted to and asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kinema.errors import ConfigError
from kinema.training.finetune import holdout_groups
from kinema.video.manifest import Entry


@dataclass(frozen=True)
class Features:
    """Features of labelled videos, every view of each.

    Attributes:
        ids: of the videos.
        values: (videos, views, dim) or (videos, views, tokens, dim), float16 or float32.
        labels: (videos,) int64.
        groups: of each video, such as its subject; its id where the manifest names none.
    """

    ids: tuple[str, ...]
    values: NDArray[np.floating]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = {len(self.ids), len(self.values), len(self.labels), len(self.groups)}
        if len(counts) != 1:
            raise ValueError(f"ids, values, labels and groups differ in length: {sorted(counts)}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_views(self) -> int:
        """Views per video."""
        return int(self.values.shape[1])

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> Features:
        """The videos at these places, in this order."""
        places = np.asarray(index, dtype=np.int64)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in places),
            values=self.values[places],
            labels=self.labels[places],
            groups=tuple(self.groups[i] for i in places),
        )

    def ordered(self) -> Features:
        """The same by id: what is fitted then does not depend on the order of a manifest's rows."""
        order = sorted(range(len(self)), key=lambda i: self.ids[i])
        return self if order == list(range(len(self))) else self.take(order)

    def held_out(self, seed: int) -> tuple[Features, Features]:
        """The videos without a fixed tenth of their groups, and that tenth.

        Raises:
            ConfigError: there is one group only.
        """
        aside = holdout_groups(self.groups, seed)
        places: dict[bool, list[int]] = {False: [], True: []}
        for place, group in enumerate(self.groups):
            places[group in aside].append(place)
        return self.take(places[False]), self.take(places[True])


def features_of(entries: Sequence[Entry], values: Mapping[str, NDArray[np.floating]]) -> Features:
    """Features of the entries that have a label and were read; `values` by id, (views, ...).

    Raises:
        ConfigError: there are none.
    """
    used = [entry for entry in entries if entry.label is not None and entry.id in values]
    if not used:
        raise ConfigError([f"none of {len(entries)} videos has both a label and features"])
    return Features(
        ids=tuple(entry.id for entry in used),
        values=np.stack([values[entry.id] for entry in used]),
        labels=np.array([entry.label for entry in used], dtype=np.int64),
        groups=tuple(entry.group or entry.id for entry in used),
    )
