"""Gates over training: a panel for what each layer is fed by, a line for each gate."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ash.checks import require
from ash.plot.curves import INK, LINES, PALE, array, new_figure, save, tidy

if TYPE_CHECKING:
    import matplotlib.figure

NAMED = 12
"""Up to so many lines a panel has names; more are drawn pale, with their mean."""


def gates(
    steps: Any,
    panels: Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    xlabel: str = "epoch",
    ylabel: str = "gate",
) -> matplotlib.figure.Figure:
    """A panel for each entry of `panels`, all on one scale.

    Args:
        steps: `(s,)`, when the gates were taken.
        panels: title: either names with the gates `(s,)` of each, or the gates `(s, n)` of a connection with a gate
            for every map, which are drawn pale with their mean.
        path: where to write the figure.

    Raises `UserError` for no panel, an empty one, and lengths that differ from that of `steps`.
    """
    require(len(panels) > 0, "panels is empty; expected at least one title with its gates.")
    at = array("steps", steps, 1)
    taken = {title: lines_of(title, given, len(at)) for title, given in panels.items()}
    columns = min(len(taken), 3 if len(taken) != 4 else 2)
    rows = math.ceil(len(taken) / columns)
    figure = new_figure(3.1 * columns + 0.6, 2.3 * rows + 0.3)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for ax, (title, lines) in zip(axes, taken.items(), strict=False):
        _panel(ax, title, at, lines)
    for ax in axes[len(taken) :]:
        ax.set_visible(False)
    low, high = _limits(taken)
    axes[0].set_ylim(low, high)
    figure.supxlabel(xlabel, color=INK, fontsize=9)
    figure.supylabel(ylabel, color=INK, fontsize=9)
    if path is not None:
        save(figure, path)
    return figure


def lines_of(title: str, given: Any, length: int) -> dict[str, np.ndarray]:
    """The gates of a panel by name, each over the steps; columns of an array are numbered."""
    if isinstance(given, Mapping):
        lines = {str(name): array(f"the gates {name!r} of {title!r}", values, 1) for name, values in given.items()}
    else:
        table = array(f"the gates of {title!r}", given, 2)
        lines = {str(number): column for number, column in enumerate(table.T)}
    require(len(lines) > 0, f"{title!r} has no gates; expected at least one; leave the panel out.")
    wrong = [name for name, values in lines.items() if len(values) != length]
    require(not wrong, f"{title!r}: {len(wrong)} gates are not known at all of the {length} steps; expected so many.")
    return lines


def _panel(ax: Any, title: str, at: np.ndarray, lines: dict[str, np.ndarray]) -> None:
    tidy(ax)
    marker = "o" if len(at) == 1 else None
    if len(lines) <= NAMED:
        for place, (name, values) in enumerate(lines.items()):
            ax.plot(at, values, label=name, color=LINES[place % len(LINES)], linewidth=1.4, marker=marker,
                    linestyle=("-", "--")[place // len(LINES) % 2])
    else:
        table = np.stack(list(lines.values()))
        ax.plot(at, table.T, color=PALE, linewidth=0.5, alpha=0.7)
        ax.plot(at, table.mean(0), label=f"mean of {len(table)}", color=LINES[0], linewidth=1.6, marker=marker)
    ax.grid(color=PALE, linewidth=0.5, alpha=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title, color=INK, fontsize=9)
    ax.legend(frameon=False, fontsize=7, labelcolor=INK, loc="best", handlelength=1.4, labelspacing=0.25)


def _limits(taken: Mapping[str, dict[str, np.ndarray]]) -> tuple[float, float]:
    """From 0 to 1, and beyond where gates are."""
    every = np.concatenate([values for lines in taken.values() for values in lines.values()])
    finite = every[np.isfinite(every)]
    low, high = min(0.0, float(finite.min(initial=0))), max(1.0, float(finite.max(initial=0)))
    room = 0.03 * (high - low)
    return low - room, high + room
