"""Clips of an experiment as pictures, motion extracted on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from kinema.config import load
from kinema.errors import ConfigError
from kinema.pipelines.draw import DrawExperiment, draw

MOTION = Path(__file__).resolve().parents[2] / "experiments/demo/motion.yaml"
SMALL = "data.synthetic={num_train: 6, num_validation: 0, num_test: 2}"


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")
def test_clips_are_drawn(tmp_path: Path) -> None:
    settings = [
        f"storage={tmp_path}", f"output={tmp_path}/pictures", SMALL, "num_clips=2",
        "target={name: trajectory, length: 2}", "mask={name: mgm, mask_ratio: 0.5}",
    ]  # fmt: skip
    pictures = draw(load(DrawExperiment, MOTION, settings))
    assert [Path(picture).name for picture in pictures] == ["000.png", "001.png"]
    for picture in pictures:
        assert imread(picture).std() > 0.1


def test_without_pretraining_there_is_nothing_to_draw(tmp_path: Path) -> None:
    chosen = load(DrawExperiment, MOTION, [f"storage={tmp_path}", "pretrain=null"])
    with pytest.raises(ConfigError, match="only pretraining's clips are drawn"):
        draw(chosen)
