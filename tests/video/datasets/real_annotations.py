"""Where the official annotation files are, and what skips a test without them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from kinema.video.sources import Listing

REAL_DATA = Path(
    os.environ.get("KINEMA_REAL_DATA", Path(__file__).parents[3].parent / "shared" / "data")
)
ANNOTATIONS = REAL_DATA / "annotations"

needs_annotations = pytest.mark.skipif(
    not ANNOTATIONS.is_dir(), reason=f"no annotations in {ANNOTATIONS}"
)


def counts(listing: Listing) -> dict[str, int]:
    """Videos by split."""
    return dict(Counter(source.split for source in listing.sources))


def used(listing: Listing) -> set[int | None]:
    """Labels that videos have."""
    return {source.label for source in listing.sources}
