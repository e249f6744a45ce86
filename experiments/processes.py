"""Several processes that train one model: who this process is, and how Lightning Fabric starts and joins them.

`torchrun --nproc-per-node 2 -m experiments NAME …` starts them all; `python -m experiments NAME --processes 2 …` is the
first of them and starts the others. Rank 0 keeps the run folder; the others keep theirs in a temporary one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ash import data_parallel
from ash.checks import UserError, require
from experiments.folder import CHECKPOINT, METRICS, TIMING
from experiments.options import RunOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WAIT = timedelta(seconds=45)
"""How long a rank waits for one that hangs. One that has died is noticed at once."""
PRECISIONS = {"32": "32-true", "bf16-mixed": "bf16-mixed"}
"""Fabric's names."""
SIGNS = ("Connection closed by peer", "Connection reset by peer", "Timed out", "Broken pipe", "NCCL", "gloo")
"""Words of errors that another rank's end gives rise to."""

Chosen = TypeVar("Chosen", bound=RunOptions)


def rank() -> int:
    """The number of this process among those that train together, from 0; 0 if it is alone."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes a launcher has started; 1 before that."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextlib.contextmanager
def followed(name: str, options: Chosen) -> Iterator[Chosen]:
    """The options as they are on rank 0. On the others nothing is printed, and the run's folder is a temporary one.

    `cuda` is from here on the GPU of this process.
    """
    if world_size() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    if not rank():
        yield options
        return
    first = options.out or Path("runs") / name
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        own = Path(folder) / "run"
        own.mkdir()
        if options.resume and first.is_dir():
            _copy(first, own)
        with contextlib.redirect_stdout(nowhere):
            yield dataclasses.replace(options, out=own)


def _copy(first: Path, own: Path) -> None:
    """Copy logs and checkpoints while rank 0 may be removing those of them that nobody goes on from."""
    (own / CHECKPOINT).mkdir()
    for path in (first / METRICS, first / TIMING, *(first / CHECKPOINT).glob("*")):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(path, own / path.relative_to(first))


@cache
def fabric(device: torch.device, count: int, precision: str) -> Fabric:
    """Fabric for a training on `device`, all its processes joined. Raises `UserError` for what cannot be started."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

    class Ranks(DDPStrategy):
        """Training of models with wirings: see `ash.data_parallel`."""

        def setup_module(self, module: nn.Module) -> DistributedDataParallel:
            """The wrapped model."""
            return data_parallel(module, device_ids=self._determine_ddp_device_ids())

    world = world_size()
    require(
        world == 1 or count in (1, world),
        f"--processes {count} in one of {world} processes that a launcher started; leave --processes out.",
    )
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or max(world, count))
    require(
        device.type != "cuda" or here <= torch.cuda.device_count(),
        f"{here} processes, each with a GPU of its own, where there are {torch.cuda.device_count()}; "
        "expected at most as many; use --device cpu or fewer processes.",
    )
    options: dict[str, Any] = {"accelerator": device.type, "precision": PRECISIONS[precision], "devices": here}
    if max(world, count) > 1:
        options |= {"strategy": Ranks(timeout=WAIT), "num_nodes": max(1, world // here)}
    made = Fabric(**options)
    made.launch()
    return made


def lost(problem: RuntimeError) -> UserError | None:
    """What to tell of an error that comes of another rank's end; None for any other."""
    text = str(problem)
    if world_size() == 1 or not any(sign in text for sign in SIGNS):
        return None
    return UserError(
        f"rank {rank()} of {world_size()} no longer reaches another one, which has ended or hangs "
        f"({text.splitlines()[0][:160]}); go on from the last checkpoint with --resume."
    )
