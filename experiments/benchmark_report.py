"""The figures of the benchmark as a table, as Markdown and as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ash.count import aligned
from ash.plot.curves import INK, LINES, PALE, new_figure, save, tidy
from experiments.files import replace_whole

UNITS = {
    "seconds": ("ms", 1e3),
    "bytes": ("MB", 1e-6),
    "ratio": ("x", 1.0),
    "each": ("B", 1.0),
    "seconds_each": ("µs", 1e6),
}
"""Unit of a figure, and what makes it of seconds, bytes, ratios, or bytes or seconds for each of many things."""

HEAD = ("what", "", "min", "median", "max", "bar", "median / bar", "ok", "error")


@dataclass(frozen=True)
class Row:
    """A figure, in seconds, bytes or as a ratio, beside what it must not exceed.

    Attributes:
        name: its key. what: the same in words. figure: seconds, bytes, ratio, each or seconds_each.
        low, median, high: over the runs; None where it was not measured, which `note` then explains.
        bar: None where nothing is promised.
        error: of the layer against the dense oracle, relative; None for figures that come from others.
        loaded: bytes that a process loads on first use and that the figure does not hold.
        series, size: the curve of the plot that the figure belongs to, and its place there.
    """

    name: str
    what: str
    figure: str
    bar: float | None = None
    low: float | None = None
    median: float | None = None
    high: float | None = None
    error: float | None = None
    loaded: float | None = None
    note: str = ""
    series: str = ""
    size: int = 0

    @property
    def ok(self) -> bool | None:
        """Whether the median keeps to the bar; None without a bar or a figure."""
        return None if self.bar is None or self.median is None else self.median <= self.bar

    @property
    def shown(self) -> bool:
        """Whether there is a figure that a logarithmic axis can show."""
        return self.median is not None and 0 < self.median < math.inf


def table(rows: Sequence[Row]) -> str:
    """The rows as an aligned table."""
    return "\n".join([aligned([HEAD, *map(_cells, rows)], text=2), *_notes(rows)])


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [f"{row.what}: {row.note}" for row in rows if row.note]
    loaded = max((row.loaded for row in rows if row.loaded is not None), default=None)
    if loaded is None:
        return notes
    return [*notes, f"part of the base: up to {loaded / 1e6:.0f} MB that the first step of a process loads"]


def write_markdown(path: Path, rows: Sequence[Row], about: Sequence[str]) -> None:
    """The rows as a Markdown table under the lines `about` them."""
    lines = ["# Benchmark", "", *(f"- {line}" for line in about), "", _line(HEAD)]
    lines += [_line(["---"] * 2 + ["---:"] * (len(HEAD) - 2)), *(_line(_cells(row)) for row in rows)]
    lines += [f"\n{note}" for note in _notes(rows)]
    text = "\n".join(lines) + "\n"
    replace_whole(path, lambda new: new.write_text(text, encoding="utf-8"))


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Time and memory of a step against the number of tuples, both axes logarithmic, with the bars."""
    kinds = [kind for kind in ("seconds", "bytes") if any(_curve(rows, kind, name) for name in _series(rows))]
    figure = new_figure(4.6 * len(kinds), 3.8)
    axes = [figure.add_subplot(1, len(kinds), place + 1) for place in range(len(kinds))]
    for ax, kind in zip(axes, kinds, strict=True):
        _panel(ax, rows, kind)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    save(figure, path)


def _panel(ax: Any, rows: Sequence[Row], kind: str) -> None:
    unit, factor = UNITS[kind]
    for place, name in enumerate(_series(rows)):
        points = _curve(rows, kind, name)
        sizes, colour = [row.size for row in points], LINES[place]
        ax.plot(sizes, [factor * (row.median or 0) for row in points], label=name, color=colour, marker="o")
        barred = [row for row in points if row.bar is not None]
        bars = [factor * (row.bar or 0) for row in barred]
        ax.scatter([row.size for row in barred], bars, color=colour, marker="_", s=120, label=f"{name}: bar")
    tidy(ax)
    ax.set(xscale="log", yscale="log")
    ax.grid(color=PALE, linewidth=0.5, alpha=0.5)
    ax.set_xlabel("k tuples on k × k", color=INK, fontsize=9)
    label = {"ms": "median time of a step, ms", "MB": "peak above the base, MB"}[unit]
    ax.set_ylabel(label, color=INK, fontsize=9)


def _series(rows: Sequence[Row]) -> list[str]:
    return sorted({row.series for row in rows if row.series})


def _curve(rows: Sequence[Row], kind: str, series: str) -> list[Row]:
    own = [row for row in rows if row.series == series and row.figure == kind and row.shown]
    return sorted(own, key=lambda row: row.size)


def _cells(row: Row) -> list[str]:
    unit, factor = UNITS[row.figure]
    figures = [_number(value, factor) for value in (row.low, row.median, row.high, row.bar)]
    share = f"{row.median / row.bar:.2f}" if row.median is not None and row.bar else "–"
    ok = {True: "yes", False: "NO", None: "–"}[row.ok]
    return [row.what, unit, *figures, share, ok, "–" if row.error is None else f"{row.error:.0e}"]


def _number(value: float | None, factor: float) -> str:
    if value is None:
        return "–"
    scaled = value * factor
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
