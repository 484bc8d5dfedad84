"""The transfer matrix: encoders of several sources on several targets, by several protocols.

MOFO's appendix (Table 3) and MGM (Tables 2 and 3). Every cell is a run or a probe of its own key,
so a matrix that was stopped goes on, and cells that other experiments have done are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinema import trial
from kinema.config import fingerprint
from kinema.errors import KinemaError
from kinema.experiment import run_key
from kinema.figures.transfer import save_transfer, transfer_text
from kinema.pipelines.direct import run_direct
from kinema.pipelines.prepare import Prepared, check_encoders, start
from kinema.pipelines.probe import Asked, probe
from kinema.pipelines.study import Study
from kinema.pipelines.tracker import RemoteTracker
from kinema.pipelines.train import train
from kinema.pipelines.transfer_plan import (
    Cell,
    Data,
    Place,
    Source,
    TransferExperiment,
    build_cell,
    cell_experiment,
    places,
    plan_sources,
)
from kinema.pipelines.tuning import Trial, check_trials, run_trials


class TransferStudy(Study):
    """The tracked side of a matrix."""

    def __init__(self, experiment: TransferExperiment, prepared: Prepared) -> None:
        base, matrix = experiment.base().resolved(), experiment.transfer
        key = fingerprint("transfer", base, matrix)
        name = f"transfer {len(matrix.sources)} x {len(matrix.targets)}"
        extra = {
            f"transfer.{axis}": ", ".join(getattr(matrix, axis))
            for axis in ("sources", "targets", "protocols")
        }
        super().__init__("transfer", base, key, name, prepared, extra)

    def data(self, item: Trial) -> Prepared:
        """The target's videos."""
        assert isinstance(item, Cell)
        assert item.prepared is not None
        return item.prepared

    def run_key(self, item: Trial) -> str:
        """Of the run, probe or test."""
        assert isinstance(item, Cell)
        if item.test is not None:
            return item.test.key
        return run_key(item.experiment, self.data(item).manifest.digest)

    def result(self, item: Trial) -> dict[str, Any] | None:
        """Of the run, probe or test."""
        assert isinstance(item, Cell)
        if item.test is not None:
            return item.test.result()
        return trial.result(item.experiment, self.data(item).manifest.digest)

    def row(self, item: Trial, failures: Mapping[str, str]) -> dict[str, Any]:
        """One line of the matrix, in long form."""
        outcome = self.result(item)
        row: dict[str, Any] = {"trial": item.name, **item.settings}
        if outcome is None or item.name in failures:
            status = "failed" if item.name in failures else "stopped"
            return row | {"status": status, "reason": failures.get(item.name, "")}
        prefix = "probe" if isinstance(getattr(item, "test", None), Asked) else "test"
        metrics = outcome["metrics"]
        return row | {
            "status": "done" if outcome["comparable"] else "not comparable",
            "top1": metrics[f"{prefix}/top1"],
            "low": metrics[f"{prefix}/top1_low"],
            "high": metrics[f"{prefix}/top1_high"],
            "chance": outcome["chance"],
            "num_tested": outcome["num_tested"],
            "seconds": outcome["seconds"],
        }

    def table(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """A line per source, a column per protocol and target."""
        return transfer_text(rows)

    def save(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
        """See `save_transfer`."""
        return save_transfer(rows, folder)


def _train_cell(item: Trial, run: RemoteTracker) -> None:
    assert isinstance(item, Cell)
    assert item.prepared is not None
    train(item.experiment, item.prepared.manifest_uri, item.prepared.manifest.digest, run)


def _first_videos(planned: Sequence[Trial], data: Data) -> Prepared:
    """Those of the first cell that has any, which the matrix as a whole is tracked with."""
    problems = []
    for cell in planned:
        try:
            return data.of(cell.experiment, motion=False)
        except KinemaError as error:  # said again of the cell itself
            problems.append(error)
    raise problems[0]


def transfer(experiment: TransferExperiment) -> int:
    """Fill the matrix, show it, keep table and heat map in MLflow.

    A cell that fails ends no other one.

    Returns:
        Exit code: 0 when every cell has a result, 1 when any has none.

    Raises:
        KinemaError: settings, data or cluster make the matrix as a whole impossible.
    """
    sources = plan_sources(experiment)
    everywhere = places(experiment.transfer)
    # What is wrong with any cell is said before the first one runs.
    planned = [
        Trial(p.name, p.settings, cell_experiment(experiment, p, sources[p.source], None))
        for p in everywhere
    ]
    check_trials([cell for cell in planned if cell.settings["protocol"] == "finetune"])
    check_trials([Trial(name, {}, s.run) for name, s in sources.items() if s.run is not None])
    start(experiment.base())
    data = Data()
    study = TransferStudy(experiment, _first_videos(planned, data))
    try:
        failures = _misfits(experiment, sources)
        usable = {name: source for name, source in sources.items() if name not in failures}
        failures |= _make_sources(experiment, study, usable, data)
        cells, rows = [], {}
        for place in everywhere:
            if place.source in failures:
                reason = f"source {place.source}: {failures[place.source]}"
                rows[place.name] = _failed(place, reason)
            else:
                try:
                    cell = build_cell(experiment, place, sources[place.source], data)
                    study.run_key(cell)
                except KinemaError as error:
                    rows[place.name] = _failed(place, str(error))
                else:
                    cells.append(cell)
        lost = _fill(experiment, study, study.settle(cells))
        rows |= {cell.name: study.row(cell, lost) for cell in cells}
        ordered = [rows[place.name] for place in everywhere]
        study.publish(ordered)
    except BaseException as error:
        study.abandon(error)
        raise
    return 0 if all(row["status"] == "done" for row in ordered) else 1


def _failed(place: Place, reason: str) -> dict[str, Any]:
    return {"trial": place.name, **place.settings, "status": "failed", "reason": reason}


def _misfits(experiment: TransferExperiment, sources: Mapping[str, Source]) -> dict[str, str]:
    """Why each source whose given encoder does not fit is left out."""
    unusable = {}
    for name, source in sources.items():
        protocols = {p.protocol for p in places(experiment.transfer) if p.source == name}
        try:
            check_encoders([source.experiment], frozen=not protocols & {"finetune", "direct"})
        except KinemaError as error:
            unusable[name] = str(error)
    return unusable


def _make_sources(
    experiment: TransferExperiment, study: Study, sources: Mapping[str, Source], data: Data
) -> dict[str, str]:
    """Pretrain what is missing; returns why each source that could not be made failed."""
    runs, unusable = [], {}
    for name, source in sources.items():
        if source.run is None:
            continue
        try:
            prepared = data.of(source.run)
            run = Cell(f"source {name}", {"source": name}, source.run, prepared=prepared)
            trial.check_clips(source.run, prepared.manifest)
            study.run_key(run)
        except KinemaError as error:  # its videos, or the encoder that it starts from
            unusable[name] = str(error)
        else:
            runs.append(run)
    todo = _distinct([cell for cell in runs if study.result(cell) is None], study)
    failures = _train(experiment, study, todo)
    by_key = {study.run_key(cell): failures[cell.name] for cell in todo if cell.name in failures}
    return unusable | {
        cell.settings["source"]: by_key[study.run_key(cell)]
        for cell in runs
        if study.run_key(cell) in by_key
    }


def _distinct(cells: Sequence[Cell], study: Study) -> list[Cell]:
    """One of each run: two sources may need the same pretraining."""
    return list({study.run_key(cell): cell for cell in reversed(cells)}.values())[::-1]


def _train(experiment: TransferExperiment, study: Study, cells: Sequence[Cell]) -> dict[str, str]:
    return run_trials(
        cells,
        _train_cell,
        study.open(cells, planned=True),
        study.close,
        study=experiment,
        max_concurrent=experiment.transfer.max_concurrent,
    )


def _fill(experiment: TransferExperiment, study: Study, cells: Sequence[Trial]) -> dict[str, str]:
    """Train side by side, then test one after another, each with the whole cluster."""
    todo = [cell for cell in cells if isinstance(cell, Cell)]
    failures = _train(
        experiment, study, _distinct([cell for cell in todo if cell.test is None], study)
    )
    for cell in todo:
        if cell.test is None:
            continue
        study.open([cell])
        print(f"  started   {cell.name}", flush=True)
        try:
            probe(cell.test) if isinstance(cell.test, Asked) else run_direct(cell.test)
            reason = None
        except Exception as error:  # one cell's failure, whatever it is, must not end the others
            expected = isinstance(error, KinemaError)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            failures[cell.name] = reason
        print(f"  {'FAILED' if reason else 'finished':9} {cell.name} {reason or ''}", flush=True)
        study.close(cell, reason)
    return failures
