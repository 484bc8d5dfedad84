"""Annotated real videos, loaded as the benchmark loads them."""

from __future__ import annotations

import os
from pathlib import Path

import motion_boxes
import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = Path(os.environ.get("KINEMA_REAL_DATA", PROJECT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data in {root}; set KINEMA_REAL_DATA")
    return root


@pytest.fixture(scope="session")
def something_else(real_data: Path) -> list[motion_boxes.AnnotatedVideo]:
    return motion_boxes.something_else(real_data / "ssv2_boxes")


@pytest.fixture(scope="session")
def davis(real_data: Path) -> list[motion_boxes.AnnotatedVideo]:
    return motion_boxes.davis(real_data / "davis")
