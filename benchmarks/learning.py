"""Does pretraining learn anything with every mask and every target? Demo size, minutes on a CPU.

    python benchmarks/learning.py                      # all, one after the other, on all cores
    python benchmarks/learning.py hog mgm-dense        # some

Each line compares the loss on held-out clips with that of the best constant prediction: a ratio
below 1 means that something was learned that differs from clip to clip. Synthetic clips: this says
that the machinery works, nothing about a method.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from kinema import storage
from kinema.config import fingerprint, load
from kinema.experiment import Experiment
from kinema.motion.parts import row_digest
from kinema.motion.store import MotionStore
from kinema.pipelines.one_video import extract_one
from kinema.pipelines.prepare import prepare_manifest
from kinema.trial import run_stages
from kinema.video.manifest import Manifest

BASE = Path(__file__).resolve().parents[1] / "experiments/demo/motion.yaml"
FAST = [
    "motion.flow={name: tvl1, data_weight: 0.15, num_warps: 2}",
    "data.synthetic={num_frames: 4, speed: [3.0, 4.0], camera_pan: 0.0, num_distractors: 0}",
    "model.num_frames=4",
]
"""Fast discs, nothing else, and a flow with sharp edges. At the demo's 2 px per frame boundaries of
motion are mostly noise of the estimate, whatever the network."""
VARIANTS = {
    "tube": ["mask={name: tube, mask_ratio: 0.75}"],
    "random": ["mask={name: random, mask_ratio: 0.75}"],
    "frame": ["mask={name: frame, mask_ratio: 0.5}"],
    "block": ["mask={name: block, mask_ratio: 0.5}"],
    "cube": ["mask={name: cube}"],
    "motion-box": ["mask={name: motion_box, mask_ratio: 0.75, overlap: centre}"],
    "smm-dense": ["mask={name: smm, mask_ratio: 0.5}"],
    "smm-sparse": ["mask={name: smm, mask_ratio: 0.5, shape: sparse}"],
    "mgm-dense": ["mask={name: mgm, mask_ratio: 0.5}"],
    "mgm-sparse": ["mask={name: mgm, mask_ratio: 0.5, shape: sparse}"],
    "mgm-flow": ["mask={name: mgm, mask_ratio: 0.5, guide: flow}"],
    "pixel-joint": ["target={name: pixel, norm: joint}"],
    "pixel-per-channel": [
        "target={name: pixel, norm: per_channel}",
        "data.synthetic.background_contrast=3",  # or a flat patch's rounding noise is all there is
        "pretrain.epochs=12",
    ],
    "hog": ["target={name: hog}", *FAST],
    "flow": ["target={name: flow}"],
    "hof": ["target={name: hof}", *FAST],
    "mbh": ["target={name: mbh}", "pretrain.epochs=13", *FAST],
    "trajectory": [
        "target={name: trajectory, length: 4}",
        "pretrain.epochs=4",  # of twice as many steps
        "pretrain.engine={global_batch_size: 8, micro_batch_size: 8}",
        "pretrain.optim={base_lr: 1.6e-1, warmup_epochs: 1}",
    ],
    "hog+mbh": [
        "target={name: joint, parts: [{name: hog}, {name: mbh}]}",
        "pretrain.epochs=12",
        *FAST,
    ],
    "hog+trajectory": [
        "target={name: joint, parts: [{name: hog}, {name: trajectory, length: 4, features:"
        " [position]}]}",
        "pretrain.epochs=7",
    ],
}
"""Overrides of the demo; targets are predicted under a random mask, masks tried on pixels."""


class Silent:
    """Keeps nothing: every run here is from start to end."""

    resume = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def checkpoint(self, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        """Nothing."""

    def preempted(self) -> bool:
        """Never."""
        return False


def experiment(root: str, name: str) -> Experiment:
    """The demo with one mask or target."""
    shared = [f"storage={root}", "finetune=null"]
    return load(Experiment, BASE, [*shared, *VARIANTS[name]]).resolved()


def extract(chosen: Experiment) -> None:
    """Make the clips and find their motion, where that is still to be done."""
    assert chosen.motion is not None
    manifest = Manifest.read(prepare_manifest(chosen))
    store = MotionStore(chosen.root, chosen.motion, manifest.digest)
    if storage.exists(store.index_uri):
        return
    rows = [extract_one(entry, chosen.motion) for entry in manifest.rows()]
    store.write_part(rows, manifest.digest)
    store.write_index({row.id: row_digest(row.video_digest, chosen.motion) for row in rows})


def learn(root: str, name: str, threads: int) -> tuple[str, float, dict[str, float]]:
    """Name, seconds, and what pretraining left in its summary."""
    import torch

    torch.set_num_threads(threads)
    chosen = experiment(root, name)
    started = time.perf_counter()
    outcome = run_stages(chosen, prepare_manifest(chosen), Silent())
    return name, time.perf_counter() - started, outcome["pretrain"]


def main() -> None:
    """Learn and print a line per variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--workers", type=int, default=1, help="variants at a time")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - VARIANTS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as root, ProcessPoolExecutor(arguments.workers) as pool:
        kinds = {}  # clips and motion are shared by most
        for name in arguments.names or VARIANTS:
            chosen = experiment(root, name)
            kinds[fingerprint(chosen.data, chosen.motion)] = chosen
        list(pool.map(extract, kinds.values()))
        print(f"{'variant':18s} {'seconds':>8s} {'loss':>8s} {'constant':>9s} {'ratio':>6s}")
        threads = max(1, (os.cpu_count() or 1) // arguments.workers)
        jobs = [pool.submit(learn, root, name, threads) for name in arguments.names or VARIANTS]
        for job in as_completed(jobs):
            name, seconds, summary = job.result()
            print(
                f"{name:18s} {seconds:8.0f} {summary['held_out/loss']:8.4f}"
                f" {summary['held_out/constant_loss']:9.4f} {summary['held_out/ratio']:6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
