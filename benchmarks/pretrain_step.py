"""Clips per second of one pretraining step, and where the time goes.

    python benchmarks/pretrain_step.py                        # ViT-B, 224x224, 16 frames
    python benchmarks/pretrain_step.py --batch 2 --steps 3          # a CPU's share

The peer is Hugging Face's VideoMAEForPreTraining at the same size, batch and precision in the same
process, where transformers is installed; the printed ratio is ours over theirs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kinema.masking.masks import TubeMask
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.pixels import normalise, unit_range
from kinema.models.target_rule import ClipInputs
from kinema.models.targets import PixelTarget
from kinema.models.vit import ViTConfig
from kinema.randomness import keyed_rng


def synchronise() -> None:
    """Wait for the GPU, so that a clock means something."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def median_step(step: Callable[[], None], steps: int) -> float:
    """Median seconds of `steps` calls after two warm-ups."""
    for _ in range(2):
        step()
    return sorted(timed(step) for _ in range(steps))[steps // 2]


def make_masks(vit: ViTConfig, batch: int) -> Tensor:
    """Tube masks at 90 %, bool (batch, tokens)."""
    masks = [
        TubeMask().sample(vit.grid, None, (vit.image_size, vit.image_size), keyed_rng(0, i))
        for i in range(batch)
    ]
    return torch.stack([torch.from_numpy(mask.reshape(-1)) for mask in masks])


def ours(vit: ViTConfig, clip: Tensor, mask: Tensor, precision: torch.dtype, steps: int) -> float:
    """Median step of kinema's autoencoder; prints the parts."""
    device, target = clip.device, PixelTarget()
    model = MaskedAutoencoder(vit, DecoderConfig(), target.dims(vit)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    parts = {"target": 0.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    def step() -> None:
        marks = [time.perf_counter()]

        def mark() -> None:
            synchronise()
            marks.append(time.perf_counter())

        unit = unit_range(clip)
        wanted = target.compute(ClipInputs(unit), mask, vit)
        mark()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            predicted = model(normalise(unit), mask)
        loss = target.loss(predicted.float(), wanted)
        mark()
        loss.backward()
        mark()
        optimizer.step()
        optimizer.zero_grad()
        mark()
        for name, start, end in zip(parts, marks, marks[1:], strict=False):
            parts[name] = end - start

    seconds = median_step(step, steps)
    total = sum(parts.values())
    print("where the time goes: " + ", ".join(f"{k} {v / total:.0%}" for k, v in parts.items()))
    return seconds


def peer(
    vit: ViTConfig, clip: Tensor, mask: Tensor, precision: torch.dtype, steps: int
) -> float | None:
    """Median step of Hugging Face's model, or None where transformers is not installed."""
    try:
        from transformers import VideoMAEConfig, VideoMAEForPreTraining
    except ImportError:
        return None
    device = clip.device
    config = VideoMAEConfig(
        image_size=vit.image_size,
        patch_size=vit.patch_size,
        num_frames=vit.num_frames,
        tubelet_size=vit.tubelet_size,
        hidden_size=vit.embed_dim,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.num_heads,
        intermediate_size=int(vit.embed_dim * vit.mlp_ratio),
    )
    model: nn.Module = VideoMAEForPreTraining(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step() -> None:
        frames = normalise(unit_range(clip)).transpose(1, 2)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loss = model(frames, bool_masked_pos=mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return median_step(step, steps)


def main() -> None:
    """Print clips per second of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="vit_b")
    parser.add_argument("--batch", type=int, default=32 if torch.cuda.is_available() else 1)
    parser.add_argument("--steps", type=int, default=20 if torch.cuda.is_available() else 3)
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "fp32")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[
        args.precision
    ]
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    vit = ViTConfig(size=args.size)
    shape = (args.batch, 3, vit.num_frames, vit.image_size, vit.image_size)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    mask = make_masks(vit, args.batch)  # stays on the CPU, as in training
    print(f"{args.size}, batch {args.batch}, {args.precision}, torch {torch.__version__}, {name}")
    own = ours(vit, clip, mask, precision, args.steps)
    print(f"kinema        {args.batch / own:8.2f} clips/s  ({own * 1e3:.0f} ms per step)")
    other = peer(vit, clip, mask.to(device), precision, args.steps)
    if other is None:
        print("transformers is not installed: no peer measured")
    else:
        print(f"transformers  {args.batch / other:8.2f} clips/s  ({other * 1e3:.0f} ms per step)")
        print(f"ratio         {other / own:8.2f}")
    if device.type == "cuda":
        print(f"peak memory   {torch.cuda.max_memory_allocated() / 2**30:8.1f} GiB")


if __name__ == "__main__":
    main()
