"""Motion extraction: videos per second through Ray against a plain process pool, and by method.

    python benchmarks/extraction.py                     # known-answer-like clips, made here
    python benchmarks/extraction.py --videos FOLDER     # your own mp4 files

Two questions, each answered as a ratio against a named peer measured in the same run:

1. What does the pipeline cost? Videos per second of `kinema.pipelines.extract` on 1 and 2 cores
   against `concurrent.futures.ProcessPoolExecutor` running the very same `extract_one`, OpenCV on
   one thread in both. Steady state: from the moment when every worker has finished a video to
   the moment when the first worker runs out of them. Excluded are start-up (Ray, processes,
   imports) and the tail; both are printed as seconds.
2. What does optical flow cost? Videos per second and core of decoding alone, and of extraction with
   codec motion vectors, DIS, Farneback and TV-L1, in one process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np

from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import DIS, TVL1, CodecVectors, Farneback
from kinema.motion.store import MotionStore
from kinema.pipelines.cluster import connect, disconnect
from kinema.pipelines.isolation import Packed
from kinema.pipelines.one_video import extract_one
from kinema.pipelines.over_videos import VideoJob, stream
from kinema.video.decode import iterate_frames, probe
from kinema.video.manifest import Entry


@dataclass(frozen=True)
class Rate:
    """Videos per second in the steady state, and what was left out of it in seconds."""

    videos_per_s: float
    startup_s: float
    tail_s: float


def steady(finished: Iterable[tuple[str, float]], started: float, ended: float) -> Rate:
    """The rate between every worker's first video and the first worker's last one.

    Args:
        finished: (worker, seconds since 1970) of each video.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for worker, at in finished:
        times[worker].append(at)
    begin = max(min(own) for own in times.values())
    end = min(max(own) for own in times.values())
    count = sum(begin < at <= end for own in times.values() for at in own)
    return Rate(count / (end - begin), begin - started, ended - end)


def through_ray(entries: Sequence[Entry], config: MotionConfig, cores: int) -> Rate:
    """The project's pipeline on `cores` cores of the connected cluster, into a new store."""
    with tempfile.TemporaryDirectory() as root:
        started = time.time()
        job = VideoJob(Packed.of(extract_one, config), MotionStore(root, config).write_part, 600.0)
        summaries = list(stream(entries, job, cores))
        ended = time.time()
    failed = [summary["why"] for summary in summaries if summary["why"] is not None]
    if failed:
        sys.exit(f"{len(failed)} videos failed, first: {failed[0]}")
    finished = [(summary["worker"], summary["finished_at"]) for summary in summaries]
    return steady(finished, started, ended)


def through_pool(entries: Sequence[Entry], config: MotionConfig, cores: int) -> Rate:
    """A plain pool of `cores` processes; nothing is written."""
    started = time.time()
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_timed, entry, config) for entry in entries]
        finished = [future.result() for future in as_completed(futures)]
    return steady(finished, started, time.time())


def _timed(entry: Entry, config: MotionConfig) -> tuple[str, float]:
    extract_one(entry, config)
    return str(os.getpid()), time.time()


def compare_pipelines(entries: Sequence[Entry], config: MotionConfig, rounds: int) -> list[float]:
    """Print both rates per number of cores; returns the ratios, best round against best round."""
    ratios = []
    print(
        f"\n{'cores':>5}  {'ray videos/s':>12}  {'pool videos/s':>13}  {'ratio':>5}"
        f"  {'ray start-up, tail s':>20}  {'pool start-up, tail s':>21}"
    )
    for cores in (1, 2):
        pairs = []
        for _ in range(rounds):  # in turn, so that a busy machine hits both
            pool = through_pool(entries, config, cores)
            pairs.append((through_ray(entries, config, cores), pool))
        ray_rate = max((pair[0] for pair in pairs), key=lambda rate: rate.videos_per_s)
        pool_rate = max((pair[1] for pair in pairs), key=lambda rate: rate.videos_per_s)
        ratios.append(ray_rate.videos_per_s / pool_rate.videos_per_s)
        print(
            f"{cores:>5}  {ray_rate.videos_per_s:>12.2f}  {pool_rate.videos_per_s:>13.2f}"
            f"  {ratios[-1]:>5.2f}  {ray_rate.startup_s:>12.1f}, {ray_rate.tail_s:>6.1f}"
            f"  {pool_rate.startup_s:>13.1f}, {pool_rate.tail_s:>6.1f}"
        )
    return ratios


def compare_methods(entries: Sequence[Entry], base: MotionConfig) -> None:
    """Print videos and frames per second of each source of motion in this process."""
    frames = sum(entry.num_frames for entry in entries)
    print(f"\n{'one core':<22}  {'videos/s':>8}  {'frames/s':>8}  {'times tvl1':>10}")
    flows = {
        "codec vectors": CodecVectors(),
        "dis": DIS(),
        "farneback": Farneback(),
        "tvl1": TVL1(),
    }
    seconds = {"decoding alone": _seconds(_decode, entries)}
    for name, flow in flows.items():
        config = base.model_copy(update={"flow": flow})
        seconds[f"decoding + {name}"] = _seconds(partial(extract_one, config=config), entries)
    slowest = seconds["decoding + tvl1"]
    for name, spent in seconds.items():
        print(
            f"{name:<22}  {len(entries) / spent:>8.2f}  {frames / spent:>8.1f}"
            f"  {slowest / spent:>10.1f}"
        )


def _decode(entry: Entry) -> None:
    for _ in iterate_frames(entry.path):
        pass


def _seconds(work: Callable[[Entry], object], entries: Sequence[Entry]) -> float:
    work(entries[0])
    started = time.perf_counter()
    for entry in entries:
        work(entry)
    return time.perf_counter() - started


def make_videos(folder: Path, count: int, size: int, num_frames: int) -> list[Path]:
    """H.264 clips (P frames only) of a textured square over a blurred background."""
    rng = np.random.default_rng(0)
    background = rng.integers(60, 190, (size // 16, size // 16, 3)).repeat(16, 0).repeat(16, 1)
    square = rng.integers(0, 255, (8, 8, 3)).repeat(size // 32, 0).repeat(size // 32, 1)
    side = len(square)
    paths = []
    for index in range(count):
        paths.append(folder / f"clip{index:04}.mp4")
        with av.open(str(paths[-1]), "w") as container:
            coded = container.add_stream("libx264", rate=12)
            coded.width = coded.height = size
            coded.pix_fmt, coded.options = "yuv420p", {"crf": "18", "bf": "0", "refs": "1"}
            left, top = rng.integers(0, size - side, 2)
            for number in range(num_frames):
                frame = background.astype(np.uint8)
                x = (left + 3 * number) % (size - side)
                frame[top : top + side, x : x + side] = square
                container.mux(coded.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(coded.encode())
    return paths


def entries_of(paths: Sequence[Path]) -> list[Entry]:
    """Manifest entries of video files."""
    entries = []
    for path in paths:
        info = probe(str(path), decode=False)
        shape = {"width": info.width, "height": info.height, "num_frames": info.num_frames}
        entries.append(
            Entry(
                id=path.stem,
                path=str(path),
                split="train",
                label=None,
                group=None,
                start_s=None,
                end_s=None,
                fps=info.fps,
                **shape,
            )
        )
    return entries


def main() -> int:
    """Run both comparisons; exit 1 when a ratio lies under `--at-least`."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--videos", type=Path, help="folder of mp4 files; made when absent")
    parser.add_argument("--count", type=int, default=120, help="videos in the first comparison")
    parser.add_argument("--methods-count", type=int, default=8, help="videos in the second")
    parser.add_argument("--size", type=int, default=128, help="side of made videos, px")
    parser.add_argument("--num-frames", type=int, default=24, help="frames of made videos")
    parser.add_argument("--flow", choices=["dis", "tvl1", "farneback"], default="dis")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--at-least", type=float, default=0.0, help="smallest ratio that passes")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    flow = {"dis": DIS(), "tvl1": TVL1(), "farneback": Farneback()}[given.flow]
    config = MotionConfig(flow=flow)
    with tempfile.TemporaryDirectory() as folder:
        if given.videos is None:
            paths = make_videos(Path(folder), given.count, given.size, given.num_frames)
        else:
            paths = sorted(given.videos.rglob("*.mp4"))[: given.count]
        entries = entries_of(paths)
        first = entries[0]
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}; {len(entries)} videos, {first.width}x"
            f"{first.height}, {first.num_frames} frames, H.264; flow {given.flow}"
        )
        compare_methods(entries[: given.methods_count], config)
        connect(num_cpus=2)
        ratios = compare_pipelines(entries, config, given.rounds)
        disconnect()
    return 0 if min(ratios) >= given.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
