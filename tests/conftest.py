"""Surroundings of every test, set before anything imports Ray or MLflow: both read them once."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A developer's own cluster, server and storage are none of the tests' business.
for name in ("KINEMA_STORAGE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
    os.environ.pop(name, None)
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# DeepSpeed looks for `ninja` on PATH, and an environment that is not activated is not there.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

# How long an example takes says something about the machine, not about the code.
settings.register_profile("kinema", deadline=None)
settings.load_profile("kinema")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: two processes that share them then end at the same time."""
    marks = "ray", "real"
    long = {item.path for item in items for mark in marks if item.get_closest_marker(mark)}
    items.sort(key=lambda item: item.path not in long)
