"""Files that are whole or absent, and JSON that any reader accepts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def plain(value: object) -> Any:
    """`value` in terms of JSON: NaN and infinities become None, tensors and arrays (nested) numbers,
    paths strings, dataclasses objects. Raises `TypeError` for anything else."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(_simpler(value))


def _simpler(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def dumps(value: object, indent: int | None = None) -> str:
    """`plain(value)` as strict JSON."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON; a reader finds the former file or the whole new one."""
    text = dumps(value, indent=2) + "\n"
    replace_whole(path, lambda new: new.write_text(text, encoding="utf-8"))


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it to `path`.

    Whatever stops it, a full disk or an interrupt, leaves the former `path` and nothing beside it.
    """
    new = aside(path)
    try:
        new.unlink(missing_ok=True)
        write(new)
        sync(new)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def alias(path: Path, source: Path) -> None:
    """Make `path` the same file as `source`, or a copy of it on a file system without links."""
    if not (path.exists() and path.samefile(source)):
        replace_whole(path, lambda new: _link(source, new))


def _link(source: Path, new: Path) -> None:
    try:
        os.link(source, new)
    except OSError:
        shutil.copyfile(source, new)


def aside(path: Path) -> Path:
    """The name under which `replace_whole` prepares `path`."""
    return path.with_name(f".{path.name}.new")


def sync(path: Path) -> None:
    """Wait until the content of `path` is on the disk, so that a rename cannot overtake it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
