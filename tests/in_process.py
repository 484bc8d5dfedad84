"""Stands for the cluster in tests of what surrounds it: the same work, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from kinema.evaluation.readout import Reader, ReadoutConfig
from kinema.motion.extractor import MotionConfig
from kinema.pipelines import direct, probe
from kinema.pipelines.readout import Readout
from kinema.video.manifest import Entry


def read_out(
    name: str,
    manifest_uri: str,
    entries: Sequence[Entry],
    config: ReadoutConfig,
    root: str,
    reading: Any,
    motion: MotionConfig | None = None,
) -> Readout:
    """What `pipelines.readout.read_out` gives, without keeping it."""
    reader = Reader(config, None, [entry.id for entry in entries], torch.device("cpu"))
    return Readout(list(entries), np.stack([reader.read(entry) for entry in entries]), {})


def fit(experiment: probe.ProbeExperiment, *arguments: Any) -> Any:
    """What a task on the cluster fits."""
    threads = torch.get_num_threads()
    try:
        return probe._fit(experiment.model_dump(mode="json"), *arguments)
    finally:
        torch.set_num_threads(threads)


def without_cluster(patch: pytest.MonkeyPatch) -> None:
    """Probes and direct tests read and fit here."""
    patch.setattr(probe, "read_out", read_out)
    patch.setattr(direct, "read_out", read_out)
    patch.setattr(probe, "_fit_on_cluster", fit)
