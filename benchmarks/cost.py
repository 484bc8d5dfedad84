"""What experiments cost, by the floating-point operations of their networks. No GPU needed.

    python benchmarks/cost.py --clips 168913 experiments/mgm/table_4e.yaml ...

Hours are those of one GPU at `--tflops` sustained (100: about a third of an A100's bfloat16 peak).
Operations are counted by torch in one forward pass on the meta device; training takes three times
as many. Decoding, tests and idle time are not counted. Pretraining that rows share counts once.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema.config import load
from kinema.experiment import Experiment, SweepExperiment, pretrain_key
from kinema.models.classifier import Classifier, Head
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.vit import ViTConfig
from kinema.pipelines.sweep import plan

CLASSES = 174
TRAINING = 3
"""Forward and backward pass, in forward passes."""


@cache
def pretraining(vit: ViTConfig, decoder: DecoderConfig, dims: tuple[int, ...], hidden: int) -> int:
    """Operations of one clip forward."""
    with torch.device("meta"):
        model = MaskedAutoencoder(vit, decoder, dims)
        clip = torch.zeros(1, 3, vit.num_frames, vit.image_size, vit.image_size)
    mask = torch.arange(vit.grid.tokens)[None] < hidden
    return _count(model, clip, mask)


@cache
def finetuning(vit: ViTConfig, head: Head, kept: int) -> int:
    """Operations of one clip forward."""
    with torch.device("meta"):
        model = Classifier(vit, head, CLASSES)
        clip = torch.zeros(1, 3, vit.num_frames, vit.image_size, vit.image_size)
        inner = torch.arange(vit.grid.tokens)[None] < vit.grid.tokens // 3
    visible = None
    if kept < vit.grid.tokens:
        visible = torch.arange(vit.grid.tokens)[None] < kept
    return _count(model, clip, inner.to("meta") if model.needs_inner else None, visible)


def _count(model: torch.nn.Module, *inputs: torch.Tensor | None) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


def cost(file: Path, clips: int) -> tuple[int, float, float]:
    """Rows, and operations of pretraining and finetuning, of all rows of a file."""
    if "\nsweep:" in file.read_text():
        runs = [item.experiment for item in plan(load(SweepExperiment, file))]
    else:
        encoder = ["encoder=given.safetensors"] if "transfer" in file.stem else []
        runs = [load(Experiment, file, encoder)]
    seen: set[str] = set()
    total = {"pretrain": 0.0, "finetune": 0.0}
    for run in runs:
        tokens = run.model.grid.tokens
        stage = run.pretrain
        if stage is not None and (key := pretrain_key(run, "")) not in seen:
            seen.add(key)
            hidden = run.mask.num_hidden(run.model.grid)
            dims = run.target.dims(run.model)
            one = pretraining(run.model, stage.decoder, dims, hidden)
            drawn = clips * stage.clip_share * stage.repeated_augmentation
            total["pretrain"] += TRAINING * one * drawn * stage.epochs
        if run.finetune is not None:
            one = finetuning(run.model, run.head, round(run.finetune.keep_tokens * tokens))
            drawn = clips * run.finetune.repeated_augmentation
            total["finetune"] += TRAINING * one * drawn * run.finetune.epochs
    return len(runs), total["pretrain"], total["finetune"]


def main() -> None:
    """Print a line per file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="EXPERIMENT.yaml")
    parser.add_argument("--clips", type=int, default=168_913, help="training clips (SSv2's)")
    parser.add_argument("--tflops", type=float, default=100.0, help="sustained, per GPU")
    arguments = parser.parse_args()
    print(f"{'experiment':40s} {'rows':>4s} {'pretrain h':>11s} {'finetune h':>11s}")
    for file in arguments.files:
        rows, *operations = cost(file, arguments.clips)
        hours = [value / arguments.tflops / 1e12 / 3600 for value in operations]
        name = f"{file.parent.name}/{file.stem}"
        print(f"{name:40s} {rows:4d} {hours[0]:11.0f} {hours[1]:11.0f}", flush=True)


if __name__ == "__main__":
    main()
