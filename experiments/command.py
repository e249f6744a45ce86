"""Starting one experiment from the command line: options, run folder, exit status."""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import tyro

from ash.checks import UserError, choose, require
from experiments import processes
from experiments.loop import LoopOptions
from experiments.options import RunOptions
from experiments.runs import Run, Stopped

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Failures of a disk that are no defect of the program: it is full, or can no longer be written."""


def start(name: str, module: ModuleType, arguments: Sequence[str]) -> int:
    """Run the experiment `name` of `module`; the exit status: 0, or 2 for an error of use, of data or of the disk.

    A run that was told to stop and has done so gives 130 (SIGINT), 143 (SIGTERM) or 124 (`--time-limit`).

    `module` has a dataclass `Options(RunOptions)`, a function `run(options, run)` that returns its keys
    of the summary, and maybe `PRESETS`, functions from options to options. A wrong option makes tyro
    raise `SystemExit(2)`; any other error is a defect and keeps its traceback.
    """
    try:
        options = parse(name, module, arguments)
        _check_processes(name, options)
        with processes.followed(name, options) as own, Run(name, own) as run:
            torch.manual_seed(run.options.seed)
            run.finish(module.run(run.options, run))
    except (UserError, Stopped) as end:
        if isinstance(end, UserError) or not processes.rank():
            print(f"{name}: {end}", file=sys.stderr)
        return end.status if isinstance(end, Stopped) else 2
    except RuntimeError as problem:
        lost = processes.lost(problem)
        if lost is None:
            raise
        print(f"{name}: {lost}", file=sys.stderr)
        return 1
    except OSError as problem:
        if problem.errno not in DISK:
            raise
        print(f"{name}: {problem}; expected a folder with space that can be written.", file=sys.stderr)
        return 2
    return 0


def _check_processes(name: str, options: RunOptions) -> None:
    """Raise `UserError` if a launcher has started several processes of an experiment that trains in one."""
    world = processes.world_size()
    require(
        world == 1 or isinstance(options, LoopOptions),
        f"{name} was started as {world} processes, which it does not divide its work among; expected one: "
        "start it without torchrun.",
    )


def parse(name: str, module: ModuleType, arguments: Sequence[str]) -> Any:
    """`arguments` as the module's `Options`; a preset replaces the defaults, not what is given beside it."""
    presets = getattr(module, "PRESETS", {})
    read = functools.partial(
        tyro.cli,
        module.Options,
        prog=f"python -m experiments {name}",
        description=_description(module, presets),
        args=list(arguments),
    )
    options = read()
    if options.preset is None:
        return options
    require(bool(presets), f"--preset {options.preset}: {name} has no presets; leave it out.")
    preset = choose("preset", options.preset, presets)(module.Options())
    return read(default=dataclasses.replace(preset, preset=options.preset))


def _description(module: ModuleType, presets: dict[str, Any]) -> str:
    text = inspect.cleandoc(module.__doc__ or "")
    return f"{text}\n\nPresets: {', '.join(presets)}" if presets else text
