"""Ray Train around `trial.run_stages`: a worker group that survives deaths and resumes by its key.

One run is one `(storage path, run key)`. Submitting it again continues it, whoever was killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import ray.train
import ray.train.torch

from kinema import storage
from kinema.errors import ConfigError, KinemaError, NonFiniteLossError, WeightsError
from kinema.experiment import Experiment, run_key
from kinema.pipelines.cluster import require
from kinema.pipelines.tracker import RemoteTracker
from kinema.training.engine import META_FILE
from kinema.trial import final_result, result, run_stages, run_uri
from kinema.video.manifest import Manifest

TALK_EVERY_S = 10.0
SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"
FAILURE_FILE = "failure.json"
_WOULD_COME_AGAIN = (ConfigError, WeightsError, NonFiniteLossError)
"""What no restart mends. Files are no such thing: processes of a driver that was killed may live on
for seconds and remove old checkpoints meanwhile."""


class TrainingError(KinemaError):
    """A run that gave up; carries the first worker's reason."""


@dataclass
class RayReporter:
    """`loop.Reporter` inside a Ray Train worker."""

    resume: Path | None
    tracker: RemoteTracker | None
    talks: bool = False
    """Whether it also prints, now and then, how far it is."""
    _said: float = field(default_factory=time.monotonic)

    @classmethod
    @contextlib.contextmanager
    def open(cls, tracker: RemoteTracker | None, talks: bool) -> Iterator[RayReporter]:
        """A reporter that resumes from the newest checkpoint of this run, if it has any."""
        with contextlib.ExitStack() as stack:
            checkpoint = ray.train.get_checkpoint()
            folder = stack.enter_context(checkpoint.as_directory()) if checkpoint else None
            if folder is not None and talks and ray.train.get_context().get_world_rank() == 0:
                print(f"continues from {checkpoint.path}", flush=True)
            yield cls(None if folder is None else Path(folder), tracker, talks)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand metrics to the tracker without waiting."""
        if self.talks and time.monotonic() - self._said > TALK_EVERY_S:
            self._said = time.monotonic()
            shown = ", ".join(f"{name} {metrics[name]:.4g}" for name in metrics if _is_shown(name))
            print(f"step {step}: {shown}", flush=True)
        if self.tracker is not None:
            now = int(time.time() * 1000)
            self.tracker.log([(name, value, step, now) for name, value in metrics.items()])

    def checkpoint(self, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        """Save this rank's part and let Ray merge the parts; a barrier over all ranks."""
        finite = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            ray.train.report(finite, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def preempted(self) -> bool:
        """Whether Ray drains a node of this run: a spot machine that was given notice, say."""
        return ray.train.get_preemption_info() is not None


def _is_shown(name: str) -> bool:
    return name.endswith(("/epoch", "/loss", "/top1", "clips_per_second"))


def _train_worker(payload: dict[str, Any]) -> None:
    # Ray tells of every report and checkpoint; the journal and MLflow have that already.
    for name in (None, "ray.train"):  # one of Ray's loggers hangs below the root by mistake
        logging.getLogger(name).setLevel(logging.WARNING)
    if _failure(payload["failure"], payload["attempt"]) is not None:
        return  # Ray restarts workers after every error, and has no way to be told not to
    experiment = Experiment.model_validate(payload["experiment"])
    try:
        with RayReporter.open(payload["tracker"], payload["talks"]) as reporter:
            run_stages(experiment, payload["manifest"], reporter)
    except _WOULD_COME_AGAIN as error:
        reason = f"{type(error).__name__}: {error}"
        record = {"attempt": payload["attempt"], "reason": reason}
        storage.write_json(payload["failure"], record)
        raise


def _failure(uri: str, attempt: str) -> str | None:
    """The error that ended an attempt at a run and would come again, or None."""
    record = storage.read_json(uri) if storage.exists(uri) else {}
    reason: str | None = record["reason"] if record.get("attempt") == attempt else None
    return reason


def bundles(experiment: Experiment) -> list[dict[str, float]]:
    """Resources that one run of `experiment` holds, one bundle per worker."""
    compute = experiment.compute
    bundle = {"CPU": float(compute.cpus_per_worker)}
    if compute.use_gpu:
        bundle["GPU"] = 1.0
    return [bundle] * compute.num_workers


def is_done(experiment: Experiment, manifest: Manifest | None) -> bool:
    """Whether a run asks for no workers any more; None is the manifest of clips yet to be made."""
    return manifest is not None and final_result(experiment, manifest.digest) is not None


def train(
    experiment: Experiment,
    manifest_uri: str,
    manifest_digest: str,
    tracker: RemoteTracker | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    talks: bool = False,
) -> dict[str, Any]:
    """Run an experiment to its end on the connected cluster; returns its result.

    A complete run is not repeated; one that could not read all test videos is tested again, without
    training again. `experiment` must be `resolved()`; `manifest_uri` absolute.
    With `talks` the workers print how far they are.

    Raises:
        ClusterError: the cluster can never give the workers asked for.
        TrainingError: the workers failed more often than `compute.max_failures`, or in a way that
            would come again.
    """
    done = final_result(experiment, manifest_digest)
    if done is not None:
        return done
    key = run_key(experiment, manifest_digest)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # which prints every line twice
    # Seconds until the controller sees that its workers are done; Ray's 2 add up over short trials.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    require(bundles(experiment), f"training run {key}")
    path = storage.join(experiment.root, "train")
    repair_snapshot(storage.join(path, key))
    failure, attempt = storage.join(run_uri(experiment, manifest_digest), FAILURE_FILE), uuid4().hex
    stages = [stage for stage in (experiment.pretrain, experiment.finetune) if stage is not None]
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={
            "experiment": experiment.model_dump(mode="json"),
            "manifest": manifest_uri,
            "tracker": tracker,
            "failure": failure,
            "attempt": attempt,
            "talks": talks,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=experiment.compute.num_workers,
            use_gpu=experiment.compute.use_gpu,
            resources_per_worker=bundles(experiment)[0],
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as V1's; V2 is what runs
            name=key,
            storage_path=path,
            failure_config=ray.train.FailureConfig(max_failures=experiment.compute.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=max(stage.keep_checkpoints for stage in stages)
            ),
            callbacks=list(callbacks),  # type: ignore[arg-type]
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"run {key}: {_reason(error)}") from error
    reason = _failure(failure, attempt)
    if reason is not None:
        raise TrainingError(f"run {key}: {reason}")
    done = result(experiment, manifest_digest)
    if done is None:
        raise TrainingError(f"run {key}: ended without a result under {experiment.root}")
    return done


def _reason(error: Exception) -> str:
    """The first worker's own words, without Ray's wrapping."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for rank in sorted(failures):
        cause = getattr(failures[rank], "cause", None) or failures[rank]
        return f"worker {rank}: {type(cause).__name__}: {cause}"
    return str(error)


def repair_snapshot(run_uri: str) -> None:
    """Rebuild Ray Train's own record of a run when a kill left it damaged.

    Ray writes the record in place, so that a kill can cut it short; every later start would then
    fail although the checkpoints are intact. Checkpoints that are not complete are left out.
    """
    uri = storage.join(run_uri, SNAPSHOT_FILE)
    if not storage.exists(uri) or _is_intact(run_uri, uri):
        return
    complete = _complete_checkpoints(run_uri)
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in complete]
    storage.write_json(
        uri,
        {
            "ray_version": ray.__version__,
            "checkpoint_results": results,
            "checkpoint_report_indices": list(range(1, len(results) + 1)),
            "latest_checkpoint_result": results[-1] if results else None,
            "pending_training_results": [],
            "pending_validation_specs": [],
            "current_report_index": len(results),
            "validated_checkpoint_dir_names": [],
            "timed_out_validation_checkpoint_dir_names": [],
            "failed_validation_checkpoint_dir_names": [],
        },
    )


def _is_intact(run_uri: str, snapshot_uri: str) -> bool:
    try:
        record = json.loads(storage.read_bytes(snapshot_uri))
        names = [item["checkpoint_dir_name"] for item in record["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        return False
    return set(names) <= set(_complete_checkpoints(run_uri))


def _complete_checkpoints(run_uri: str) -> list[str]:
    """Names of checkpoint folders that hold every rank's part, oldest first."""
    files: dict[str, list[str]] = {}
    for uri in storage.list_files(run_uri):
        name, _, rest = uri[len(run_uri) :].lstrip("/").partition("/")
        if name.startswith("checkpoint_") and rest:
            files.setdefault(name, []).append(rest)
    return [name for name in sorted(files) if _is_complete(run_uri, name, files[name])]


def _is_complete(run_uri: str, name: str, files: list[str]) -> bool:
    if META_FILE not in files:
        return False
    meta = storage.read_json(storage.join(run_uri, name, META_FILE))
    parts = sum(file.endswith("_optim_states.pt") for file in files)
    weights = any(file.endswith("_model_states.pt") for file in files)
    return weights and (meta["zero_stage"] == 0 or parts >= int(meta["world_size"]))
