"""What decides whether the same run gives the same bits: threads, MKL's code path, torch's choice of algorithms."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

MKL = "MKL_CBWR"


def settings() -> dict[str, Any]:
    """Those of this process, for `config.json` and checkpoints."""
    return {
        "threads": torch.get_num_threads(),
        "mkl": os.environ.get(MKL),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def differences(then: dict[str, Any]) -> str:
    """How the settings `then` differ from those now, in words; nothing if they do not."""
    other = {name: value for name, value in settings().items() if then.get(name) != value}
    return ", ".join(f"{name} {then.get(name)} (now {value})" for name, value in other.items())


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Inside, operations on the CPU add in one order with several threads too.

    Without it the gradient of `x[indices]`, for one, adds numbers as threads come along. On a GPU operations that have
    no such form would raise, so that nothing is changed there.
    """
    details: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), details.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cpu" and torch.get_num_threads() > 1:
        torch.use_deterministic_algorithms(True)
        details.fill_uninitialized_memory = False  # time, and for no result
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        details.fill_uninitialized_memory = fill
