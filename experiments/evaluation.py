"""`--evaluate FOLDER`: judging what an earlier run has trained."""

from __future__ import annotations

from ash.checks import require
from experiments import checkpoint
from experiments.folder import CHECKPOINT
from experiments.options import EvaluateOptions


def read_run(options: EvaluateOptions, experiment: str) -> checkpoint.Checkpoint:
    """The checkpoint that a run of `experiment` is to be judged by, from its folder or the one of its checkpoints.

    Raises `UserError` for one that is missing, damaged, or of another experiment.
    """
    folder = options.evaluate
    assert folder is not None
    place = folder if folder.name == CHECKPOINT else folder / CHECKPOINT
    saved = checkpoint.read(place, options.checkpoint, judges=True)
    require(
        saved.meta["experiment"] == experiment,
        f"--evaluate {folder}: a checkpoint of {saved.meta['experiment']!r}; expected one of {experiment!r}.",
    )
    return saved
