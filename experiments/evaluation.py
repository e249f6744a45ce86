"""`--evaluate FOLDER`: judging what an earlier run has trained."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from ash.checks import require
from experiments import checkpoint
from experiments.folder import CHECKPOINT
from experiments.options import EvaluateOptions

Chosen = TypeVar("Chosen", bound=EvaluateOptions)


def read_run(options: EvaluateOptions, experiment: str) -> checkpoint.Checkpoint:
    """The checkpoint that a run of `experiment` is to be judged by, from its folder or the one of its checkpoints.

    Raises `UserError` for one that is missing, damaged, or of another experiment.
    """
    folder = options.evaluate
    assert folder is not None
    saved = checkpoint.read(folder if folder.name == CHECKPOINT else folder / CHECKPOINT, options.checkpoint)
    require(
        saved.meta["experiment"] == experiment,
        f"--evaluate {folder}: a checkpoint of {saved.meta['experiment']!r}; expected one of {experiment!r}.",
    )
    return saved


def kept_apart(options: Chosen) -> Chosen:
    """The options with a folder inside the run's, where an evaluation would write over the run that it reads."""
    out, read = options.out, options.evaluate
    if read is None or out is None or read.resolve() != out.resolve():
        return options
    return dataclasses.replace(options, out=out / "evaluation")
