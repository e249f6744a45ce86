"""The options that every experiment has, and which of them a resumed run must share."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch

from ash.checks import positive, require
from experiments.files import plain
from experiments.folder import CHECKPOINT


@dataclass(kw_only=True)
class RunOptions:
    """Options that every experiment has; an experiment's `Options` derives from it and gives every
    option a default."""

    out: Path | None = None
    """Folder of the run; runs/NAME if not given."""
    seed: int = 0
    """Seed of every draw."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes the GPU if there is one."""
    resume: bool = False
    """Go on from a checkpoint in the folder."""
    checkpoint: Literal["last", "previous", "best"] = "last"
    """From which one: the last, the one before it, or the best on the validation set."""
    time_limit: float | None = None
    """Seconds after which the run stops where it can go on, with exit status 124."""
    tensorboard: bool = False
    """Write the logged figures for TensorBoard too."""
    quick: bool = False
    """A few steps only, to see that it runs."""
    preset: str | None = None
    """Settings by name; options given beside it take precedence."""

    def resolved(self) -> RunOptions:
        """The options with what depends on others decided; called once or more before a run. Raises `UserError`."""
        return self

    may_change: ClassVar[frozenset[str]] = frozenset(
        {"out", "resume", "checkpoint", "time_limit", "tensorboard", "device", "preset"}
        | {"steps", "epochs", "data_dir", "download"}
    )
    """Options that may differ from the checkpoint's when a run is resumed."""


@dataclass
class EvaluateOptions(RunOptions):
    """Options of experiments whose runs can be judged later."""

    evaluate: Path | None = None
    """Folder of a run: judge what it has trained, in the state of its --checkpoint; what is found goes to evaluation/
    in that folder, if --out names no other."""

    may_change: ClassVar[frozenset[str]] = RunOptions.may_change | {"evaluate"}


Chosen = TypeVar("Chosen", bound=RunOptions)


def resolve(name: str, options: Chosen) -> Chosen:
    """`options` of experiment `name` with the folder and the device decided."""
    require(0 <= options.seed < 2**63, f"--seed {options.seed}; expected a number from 0 to 2**63 - 1.")
    require(
        options.device != "cuda" or torch.cuda.is_available(),
        "--device cuda, but torch finds no GPU; expected one; use --device cpu or auto.",
    )
    read = options.evaluate if isinstance(options, EvaluateOptions) else None
    require(
        options.resume or read is not None or options.checkpoint == "last",
        f"--checkpoint {options.checkpoint} without a run that has one; expected --resume beside it, or --evaluate.",
    )
    positive("--time-limit", math.inf if options.time_limit is None else options.time_limit)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    out = options.out or Path("runs") / name if read is None else _apart(options.out, read)
    return cast(Chosen, dataclasses.replace(options, out=out, device=device).resolved())


def _apart(out: Path | None, read: Path) -> Path:
    """Where an evaluation writes: inside the folder of the run that it reads, and not over it, if nowhere else."""
    run = read.parent if read.name == CHECKPOINT else read
    require(run.is_dir(), f"--evaluate {read}: no such folder; expected that of a run.")
    return run / "evaluation" if out is None or out.resolve() == run.resolve() else out


def fixed(options: RunOptions) -> dict[str, Any]:
    """The options that a resumed run must share."""
    return plain({k: v for k, v in dataclasses.asdict(options).items() if k not in options.may_change})


def check_same_run(meta: dict[str, Any], name: str, options: RunOptions) -> None:
    """Raise `UserError` unless the checkpoint described by `meta` is of a run with these options."""
    require(
        meta["experiment"] == name,
        f"the checkpoint is of the experiment {meta['experiment']!r}; expected {name!r}; "
        "choose another folder with --out.",
    )
    now, then = fixed(options), meta["options"]
    differing = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
    flags = [f"--{key.replace('_', '-')} {then.get(key)} (now {now.get(key)})" for key in differing]
    require(
        not differing,
        f"the checkpoint was made with {', '.join(flags)}; expected the same options; "
        "give those, or start anew without --resume.",
    )
