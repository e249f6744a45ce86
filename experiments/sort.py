"""Sort a vector of uniform numbers with one adaptive layer; only the sorted vector supervises."""

from __future__ import annotations

from experiments.runs import Run
from experiments.sort_options import PRESETS, Options
from experiments.sorting_task import Sorter

__all__ = ["PRESETS", "Options", "run"]


def run(options: Options, run: Run) -> dict[str, object]:
    """Train one sorter, judge it on fresh vectors, draw it; the keys of the summary."""
    sorter = Sorter(options, run.device)
    sorter.train(run)
    summary = sorter.summary()
    sorter.draw(run)
    return summary
