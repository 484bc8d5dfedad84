"""Work that takes two ranks, in two processes of a group of their own."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

LONGEST_S = 300


def in_two_ranks(work: Callable[..., None], folder: Path, *args: object) -> None:
    """Call `work(rank, folder, *args)` on two ranks; both must come to their end."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_as_rank, args=(rank, folder, work, args)) for rank in range(2)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + LONGEST_S
    for process in ranks:
        process.join(max(0, deadline - time.monotonic()))
    stuck = [process for process in ranks if process.is_alive()]
    for process in stuck:
        process.kill()
        process.join()
    assert not stuck
    assert [process.exitcode for process in ranks] == [0, 0]


def _as_rank(rank: int, folder: Path, work: Callable[..., None], args: tuple[object, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    work(rank, folder, *args)
