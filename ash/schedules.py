"""Schedules: numbers that change with the count of optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ash.checks import choose, positive, require

Schedule = Callable[[int], float]


def _linear(start: float, end: float, f: float) -> float:
    return start + (end - start) * f


def _geometric(start: float, end: float, f: float) -> float:
    return start * (end / start) ** f


def _cosine(start: float, end: float, f: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * f))


def _cubic(start: float, end: float, f: float) -> float:
    """Fast at first, as in gradual magnitude pruning (Zhu and Gupta 2017)."""
    return end + (start - end) * (1 - f) ** 3


_SHAPES = {"linear": _linear, "geometric": _geometric, "cosine": _cosine, "cubic": _cubic}


@dataclass(frozen=True)
class Anneal:
    """From `start` to `end` within `steps` optimizer steps, then constant.

    `shape` is `"geometric"` (both ends positive), `"linear"`, `"cosine"` or `"cubic"`.
    """

    start: float
    end: float
    steps: int
    shape: str = "geometric"

    def __post_init__(self) -> None:
        choose("shape of a schedule", self.shape, _SHAPES)
        require(self.steps >= 1, f"steps={self.steps}; expected at least 1 step to anneal over.")
        if self.shape == "geometric":
            positive("start of a geometric schedule", self.start)
            positive("end of a geometric schedule", self.end)

    def __call__(self, step: int) -> float:
        return _SHAPES[self.shape](self.start, self.end, min(1.0, step / self.steps))


def at(value: float | Schedule, step: int) -> float:
    """A constant as it is, a schedule at `step`."""
    return float(value(step)) if callable(value) else float(value)
