"""A data set that several tests read; tests of the folders below import from this one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_videos import write_video


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, two splits; one name twice, one name with everything that needs care."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(
        [
            "train/jump/a.mp4",
            "train/jump/S1 (b) [1], 'x'.mp4",
            "train/run/a.mp4",
            "test/run/S2_c.mp4",
            "test/jump/d.mp4",
        ]
    ):
        write_video(root / name, value=20 * number + 10)
    return root
