"""The logged figures of a run for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ash.checks import optional
from experiments.records import is_drawn, net_of


class Board:
    """Writes lines of the metrics as curves: a tag for every figure, and below it one for every net.

    Args:
        writer: a `SummaryWriter`.
    """

    def __init__(self, writer: Any):
        self._writer = writer

    def add(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line, at its step."""
        net = net_of(line)
        for name, value in line.items():
            if is_drawn(name, value) and value is not None:
                self._writer.add_scalar(f"{name}/{net}" if net else name, value, line["step"])

    def flush(self) -> None:
        """Write all of it to the disk."""
        self._writer.flush()


@contextlib.contextmanager
def opened(folder: Path, purge_from: int | None) -> Iterator[Board]:
    """A board that writes into `folder`; what an earlier run wrote there from the step `purge_from` on is hidden.

    Raises `BackendUnavailable` without TensorBoard.
    """
    module = optional("torch.utils.tensorboard", "pip install tensorboard")
    with module.SummaryWriter(str(folder), purge_step=purge_from) as writer:
        yield Board(writer)
