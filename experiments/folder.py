"""The files of a run's folder: their names, and clearing them without touching any other file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ash.checks import require
from experiments import checkpoint, files

CONFIG, METRICS, TIMING = "config.json", "metrics.jsonl", "timing.jsonl"
PICTURES, SUMMARY, CHECKPOINT, BOARD = "pictures.json", "summary.json", "checkpoint", "tensorboard"
EVENTS = "events.out.tfevents.*"
"""Names of TensorBoard's files."""


def check(folder: Path) -> None:
    """Make `folder` and see that it can be written (`OSError` if not) and that no other program's
    configuration lies in it (`UserError`)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / CONFIG
    content = _json(config)
    require(
        not config.exists() or (isinstance(content, dict) and "experiment" in content),
        f"--out {folder} holds a {CONFIG} that is not of a run; expected a new folder or that of an "
        "earlier run; choose another with --out.",
    )
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"writable")


def clear(folder: Path) -> None:
    """Remove what an earlier run left in `folder`, and nothing else."""
    for name in (*pictures(folder), PICTURES, CONFIG, METRICS, TIMING):
        (folder / name).unlink(missing_ok=True)
    for name in (SUMMARY, CONFIG, PICTURES):
        files.aside(folder / name).unlink(missing_ok=True)
    checkpoint.clear(folder / CHECKPOINT)
    _remove(folder / BOARD, EVENTS)


def _remove(folder: Path, pattern: str) -> None:
    """Remove files of a subfolder, and the folder if it is empty then."""
    for path in folder.glob(pattern):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def pictures(folder: Path) -> list[str]:
    """Names of the pictures that the run in `folder` has made so far."""
    listed = _json(folder / PICTURES)
    names = listed if isinstance(listed, list) else []
    return [name for name in names if isinstance(name, str) and inside(folder, name)]


def inside(folder: Path, name: str) -> bool:
    """Whether `name`, taken relative to `folder`, lies in it."""
    base, path = folder.resolve(), (folder / name).resolve()
    return path != base and base in path.parents


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
