"""CIFAR-10 in its standard layout, six pickles, read without running any code that they name.

A pickle is a program that may call whatever it names. The unpickler here knows the names that the
standard files use, gives each a stand-in that only keeps its arguments, and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import sources
from experiments.images import DataError, Images, check_labels

FOLDER = "cifar-10-batches-py"
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)
ROW = 3 * 32 * 32


def cifar10(data_dir: Path | str) -> Images:
    """CIFAR-10 from `data_dir` or its subfolder cifar-10-batches-py: pixels (n, 3, 32, 32) uint8.

    Raises `DataError` for a missing, damaged or foreign file, and for a pickle with any name in it that
    the standard files do not use. Source: Krizhevsky, Learning Multiple Layers of Features from Tiny
    Images, 2009.
    """
    folder = _folder(Path(data_dir))
    train_x, train_y = _read_all(folder, TRAIN)
    test_x, test_y = _read_all(folder, TEST)
    return Images(train_x, train_y, test_x, test_y, name="cifar10", classes=10)


def _folder(given: Path) -> Path:
    for folder in (given, given / FOLDER):
        if all((folder / name).is_file() for name in (*TRAIN, *TEST)):
            return folder
    raise DataError(
        f"{given}: no CIFAR-10; expected the files {', '.join((*TRAIN, *TEST))}, there or in {FOLDER}/; "
        "unpack cifar-10-python.tar.gz and give its folder as the data directory."
    )


def _read_all(folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    parts = [_read(folder / name) for name in names]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Pixels (n, 3, 32, 32) uint8 and labels (n,) int64 of one file."""
    try:
        raw = path.read_bytes()
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        entries = {_text(key): value for key, value in content.items()}
        x, y = _pixels(entries["data"]), torch.tensor(entries["labels"], dtype=torch.int64)
    except Exception as problem:  # a damaged pickle fails in any way at all
        raise DataError(
            f"{path}: {type(problem).__name__}: {problem}; expected a file of cifar-10-python.tar.gz; "
            "unpack that archive again."
        ) from None
    check_labels(str(path), x, y, classes=10)
    sources.note(path, raw)
    return x, y


def _pixels(array: Any) -> Tensor:
    _, shape, dtype, by_column, raw = array.state
    if len(shape) != 2 or shape[1] != ROW or _text(dtype.arguments[0]) != "u1":
        raise ValueError(
            f"an array of shape {shape} and type {dtype.arguments[0]!r}, not (n, {ROW}) and 'u1'"
        )
    rows = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_column else "C")
    return torch.from_numpy(rows.reshape(-1, 3, 32, 32).copy())


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _StandIn:
    """Keeps what a pickle would call a function with, and the state that it would set."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Latin1(_StandIn):
    """Stands for `_codecs.encode`, by which Python 3 stores bytes in old protocols."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    STAND_INS = {
        ("numpy.core.multiarray", "_reconstruct"): _StandIn,
        ("numpy._core.multiarray", "_reconstruct"): _StandIn,
        ("numpy", "ndarray"): _StandIn,
        ("numpy", "dtype"): _StandIn,
        ("_codecs", "encode"): _Latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.STAND_INS:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which no such file needs")
        return self.STAND_INS[module, name]
