"""Finding what a tested run left behind, by any name a person has for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kinema import storage
from kinema.errors import KinemaError
from kinema.tracking_server import run_key_of
from kinema.trial import PREDICTIONS_FILE, RESULT_FILE

_KINDS = ("runs", "evaluations", "probes", "boxes_only")
_SHORTEST_KEY = 6
"""Fewer characters would soon name several runs."""
COLUMNS = ("id", "label", "predicted", "probabilities")


@dataclass(frozen=True)
class Predictions:
    """One run's table of predictions, and what stands beside it.

    Attributes:
        name: as it was asked for.
        uri: of the table.
        table: see `evaluation.multiview.prediction_table`.
        result: of the run; empty where none lies beside the table.
    """

    name: str
    uri: str
    table: pa.Table
    result: dict[str, Any]


def find_predictions(name: str, root: str) -> Predictions:
    """The predictions of a run.

    Args:
        name: a `predictions.parquet`, the folder that holds one (also as seen from the root), the
            run's key or at least its first six characters, or its MLflow run id.
        root: absolute storage root, where keys are looked up.

    Raises:
        KinemaError: nothing, or more than one run, answers to the name, or it is no table of
            predictions.
    """
    uri = storage.absolute(name) if name.endswith(".parquet") else _in_folder(name, root)
    if not storage.exists(uri):
        raise KinemaError(f"{uri} does not exist; test the run first (jobs/finetune.py)")
    beside = storage.join(uri.rpartition("/")[0], RESULT_FILE)
    result = storage.read_json(beside) if storage.exists(beside) else {}
    table = storage.read_table(uri)
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise KinemaError(
            f"{uri} holds no predictions: it has no column {missing[0]!r}; a run leaves"
            f" {', '.join(COLUMNS)}"
        )
    return Predictions(name, uri, table, result)


def _in_folder(name: str, root: str) -> str:
    for folder in (storage.absolute(name), storage.join(root, name)):
        if storage.exists(storage.join(folder, PREDICTIONS_FILE)):
            return storage.join(folder, PREDICTIONS_FILE)
    found = _by_key(name, root) or _by_key(run_key_of(name, root) or "", root)
    if len(found) == 1:
        return found[0]
    if found:
        raise KinemaError(f"{name!r} is the beginning of several runs: {', '.join(found)}")
    if _is_long_enough(name) and any(
        folder.startswith(name) for folder in storage.list_names(storage.join(root, "pretrained"))
    ):
        raise KinemaError(
            f"{name!r} is an encoder, which no test has asked yet: probe or finetune it"
            " (encoder=.../encoder.safetensors) and give the key that this prints"
        )
    raise KinemaError(
        f"no run {name!r}: give a predictions.parquet, the folder that holds it, the key of a run"
        f" that was tested (under {root}; at least {_SHORTEST_KEY} characters of it) or its MLflow"
        " run id"
    )


def _is_long_enough(key: str) -> bool:
    return len(key) >= _SHORTEST_KEY and "/" not in key


def _by_key(key: str, root: str) -> list[str]:
    if not _is_long_enough(key):
        return []
    return [
        uri
        for kind in _KINDS
        for uri in storage.list_files(storage.join(root, kind), PREDICTIONS_FILE)
        if uri.rsplit("/", 2)[1].startswith(key)
    ]
