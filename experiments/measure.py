"""Seconds and bytes of a step: what the benchmark reports, and how it is taken."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from experiments.machine import peak_memory_bytes

LEAST = 3
"""Rounds that are timed even where one of them spends the whole budget."""

TURN = 4
"""Steps of a turn whose seconds are averaged, where they are short."""
TURN_SECONDS = 0.1
"""A turn stops when its steps have taken as long; those of longer steps have one."""


def timed(steps: Mapping[str, Callable[[], object]], budget: float, most: int) -> dict[str, list[float]]:
    """Seconds of each step, round by round: A, B, A, B, …, so that what disturbs the machine disturbs all.

    Steps follow each other as in a training: a turn of A is a step that is not timed, which finds B's numbers in the
    caches, and then the average of some that find A's own. Steps that last longer than a turn run once, since their
    caches matter little. Every step runs once before. Rounds go on until there are `most` or until they have taken
    `budget` seconds together, but there are at least `LEAST`.
    """
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + budget
    for i in range(most):
        if i >= LEAST and time.perf_counter() > end:
            break
        for name, step in steps.items():
            seconds[name].append(_turn(step))
    return seconds


def _turn(step: Callable[[], object]) -> float:
    """Seconds of a step: the average of those that follow a first, or of that one where it takes long."""
    begun = time.perf_counter()
    step()
    first = time.perf_counter() - begun
    if first > TURN_SECONDS:
        return first
    begun, spent, steps = time.perf_counter(), 0.0, 0
    while steps < TURN and spent < TURN_SECONDS:
        step()
        steps, spent = steps + 1, time.perf_counter() - begun
    return spent / steps


def spread(figures: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest of some figures, and how many there are."""
    low, median, high = min(figures), statistics.median(figures), max(figures)
    return {"low": low, "median": median, "high": high, "runs": len(figures)}


def peak_above(prepare: Callable[[], Callable[[], object]], steps: int = 2) -> int:
    """Bytes that a step takes at its peak above the process's base.

    The base is the resident set at the time of the call. `prepare` makes layer and input, which count, and
    returns the step; a second step sees the memory that the first left to the allocator. Linux forgets the
    former peak on request; elsewhere the base is the largest so far.
    """
    base = trimmed_bytes()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    step = prepare()
    for _ in range(steps):
        step()
    return peak_memory_bytes() - base


def trimmed_bytes() -> int:
    """Resident set without what the allocator keeps of former work, where it can be told to let go of it."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def resident_bytes() -> int:
    """Resident set of this process in bytes; where the system does not tell it, the largest so far."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return peak_memory_bytes()
