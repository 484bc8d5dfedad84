"""One small Ray cluster for all tests of this folder that carry the marker `ray`."""

from __future__ import annotations

import gc
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NUM_CPUS = 2


@contextmanager
def _letting_go() -> Iterator[None]:
    """Processes that Ray forgets while they run, as after a failed start, fail no later test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local cluster of 2 (declared) CPUs with token authentication and a folder of its own.

    The dashboard stays on: without it Tune's stopped trials keep their resources.
    """
    import ray

    import kinema
    from kinema.pipelines.cluster import start_local

    package = Path(str(kinema.__file__)).parent
    # sockets live in the folder, and a socket's path has at most 107 characters
    with (
        # Ray's last processes may still write there
        tempfile.TemporaryDirectory(prefix="kinema-ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.delenv("RAY_ADDRESS", raising=False)
        python_path = os.environ.get("PYTHONPATH", "")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, [str(package.parent), python_path]))
        )
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        with _letting_go():
            start_local(NUM_CPUS, object_store_memory=200 * 2**20, _temp_dir=folder)
        yield
        with _letting_go():
            ray.shutdown()
