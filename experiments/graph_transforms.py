"""Transforms of graphs that a wiring learns edge by edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.runs import Run


@dataclass(kw_only=True)
class Options:
    """Options of the transforms."""

    batch: int = 8
    """Graphs in a batch."""


def run(options: Any, run: Run) -> dict[str, object]:
    """Train, judge, draw; the keys of the summary."""
    return {"batch": options.transform.batch}
