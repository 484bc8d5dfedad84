"""The cells of a transfer matrix: which source, which target, by which protocol, on what data."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from kinema import storage, trial
from kinema.config import Config, fingerprint
from kinema.errors import ConfigError
from kinema.evaluation.attentive_probe import AttentiveProbe
from kinema.evaluation.knn_probe import KnnProbe
from kinema.evaluation.linear_probe import LinearProbe
from kinema.experiment import Experiment
from kinema.pipelines.direct import DirectTest
from kinema.pipelines.prepare import Prepared, prepare
from kinema.pipelines.probe import Asked, ProbeExperiment
from kinema.pipelines.readout import ReadingConfig
from kinema.pipelines.tuning import Trial
from kinema.training.pretrain import ENCODER_FILE

TransferProtocol = Literal["finetune", "linear", "knn", "attentive", "direct"]


class TransferConfig(Config):
    """Rows, columns and panels of the matrix."""

    sources: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="by name, overrides that give an encoder: data.manifest to pretrain on; or"
        " encoder=FILE and pretrain=null; or pretrain=null alone, for random weights",
    )
    targets: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="by name, overrides that give videos (data.manifest) and their recipe",
    )
    protocols: list[TransferProtocol] = Field(
        ["finetune"],
        min_length=1,
        description="finetune, a probe, or direct: the classifier that was finetuned on the"
        " source's own videos, tested on the target's without training (MGM, Table 3)",
    )
    skip: list[dict[Literal["source", "target", "protocol"], str]] = Field(
        [], description="cells left out: those that have all the values of an entry"
    )
    linear: LinearProbe = LinearProbe()
    knn: KnnProbe = KnnProbe()
    attentive: AttentiveProbe = AttentiveProbe()
    max_concurrent: PositiveInt | None = Field(None, description="trainings at once")

    @model_validator(mode="after")
    def _known(self) -> TransferConfig:
        known: dict[str, list[str]] = {
            "source": list(self.sources),
            "target": list(self.targets),
            "protocol": [*self.protocols],
        }
        for entry in self.skip:
            for key, value in entry.items():
                if value not in known[key]:
                    raise ValueError(f"skip names {key} '{value}'; known: {', '.join(known[key])}")
        if not places(self):
            raise ValueError("skip leaves no cell")
        return self


class TransferExperiment(Experiment):
    """An experiment, and the sources, targets and protocols that change it."""

    transfer: TransferConfig
    reading: ReadingConfig = ReadingConfig()

    @property
    def has_work(self) -> bool:
        """There is a matrix."""
        return True

    def require_videos(self) -> None:
        """Make sure that every source and every target of the matrix names its own.

        Raises:
            ConfigError: one names none, or its overrides give no valid experiment.
        """
        sources = plan_sources(self)
        for name, source in sources.items():
            if source.run is not None:
                source.run.data.require_videos(f"transfer.sources.{name}.data")
        for place in places(self.transfer):
            cell = cell_experiment(self, place, sources[place.source], None)
            cell.data.require_videos(f"transfer.targets.{place.target}.data")


@dataclass(frozen=True)
class Place:
    """A cell before anything exists."""

    source: str
    target: str
    protocol: TransferProtocol

    @property
    def name(self) -> str:
        """For people and as a key within the matrix."""
        return f"{self.source} to {self.target}, {self.protocol}"

    @property
    def settings(self) -> dict[str, str]:
        """What tells it from other cells."""
        return {"source": self.source, "target": self.target, "protocol": self.protocol}


@dataclass(frozen=True)
class Source:
    """Where an encoder comes from, and what is left to do to have it.

    Attributes:
        experiment: as given, resolved.
        run: pretraining, and finetuning where a classifier is tested directly; None where the
            encoder exists as a file or has random weights.
    """

    name: str
    experiment: Experiment
    run: Experiment | None


@dataclass(frozen=True)
class Cell(Trial):
    """A cell of the matrix, or the run that a source needs. `test` is None where it trains."""

    prepared: Prepared | None = None
    test: Asked | DirectTest | None = None


def places(config: TransferConfig) -> list[Place]:
    """All cells, protocol by protocol, without those that are skipped."""
    every = itertools.product(config.protocols, config.sources, config.targets)
    cells = [Place(source, target, protocol) for protocol, source, target in every]
    return [
        cell
        for cell in cells
        if not any(all(cell.settings[k] == v for k, v in entry.items()) for entry in config.skip)
    ]


def plan_sources(experiment: TransferExperiment) -> dict[str, Source]:
    """Every source that a cell uses, by name.

    Raises:
        ConfigError: its overrides give no valid experiment.
    """
    base, sources = experiment.base().resolved(), {}
    cells = places(experiment.transfer)
    for name, overrides in experiment.transfer.sources.items():
        protocols = {cell.protocol for cell in cells if cell.source == name}
        if not protocols:
            continue
        chosen = _varied(base, overrides, f"transfer.sources.{name}").resolved()
        run = None
        if "direct" in protocols:
            if chosen.finetune is None:
                raise ConfigError([f"transfer.sources.{name}: direct needs a finetune section"])
            run = chosen
        elif chosen.pretrain is not None:
            run = chosen.pretraining_only()
        sources[name] = Source(name, chosen, run)
    return sources


def cell_experiment(
    experiment: TransferExperiment, place: Place, source: Source, weights: str | None
) -> Experiment:
    """What a cell trains or probes: the target's videos and recipe, the source's network.

    Masks and targets of pretraining play no part, and motion only where the head reads it.

    Raises:
        ConfigError: the target's overrides give no valid experiment.
    """
    given = experiment.transfer.targets[place.target]
    encoder = {"pretrain": None, "encoder": weights}
    network = {"model": source.experiment.model.model_dump(mode="json")}
    plain = {"mask": {"name": "tube"}, "target": {"name": "pixel"}}
    base, where = experiment.base().resolved(), f"transfer.targets.{place.target}"
    changed = _varied(base, {**given, **plain, **encoder, **network}, where)
    if not changed.head.needs:
        changed = changed.varied({"motion": None})
    return changed.resolved()


def _varied(base: Experiment, overrides: dict[str, Any], where: str) -> Experiment:
    """`Experiment.varied`, whose problems are those of a place in the matrix."""
    try:
        return base.varied(overrides)
    except ConfigError as error:
        raise ConfigError(error.problems, where) from error


class Data:
    """Manifests and motion of every experiment of a matrix, each prepared once."""

    def __init__(self) -> None:
        self._known: dict[str, Prepared] = {}

    def of(self, experiment: Experiment, motion: bool = True) -> Prepared:
        """The videos of an experiment, with their motion where that is read."""
        wanted = motion and experiment.reads_motion
        key = fingerprint(experiment.data, experiment.motion if wanted else None)
        if key not in self._known:
            self._known[key] = prepare([experiment], reads_motion=lambda _: wanted)
        return self._known[key]


def encoder_of(source: Source, data: Data) -> str | None:
    """Weights of a source's encoder, which may yet have to be made; None = random."""
    if source.experiment.pretrain is None:
        return source.experiment.encoder
    # the videos alone: the source's head may read motion that its pretraining does not
    digest = data.of(source.experiment, motion=False).manifest.digest
    folder = trial.pretrained_uri(source.experiment.pretraining_only(), digest)
    return storage.join(folder, ENCODER_FILE)


def build_cell(experiment: TransferExperiment, place: Place, source: Source, data: Data) -> Cell:
    """A cell whose source exists."""
    if place.protocol == "direct":
        tested = cell_experiment(experiment, place, source, None).data
        target = source.experiment.model_copy(update={"data": tested})
        prepared = data.of(target, motion="boxes" in target.head.needs)
        own = data.of(source.experiment)
        direct = DirectTest(
            source.experiment,
            own.manifest,
            prepared.manifest_uri,
            prepared.manifest,
            experiment.reading.on(experiment.compute),
        )
        return Cell(place.name, place.settings, target, prepared=prepared, test=direct)
    chosen = cell_experiment(experiment, place, source, encoder_of(source, data))
    if place.protocol == "finetune":
        prepared = data.of(chosen)
        trial.check_clips(chosen, prepared.manifest)
        return Cell(place.name, place.settings, chosen, prepared=prepared)
    rule = getattr(experiment.transfer, place.protocol)
    probing = ProbeExperiment.model_validate(
        chosen.model_dump(mode="json")
        | {"probe": rule.model_dump(mode="json")}
        | {"reading": experiment.reading.model_dump(mode="json")}
    )
    prepared = data.of(probing, motion=False)
    asked = Asked(probing, prepared.manifest_uri, prepared.manifest, probing.encoder)
    return Cell(place.name, place.settings, probing, prepared=prepared, test=asked)
