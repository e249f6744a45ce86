"""Two processes that know each other, for tests of distributed runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Main = Callable[[int], Any]


def rank_main(rank: int, folder: str, main: Main) -> None:
    """What a rank does: it meets the other, and writes what `main` gives to the folder."""
    torch.set_num_threads(1)
    meeting = f"file://{Path(folder) / 'meeting'}"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=2, timeout=timedelta(seconds=300))
    torch.save(main(rank), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def in_two(main: Main, folder: Path) -> list[Any]:
    """What `main`, a function of a module, gives on rank 0, which is this process, and on rank 1."""
    other = mp.get_context("spawn").Process(target=rank_main, args=(1, str(folder), main))
    other.start()
    rank_main(0, str(folder), main)
    other.join(300)
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
