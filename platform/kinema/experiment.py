"""The knobs of a whole run: one YAML file names data, motion, mask, target, head and recipe.

A method is a mask, a target and a head; an experiment adds data and recipe; a sweep varies any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from kinema import storage
from kinema.config import Config, fingerprint, flatten, vary
from kinema.errors import ConfigError
from kinema.evaluation.multiview import EvaluationConfig
from kinema.masking.masks import Mask, TubeMask
from kinema.models.classifier import Head, PlainHead
from kinema.models.targets import PixelTarget, Target
from kinema.models.vit import ViTConfig
from kinema.motion.annotated import located
from kinema.motion.clip import Reduce
from kinema.motion.extractor import EXTRACTOR_VERSION, MotionConfig
from kinema.motion.flow import AnnotatedBoxes
from kinema.training.data import LoaderConfig
from kinema.training.finetune import FinetuneConfig
from kinema.training.pretrain import PretrainConfig
from kinema.video.synthetic import SyntheticConfig

METHODS_VERSION = 4
"""Bumped by hand when masks, targets or heads change what a run computes; part of every run key."""


class DataConfig(Config):
    """Which videos: those of a manifest, or else the known-answer set where its settings are."""

    manifest: str | None = Field(None, description="Parquet manifest, path or URI")
    synthetic: SyntheticConfig | None = Field(
        None,
        description="the embedded known-answer set, made where no manifest is named; {} for its"
        " defaults. A paper's experiment has none: its videos must be named",
    )
    reduce: Reduce = Field("clip", description="how per-frame motion boxes become a clip's box")
    selection: Literal["holdout", "official"] = Field(
        "holdout",
        description="choose the best epoch on a held-out tenth of the training clips where there "
        "is no validation split, or (the papers' way) on the split that is also tested",
    )

    def require_videos(self, where: str = "data") -> None:
        """Make sure that some videos are named.

        Args:
            where: the section's key, for the message.

        Raises:
            ConfigError: there is neither a manifest nor a known-answer set.
        """
        if self.manifest is None and self.synthetic is None:
            raise ConfigError(
                [
                    f"{where}.manifest: null; name the manifest of your videos"
                    f" (jobs/index_videos.py makes it), or set {where}.synthetic={{}} for the"
                    " known-answer set"
                ]
            )


class ExtractionConfig(Config):
    """How motion extraction runs; changes nothing in its results."""

    timeout_s: PositiveFloat = Field(600.0, description="limit per video")
    max_failure_ratio: float = Field(0.0, ge=0, le=1)
    num_cpus: PositiveInt | None = Field(None, description="cores to use; all by default")


class ComputeConfig(Config):
    """What one training run asks of the cluster."""

    num_workers: PositiveInt = Field(1, description="training processes (GPUs)")
    use_gpu: bool = False
    cpus_per_worker: PositiveFloat = 1
    max_failures: NonNegativeInt = Field(
        3, description="restarts after a worker's death, or an error that may not come again"
    )


class SchedulerConfig(Config):
    """ASHA over finetuning epochs; stops trials whose val/top1 lags."""

    name: Literal["asha"] = "asha"
    grace_epochs: PositiveInt = 5
    reduction_factor: int = Field(3, ge=2)


VARIANT = "variant"


class SweepConfig(Config):
    """What a sweep varies: named variants, or axes, or every variant at every point of the axes."""

    variants: dict[str, dict[str, Any]] = Field(
        default={}, description="named sets of overrides: the rows of a table"
    )
    axes: dict[str, list[Any]] = Field(
        default={}, description="dotted keys and the values of each, in the table's order"
    )
    skip: list[dict[str, Any]] = Field(
        default=[],
        description="points left out: those that have all the values of an entry, whose key"
        " `variant` names one",
    )
    search: Literal["grid", "random"] = "grid"
    num_samples: PositiveInt = Field(10, description="trials of a random search")
    controls: dict[str, dict[str, Any]] = Field(
        default={}, description="named extra trials: overrides that replace the axes"
    )
    scheduler: SchedulerConfig | None = None
    max_concurrent: PositiveInt | None = Field(None, description="at most this many at once")

    @model_validator(mode="after")
    def _filled(self) -> SweepConfig:
        if not self.axes and not self.variants:
            raise ValueError("nothing to vary: give axes or variants")
        empty = [key for key, values in self.axes.items() if not values]
        if empty:
            raise ValueError(f"axis without values: {', '.join(empty)}")
        unknown = {key for entry in self.skip for key in entry} - set(self.columns)
        if unknown:
            raise ValueError(f"skip names what is not varied: {', '.join(sorted(unknown))}")
        return self

    @property
    def columns(self) -> list[str]:
        """What tells one trial from another: `variant` if there are any, then the axes."""
        return [*([VARIANT] if self.variants else []), *self.axes]


class Experiment(Config):
    """One run: pretraining, finetuning and test of one method on one data set."""

    name: str = Field("kinema", pattern=r"^[\w.-]+$", description="study; MLflow experiment")
    method: Literal["videomae", "mofo", "mgm", "mme", "custom"] = "custom"
    paper: str | None = Field(None, description="the paper's table or figure this belongs to")
    seed: NonNegativeInt = 0
    storage: str | None = Field(None, description="root of everything durable; $KINEMA_STORAGE")
    data: DataConfig = DataConfig()
    motion: MotionConfig | None = Field(None, description="motion extraction; null = none needed")
    extraction: ExtractionConfig = ExtractionConfig()
    model: ViTConfig = ViTConfig()
    mask: Mask = Field(default=TubeMask(), discriminator="name")
    target: Target = Field(default=PixelTarget(), discriminator="name")
    head: Head = Field(default=PlainHead(), discriminator="name")
    encoder: str | None = Field(None, description="pretrained encoder to start from; path or URI")
    pretrain: PretrainConfig | None = PretrainConfig()
    finetune: FinetuneConfig | None = FinetuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    loader: LoaderConfig = LoaderConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        problems = []
        problems += self._missing_motion()
        problems += self._all_warmup()
        dropping = self.finetune is not None and self.finetune.keep_tokens < 1
        if dropping and self.model.attention != "joint":
            problems.append(
                f"finetune.keep_tokens leaves tokens out, model.attention={self.model.attention}"
                " needs them all: use attention=joint or keep_tokens=1"
            )
        if self.pretrain is not None and self.encoder is not None:
            problems.append("give either encoder or pretrain, not both; set pretrain=null")
        if not self.has_work:
            problems.append("pretrain and finetune are both null: nothing to do")
        for check in (
            partial(self.mask.check, self.model.grid),
            partial(self.target.check, self.model),
            partial(self.head.check, self.model),
        ):
            try:
                check()
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _missing_motion(self) -> list[str]:
        """What mask, target and head read and the motion section does not give."""
        problems = []
        for part in ("mask", "target", "head"):
            needs, name = getattr(self, part).needs, getattr(self, part).name
            if "boxes" in needs and self.motion is None:
                problems.append(f"{part}.name={name} reads motion boxes: give a motion section")
            if "flow" in needs and (self.motion is None or self.motion.fields is None):
                problems.append(
                    f"{part}.name={name} reads dense flow: give a motion section with fields,"
                    " as in motion={fields: {}}"
                )
        if self.pretrain is not None and self.pretrain.shuffle_frames and self.mask.needs:
            problems.append(
                f"pretrain.shuffle_frames: mask.name={self.mask.name} follows motion in time;"
                " use a mask that does not, such as tube"
            )
        return problems

    def _all_warmup(self) -> list[str]:
        """Stages whose learning rate would still rise when they end."""
        stages = {"pretrain": self.pretrain, "finetune": self.finetune}
        return [
            f"{name}.optim.warmup_epochs {stage.optim.warmup_epochs:g} leaves nothing of"
            f" {name}.epochs {stage.epochs}: lower it (0 = no warm-up), or train longer"
            for name, stage in stages.items()
            if stage is not None and stage.optim.warmup_epochs >= stage.epochs
        ]

    @property
    def root(self) -> str:
        """Absolute storage root."""
        return storage.absolute(self.storage or storage.default_root())

    @property
    def pretraining_reads_motion(self) -> bool:
        """Whether mask or target read the motion store; codec vectors come with the frames."""
        needs = (self.mask.needs | self.target.needs) - {"vectors"}
        return self.pretrain is not None and bool(needs)

    @property
    def finetuning_reads_motion(self) -> bool:
        """Whether the classifier reads the motion store."""
        return self.finetune is not None and bool(self.head.needs)

    @property
    def reads_motion(self) -> bool:
        """Whether anything in the run reads the motion store."""
        return self.pretraining_reads_motion or self.finetuning_reads_motion

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do; a kind of experiment with a stage of its own has."""
        return self.pretrain is not None or self.finetune is not None

    def require_videos(self) -> None:
        """Make sure that videos are named; see `DataConfig.require_videos`."""
        self.data.require_videos()

    def resolved(self) -> Self:
        """The same with every path absolute, as workers on other machines need it."""
        changed: dict[str, Any] = {"storage": self.root}
        if self.encoder is not None:
            changed["encoder"] = storage.absolute(self.encoder)
        if self.data.manifest is not None:
            manifest = storage.absolute(self.data.manifest)
            changed["data"] = self.data.model_copy(update={"manifest": manifest})
        return self.model_copy(update=changed)

    def varied(self, overrides: Mapping[str, Any]) -> Self:
        """A copy with dotted keys set, validated like a file.

        Raises:
            ConfigError: an override names an unknown key or breaks a rule.
        """
        return vary(self, overrides)

    def base(self) -> Experiment:
        """The experiment alone, without what a sweep's, a matrix's or a job's file adds to it."""
        added = set(type(self).model_fields) - set(Experiment.model_fields)
        return Experiment.model_validate(self.model_dump(mode="json", exclude=added))

    def pretraining_only(self) -> Self:
        """The part that makes the encoder: no finetuning, and no head that would need anything."""
        return self.varied({"finetune": None, "head": {"name": "plain"}})


class SweepExperiment(Experiment):
    """An experiment and the settings to vary."""

    sweep: SweepConfig


class AnyExperiment(Experiment):
    """For jobs that take any experiment's file, and of a sweep's one trial or its base."""

    sweep: SweepConfig | None = Field(None, description="a sweep's file can be given")
    variant: str | None = Field(
        None, description="which of the sweep's variants or controls; null = what all start from"
    )

    @model_validator(mode="after")
    def _known_variant(self) -> AnyExperiment:
        known = list(self._variants)
        if self.variant is not None and self.variant not in known:
            named = f"known: {', '.join(known)}" if known else "the experiment has no variants"
            raise ValueError(f"variant: unknown '{self.variant}'; {named}")
        return self

    @property
    def _variants(self) -> dict[str, dict[str, Any]]:
        return {} if self.sweep is None else {**self.sweep.variants, **self.sweep.controls}

    def check_given(self, given: Sequence[str]) -> None:
        """Refuse keys of the command line that the chosen variant sets itself.

        Raises:
            ConfigError: naming them.
        """
        if self.variant is not None:
            sets = flatten(self._variants[self.variant])
            advice = f"set by variant={self.variant}: leave one of the two out"
            refuse_overruled(given, sets, lambda key: f"{key} is {advice}")

    @property
    def label(self) -> str:
        """What its runs are called: the variant, or the method."""
        return self.variant or self.method

    def resolved(self) -> Self:
        """The chosen variant, with every path absolute."""
        chosen = self if self.variant is None else self.varied(self._variants[self.variant])
        return super(AnyExperiment, chosen).resolved()

    def plain(self) -> Experiment:
        """The chosen variant as an experiment of its own, resolved, without the job's own keys."""
        return self.resolved().base()


def refuse_overruled(
    given: Iterable[str], overruling: Iterable[str], why: Callable[[str], str]
) -> None:
    """Refuse keys of the command line in whose place others count.

    Args:
        given: dotted keys, within a given mapping each of its own.
        overruling: dotted keys that are set over them.
        why: what to say of one of `given`.

    Raises:
        ConfigError: naming each.
    """
    others = list(overruling)
    problems = [why(key) for key in given if any(_overlap(key, other) for other in others)]
    if problems:
        raise ConfigError(problems, "command line")


def _overlap(one: str, other: str) -> bool:
    """Whether one of two dotted keys is the other or lies in its section."""
    short, long = sorted((f"{one}.", f"{other}."), key=len)
    return long.startswith(short)


_NOT_RESULTS = {"name", "paper", "method", "storage", "loader", "compute", "extraction"}
_DECIDING = set(Experiment.model_fields) - _NOT_RESULTS
_PRETRAINING = {"seed", "data", "motion", "model", "mask", "target", "pretrain"}
_BOOKKEEPING = {"checkpoint_every", "keep_checkpoints", "log_every"}
_DECIDE_NOTHING = {
    "pretrain": _BOOKKEEPING,
    "finetune": _BOOKKEEPING,
    "evaluation": {"micro_batch_size"},
}
"""Within sections that decide: who changes these in the middle of a run goes on with it."""


def deciding_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings that decide what a run on given videos computes, as plain data."""
    return _settings(experiment, _DECIDING)


def _settings(experiment: Experiment, fields: set[str]) -> dict[str, Any]:
    return experiment.model_dump(mode="json", include=fields, exclude=_DECIDE_NOTHING)


def pretrain_key(experiment: Experiment, manifest_digest: str) -> str:
    """Names what pretraining computes: same key, same encoder."""
    used = set(_PRETRAINING)
    if not experiment.pretraining_reads_motion:
        used.discard("motion")
    return _key(experiment, used, "pretrain", manifest_digest)


def run_key(experiment: Experiment, manifest_digest: str) -> str:
    """Names what a whole run computes. Cluster size, paths and the commit are not part of it.

    Raises:
        StorageError: the given encoder or annotation, whose content counts, cannot be read.
    """
    return _key(experiment, _DECIDING, "run", manifest_digest)


def _key(experiment: Experiment, fields: set[str], kind: str, manifest_digest: str) -> str:
    settings = _settings(experiment, fields)
    settings["data"].pop("manifest", None)
    settings["data"].pop("synthetic", None)
    if experiment.motion is not None and "motion" in settings:
        settings["motion"]["version"] = EXTRACTOR_VERSION
        manifest = experiment.data.manifest
        if manifest is not None:  # else boxes lie beside the known-answer set, named by its digest
            flow = located(experiment.motion, manifest).flow
            if isinstance(flow, AnnotatedBoxes):
                settings["motion"]["flow"]["file"] = storage.content_digest(flow.file)
    if settings.get("encoder") is not None:
        settings["encoder"] = storage.content_digest(settings["encoder"])
    return fingerprint(kind, METHODS_VERSION, manifest_digest, settings)
