"""The MLflow server or embedded store: where it is, a client for it, and which errors pass.

`kinema.tracking` writes through it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import StorageError
from kinema.storage import absolute

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "kinema.run_key"
_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "BAD_REQUEST",
}
"""MLflow's error codes for requests that would fail again; all others count as an outage."""


class Outage(Exception):
    """The server did not take a request; the journal keeps what it was about."""


class Refusal(Exception):
    """The server will never take this request."""


def tracking_uri_for(storage_root: str, tracking_uri: str | None = None) -> str:
    """The server that is named, else the embedded SQLite store of a local storage root.

    Raises:
        StorageError: no server is named and the storage root is remote.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    root = absolute(storage_root)
    if not uri:
        if "://" in root:
            raise StorageError(
                f"{root}: the embedded MLflow store needs a local storage root; "
                "name a server in MLFLOW_TRACKING_URI"
            )
        return f"sqlite:///{root}/mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri or path.startswith("/") else f"sqlite:///{Path(path).absolute()}"


def connect(tracking_uri: str) -> MlflowClient:
    """A client with short time limits; the embedded store is made or brought up to date first."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        if tracking_uri.startswith("sqlite:"):
            _prepare_database(tracking_uri)
        return MlflowClient(tracking_uri)
    except (MlflowException, OSError) as error:
        raise StorageError(f"tracking store {tracking_uri}: {error}") from error


def _prepare_database(tracking_uri: str) -> None:
    """Make or upgrade the database under a lock: two first uses at once would corrupt it."""
    from mlflow.store.db import utils as database_tools

    database = Path(tracking_uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = database_tools.create_sqlalchemy_engine(tracking_uri)
        try:
            current = database_tools._get_schema_version(engine)
            if current != database_tools._get_latest_schema_revision():
                database_tools._initialize_tables(engine)
        finally:
            engine.dispose()


@contextmanager
def sorting_errors() -> Iterator[None]:
    """Around requests: a server's errors become `Outage` or `Refusal`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        kind = Refusal if error.error_code in _REFUSALS else Outage
        raise kind(str(error)) from error
    except OSError as error:  # requests' errors, a full or vanished disk
        raise Outage(str(error)) from error


def run_key_of(run_id: str, storage_root: str, tracking_uri: str | None = None) -> str | None:
    """The key of an MLflow run; None where there is no run of that id, or one of another program.

    Raises:
        StorageError: the tracking store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        return None
    uri = tracking_uri_for(storage_root, tracking_uri)
    try:
        run = connect(uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise StorageError(f"MLflow at {uri}: {error}") from error
    return dict(run.data.tags).get(KEY_TAG)
