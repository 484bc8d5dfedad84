"""Every mask and every target in a whole run: pretrain, finetune, test, at tiny size.

The golden losses are those of pretraining's steps. Where a change is meant to alter them, write
them anew with `KINEMA_RECORD_GOLDEN=1 pytest tests/test_methods.py` and say why in CHANGELOG.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import learning
import numpy as np
import pytest

from kinema.config import load
from kinema.experiment import Experiment
from kinema.pipelines.prepare import prepare_manifest
from kinema.trial import run_stages

GOLDEN = Path(__file__).parent / "golden"
TINY = [
    "data.synthetic={num_train: 48, num_validation: 8, num_test: 8}",
    "model={embed_dim: 32, depth: 2, num_heads: 2}",
    "pretrain.decoder={embed_dim: 16, depth: 1, num_heads: 2}",
    "pretrain.epochs=1",
    "pretrain.optim.warmup_epochs=0",
    "pretrain.log_every=1",
    "pretrain.engine={global_batch_size: 8, micro_batch_size: 8}",
    "finetune.epochs=1",
    "finetune.optim.warmup_epochs=0",
    "finetune.engine={global_batch_size: 8, micro_batch_size: 8}",
]


class Losses:
    """Keeps the losses of pretraining's steps."""

    resume = None

    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if "pretrain/lr" in metrics:
            self.losses.append(metrics["pretrain/loss"])

    def checkpoint(self, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        pass

    def preempted(self) -> bool:
        return False


def experiment(root: Path, variant: Sequence[str] = (), *overrides: str) -> Experiment:
    settings = [f"storage={root}", *variant, *TINY, *overrides]
    return load(Experiment, learning.BASE, settings).resolved()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage that all share, so that clips and their motion are made once."""
    return tmp_path_factory.mktemp("methods")


@pytest.mark.parametrize("name", learning.VARIANTS)
def test_every_mask_and_target_trains_as_on_record(name: str, root: Path) -> None:
    head = ["head={name: mca, heads: 2}"] if name == "motion-box" else []
    chosen = experiment(root, learning.VARIANTS[name], *head)
    recorder = Losses()
    learning.extract(chosen)
    outcome = run_stages(chosen, prepare_manifest(chosen), recorder)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("KINEMA_RECORD_GOLDEN"):
        file.write_text("".join(f"{loss:.7f}\n" for loss in recorder.losses))
    assert len(recorder.losses) == 6
    np.testing.assert_allclose(recorder.losses, np.loadtxt(file), rtol=1e-2)
    assert outcome["num_tested"] == 8
    assert outcome["pretrain"]["held_out/constant_loss"] > 0
    assert np.isfinite(outcome["pretrain"]["held_out/ratio"])


@pytest.mark.parametrize(
    "override",
    [
        "pretrain.decoder.separate=true",
        "pretrain.shuffle_frames=true",
        "finetune.keep_tokens=0.5",
        "head={name: box_mean, outer_weight: 0.5}",
        "pretrain.repeated_augmentation=2",
    ],
)
def test_options_of_the_recipes_run(override: str, root: Path) -> None:
    target = ["target={name: trajectory, length: 4}"]
    chosen = experiment(root, target, override)
    assert chosen != experiment(root, target)
    learning.extract(chosen)
    outcome = run_stages(chosen, prepare_manifest(chosen), Losses())
    assert outcome["num_tested"] == 8
