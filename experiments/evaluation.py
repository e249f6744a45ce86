"""`--evaluate FOLDER`: judging what an earlier run has trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from ash.checks import require
from experiments import checkpoint
from experiments.folder import CHECKPOINT
from experiments.options import RunOptions

Chosen = TypeVar("Chosen", bound=RunOptions)


def read_run(folder: Path, experiment: str) -> checkpoint.Checkpoint:
    """The checkpoint of a run of `experiment`, from its folder or the one of its checkpoint.

    Raises `UserError` for one that is missing, damaged, or of another experiment.
    """
    saved = checkpoint.read(folder / CHECKPOINT if folder.name != CHECKPOINT else folder)
    require(
        saved.meta["experiment"] == experiment,
        f"--evaluate {folder}: a checkpoint of {saved.meta['experiment']!r}; expected one of {experiment!r}.",
    )
    return saved


def kept_apart(options: Chosen, evaluate: Path | None) -> Chosen:
    """The options with a folder inside the run's, where an evaluation would write over the run that it reads."""
    out = options.out
    if evaluate is None or out is None or evaluate.resolve() != out.resolve():
        return options
    return dataclasses.replace(options, out=out / "evaluation")
