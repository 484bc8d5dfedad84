"""The only module that knows DeepSpeed: one optimizer step, saving, loading, full weights.

DeepSpeed is imported inside functions, because a Ray driver or controller may have neither the
accelerator nor the compiler that its import expects.

`python -m kinema.training.engine --prebuild` compiles the one C++ operation DeepSpeed needs on CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from kinema.config import Config
from kinema.errors import CheckpointError, ClusterError
from kinema.training.batch import Batch
from kinema.training.optim import OptimConfig, adamw, parameter_groups

STATE_TAG = "state"
META_FILE = "meta.json"
STALE_LOCK_SECONDS = 15 * 60
KEPT_SETTINGS = ("weight_decay", "betas", "eps")


class EngineConfig(Config):
    """How one optimizer step is spread over memory and devices. Changes speed, not the recipe.

    In bf16, gradients accumulate in float32 under ZeRO 1 to 3; stage 0 adds them up in bf16.
    """

    global_batch_size: PositiveInt = Field(256, description="clips per optimizer step, all GPUs")
    micro_batch_size: PositiveInt = Field(
        16, description="most clips per GPU at once; the rest is gradient accumulation"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _divides(self) -> EngineConfig:
        micro = min(self.micro_batch_size, self.global_batch_size)
        if self.global_batch_size % micro:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"micro_batch_size {micro}"
            )
        return self

    def per_rank(self, world_size: int) -> tuple[int, int]:
        """Micro-batch size and accumulation steps of one rank.

        Raises:
            ClusterError: the global batch does not divide over `world_size` workers.
        """
        share, rest = divmod(self.global_batch_size, world_size)
        micro = min(self.micro_batch_size, share)
        if rest or share == 0 or share % micro:
            raise ClusterError(
                f"global_batch_size {self.global_batch_size} does not divide into micro batches of "
                f"{self.micro_batch_size} on {world_size} workers; change one of the three"
            )
        return micro, share // micro


def world() -> tuple[int, int]:
    """(rank, world size) of the process group; (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def current_device() -> torch.device:
    """The device of this rank."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def gather_objects(value: object) -> list[Any]:
    """`value` of every rank, in rank order, on every rank."""
    _, size = world()
    if size == 1:
        return [value]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, value)
    return gathered


class Engine:
    """A model under DeepSpeed. Every method is collective: all ranks call it alike."""

    def __init__(
        self, model: nn.Module, depth: int, config: EngineConfig, optim: OptimConfig
    ) -> None:
        deepspeed = _deepspeed()
        self.rank, self.world_size = world()
        self.micro_batch_size, self.accumulation = config.per_rank(self.world_size)
        self.config = config
        self.device = current_device()
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            config.precision
        ]
        groups, self._factors = parameter_groups(model, optim, depth)
        self._settings = {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": optim.clip_grad,
            "zero_optimization": {"stage": config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": config.precision == "bf16"},
            "fp16": {
                "enabled": config.precision == "fp16",
                "initial_scale_power": 7,
                "loss_scale_window": 128,
            },
            "steps_per_print": 10**9,
        }
        if config.precision == "bf16" and config.zero_stage > 0:
            # Else dozens of micro-batches would be summed with eight bits of mantissa.
            self._settings["data_types"] = {"grad_accum_dtype": "fp32"}
        model = model.to(self.device)
        self._engine = deepspeed.initialize(
            model=model,
            optimizer=adamw(groups, optim, self.device),
            config=self._settings,
            dist_init_required=False,
        )[0]

    @property
    def module(self) -> nn.Module:
        """The model, in the engine's precision. Under ZeRO stage 3 its forward is collective."""
        module: nn.Module = self._engine.module
        return module

    def predictor(self, twin: nn.Module) -> nn.Module:
        """The model for forward passes that one rank may do more often than another.

        Under ZeRO stage 3, whose forward gathers parameters from all ranks, that is a copy of
        `twin`, a network of the same build, with the present weights; else the model itself.
        """
        if self.config.zero_stage < 3:
            return self.module
        plain = copy.deepcopy(twin)
        plain.load_state_dict(self.full_weights())
        return plain.to(self.device, self.dtype)

    def step(
        self,
        batches: Iterable[Batch],
        loss_fn: Callable[[nn.Module, Batch], Tensor],
        learning_rate: float,
    ) -> tuple[float, float]:
        """One optimizer step over this rank's micro-batches, each taken when its turn comes.

        Args:
            batches: `accumulation` of them, on this rank's device.
            loss_fn: gives the mean loss of one.
            learning_rate: of the last layer.

        Returns:
            The mean loss of this rank and the global gradient norm before clipping. Where the loss
            of any rank or the gradient is not finite, both are NaN and parameters are left as they
            were; a gradient that overflows fp16 lowers the loss scale instead.
        """
        for group, factor in zip(self._engine.optimizer.param_groups, self._factors, strict=True):
            group["lr"] = learning_rate * factor
        lost = float("nan"), float("nan")
        losses: list[Tensor] = []
        norm: float | None = None
        for batch in batches:
            loss = loss_fn(self._engine, batch)
            losses.append(loss.detach())
            self._engine.backward(loss)
            if self._engine.is_gradient_accumulation_boundary():
                # The first moment that waits for the GPU, once per step.
                if not self._all_finite(losses):
                    return lost
                norm = self._plain_gradient_norm()
                if norm is not None and not math.isfinite(norm):
                    return lost
            self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
            # DeepSpeed has skipped the update then, and says infinity or -1.
            if self.config.precision != "fp16" and not 0 <= norm < math.inf:
                return lost
        return sum(torch.stack(losses).tolist()) / len(losses), norm

    def _all_finite(self, losses: list[Tensor]) -> bool:
        finite = torch.isfinite(torch.stack(losses)).all().float()
        if self.world_size > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite.item())

    def _plain_gradient_norm(self) -> float | None:
        """Norm of the reduced gradients where DeepSpeed does not compute it (fp32, stage 0)."""
        if self.config.precision != "fp32" or self.config.zero_stage != 0:
            return None
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def save(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Write this rank's part of the training state, and `meta`, into a `folder` of its own."""
        self._engine.save_checkpoint(str(folder), tag=STATE_TAG)
        if self.rank == 0:
            record = {**meta, "world_size": self.world_size, "zero_stage": self.config.zero_stage}
            (folder / META_FILE).write_text(json.dumps(record))

    def load(self, folder: Path) -> None:
        """Restore weights and optimizer state saved by `save`, also at another world size.

        Raises:
            CheckpointError: the folder is damaged or was made with another ZeRO stage.
        """
        meta = read_meta(folder)
        if meta["zero_stage"] != self.config.zero_stage:
            raise CheckpointError(
                f"{folder}: saved with zero_stage {meta['zero_stage']}, now "
                f"{self.config.zero_stage}; resume with the old stage"
            )
        if meta["world_size"] == self.world_size or self.config.zero_stage == 0:
            self._load(folder)
            return
        with tempfile.TemporaryDirectory() as temporary:
            _to_universal(folder, Path(temporary))
            self._engine._config.load_universal_checkpoint = True
            self._engine.optimizer.load_universal_checkpoint = True
            groups = self._engine.optimizer.param_groups
            settings = [{name: group[name] for name in KEPT_SETTINGS} for group in groups]
            self._load(Path(temporary), tag=f"{STATE_TAG}_universal")
        # Stage 3 gives all groups the settings of the first one, whose weights do not decay, and
        # all weights one counter of steps, which each then advances. AdamW's fused kernel wants
        # the counter on the GPU; it comes from a file.
        for group, kept in zip(self._engine.optimizer.param_groups, settings, strict=True):
            group.update(kept)
        for state in self._engine.optimizer.state.values():
            if "step" in state:
                state["step"] = torch.tensor(float(state["step"]), device=self.device)

    def _load(self, folder: Path, tag: str = STATE_TAG) -> None:
        try:
            loaded, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        except (OSError, RuntimeError, EOFError, KeyError) as error:
            raise CheckpointError(f"{folder}: damaged training state ({error})") from error
        if loaded is None:
            raise CheckpointError(f"{folder}: holds no training state '{tag}'")

    def full_weights(self) -> dict[str, Tensor]:
        """Consolidated weights in float32 on the CPU; complete on every rank.

        Those that the optimizer keeps in float32, not their rounded copies of bf16 or fp16; under
        stage 0, where there may be none, the network's own.
        """
        deepspeed = _deepspeed()
        parameters = list(self.module.parameters())
        gather = deepspeed.zero.GatheredParameters(parameters, enabled=self.config.zero_stage == 3)
        with gather:
            weights = {
                name: tensor.detach().float().cpu().clone()
                for name, tensor in self.module.state_dict().items()
            }
        if self.config.precision != "fp32" and self.config.zero_stage > 0:
            for name, parameter in self.module.named_parameters():
                exact = deepspeed.utils.safe_get_full_fp32_param(parameter)
                if exact is not None:
                    weights[name] = exact.detach().float().cpu().reshape(weights[name].shape)
        return weights


def read_meta(folder: Path) -> dict[str, Any]:
    """What `Engine.save` was told to remember.

    Raises:
        CheckpointError: missing or unreadable.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / META_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / META_FILE}: unreadable checkpoint ({error})") from error
    return meta


def _to_universal(source: Path, target: Path) -> None:
    """Convert a ZeRO checkpoint so that another world size can load it; once per rank, locally."""
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(source / STATE_TAG),
            output_folder=str(target / f"{STATE_TAG}_universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    (target / "latest_universal").write_text(f"{STATE_TAG}_universal")


def ensure_process_group() -> None:
    """Join a group of one when nothing (Ray Train, torchrun) has made a process group."""
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        # DeepSpeed reads these even when the group exists already.
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
            os.environ.setdefault(name, value)


def _deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # which warns wherever a CUDA toolkit lies on a machine without a GPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    ensure_process_group()
    _remove_stale_lock()
    import deepspeed

    if not deepspeed.comm.is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # prints that its operator is built
            deepspeed.init_distributed(
                dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False
            )
    return deepspeed


def _remove_stale_lock() -> None:
    """Drop the build lock a killed compilation left behind: every later start would wait for it."""
    from torch.utils.cpp_extension import _get_build_directory

    lock = Path(_get_build_directory("deepspeed_shm_comm", False)) / "lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > STALE_LOCK_SECONDS:
        lock.unlink(missing_ok=True)


def main() -> None:
    """Compile what DeepSpeed compiles on first use, so that no run pays or waits for it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--prebuild", action="store_true", required=True)
    parser.parse_args()
    Engine(nn.Linear(2, 2), 0, EngineConfig(global_batch_size=1, micro_batch_size=1), OptimConfig())
    print("DeepSpeed is ready.")


if __name__ == "__main__":
    main()
