"""Calls a job's `main` in this process, as its command line would."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

REPOSITORY = Path(__file__).resolve().parents[1]
JOBS = sorted(path.name for path in (REPOSITORY / "jobs").glob("*.py"))


def call(job: str, arguments: Sequence[str]) -> int | None:
    """What `main()` of jobs/<job> returns or exits with, given these arguments."""
    spec = importlib.util.spec_from_file_location(
        job.removesuffix(".py"), REPOSITORY / "jobs" / job
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with patch.object(sys, "argv", [f"jobs/{job}", *arguments]):
        try:
            status: int | None = module.main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 1
    return status
