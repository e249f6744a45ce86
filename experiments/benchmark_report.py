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
    "density": ("%", 100.0),
}
"""Unit of a figure, and what makes it of seconds, bytes, ratios, or bytes or seconds for each of many things,
or densities."""

HEAD = ("what", "", "min", "median", "max", "bar", "median / bar", "ok", "error")


@dataclass(frozen=True)
class Row:
    """A figure, in seconds, bytes or as a ratio, beside what it must not exceed.

    Attributes:
        name: its key. what: the same in words. figure: seconds, bytes, ratio, each, seconds_each or density.
        low, median, high: over the runs; None where it was not measured, which `note` then explains.
        bar: None where nothing is promised.
        error: of the layer against the dense oracle, relative; None for figures that come from others.
        loaded: bytes that a process loads on first use and that the figure does not hold.
        series, size, axis: the curve of the plot that the figure belongs to, its place there, and what that counts.
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
    size: float = 0
    axis: str = "k tuples on k × k"

    @property
    def ok(self) -> bool | None:
        """Whether the median keeps to the bar; None without a bar or a figure."""
        return None if self.bar is None or self.median is None else self.median <= self.bar

    @property
    def shown(self) -> bool:
        """Whether there is a figure that a logarithmic axis can show."""
        return self.median is not None and 0 < self.median < math.inf


def divided(row: Row, name: str, what: str, by: float, figure: str) -> Row:
    """A row's figures divided by a number."""
    low, median, high = (None if own is None else own / by for own in (row.low, row.median, row.high))
    return Row(name, what, figure, None, low, median, high)


def single(name: str, what: str, ratio: float, bar: float | None) -> Row:
    """A row of one ratio."""
    return Row(name, what, "ratio", bar, ratio, ratio, ratio)


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
    """Time and memory of a step against what every axis counts, all logarithmic, with the bars."""
    shown = [row for row in rows if row.series and row.shown]
    panels = list(dict.fromkeys((row.axis, row.figure) for row in shown))
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(4.6 * columns, 3.8 * lines)
    for place, (axis, kind) in enumerate(panels):
        ax = figure.add_subplot(lines, columns, place + 1)
        _panel(ax, [row for row in shown if (row.axis, row.figure) == (axis, kind)])
        ax.set_xlabel(axis, color=INK, fontsize=9)
    save(figure, path)


def _panel(ax: Any, rows: Sequence[Row]) -> None:
    unit, factor = UNITS[rows[0].figure]
    for place, name in enumerate(sorted({row.series for row in rows})):
        points = sorted((row for row in rows if row.series == name), key=lambda row: row.size)
        heights, colour = [factor * (row.median or 0) for row in points], LINES[place]
        if len(points) == 1:
            ax.axhline(heights[0], label=name, color=colour, linestyle="--")
            continue
        ax.plot([row.size for row in points], heights, label=name, color=colour, marker="o")
        barred = [row for row in points if row.bar is not None]
        bars = [factor * (row.bar or 0) for row in barred]
        if bars:
            ax.scatter([row.size for row in barred], bars, color=colour, marker="_", s=120, label=f"{name}: bar")
    tidy(ax)
    ax.set(xscale="log", yscale="log")
    ax.grid(color=PALE, linewidth=0.5, alpha=0.5)
    label = {"ms": "median time of a step, ms", "MB": "peak above the base, MB"}.get(unit, unit)
    ax.set_ylabel(label, color=INK, fontsize=9)
    ax.legend(frameon=False, fontsize=8, labelcolor=INK)


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
