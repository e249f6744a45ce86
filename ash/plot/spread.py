"""Final figures of several runs of each kind, with their spread."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ash.checks import require
from ash.plot.curves import INK, LINES, PALE, array, new_figure, save, tidy

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


def spread(
    panels: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str] | None = None
) -> matplotlib.figure.Figure:
    """A panel for each entry of `panels` (figure: kind: its values in several runs, one-dimensional).

    A kind is a line: a dot for each run, a mark at the mean, and a bar of one standard deviation (of a sample) to each
    side. NaN is left out. Writes the figure where a path is given. Raises `UserError` for no panel, and for panels of
    different kinds.
    """
    require(len(panels) > 0, "panels is empty; expected at least one figure with its values by kind.")
    kinds = list(next(iter(panels.values())))
    same = len(kinds) > 0 and all(list(panel) == kinds for panel in panels.values())
    require(same, f"panels of different kinds, {kinds[:4]} in the first; expected the same ones in all, at least one.")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    name = min(3.0, 0.075 * max(map(len, kinds)))  # inches that the names of the kinds take
    figure = new_figure(name + 2.6 * columns, rows * (0.8 + 0.28 * len(kinds)))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for ax, (title, panel) in zip(axes, panels.items(), strict=False):
        _panel(ax, title, {kind: array(f"{title!r} of {kind!r}", values, 1) for kind, values in panel.items()})
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    axes[0].set_yticks(range(len(kinds)), kinds)
    axes[0].set_ylim(len(kinds) - 0.5, -0.5)
    if path is not None:
        save(figure, path)
    return figure


def _panel(ax: matplotlib.axes.Axes, title: str, panel: Mapping[str, np.ndarray]) -> None:
    tidy(ax)
    for place, values in enumerate(panel.values()):
        known = values[np.isfinite(values)]
        ax.scatter(known, np.full(len(known), place), s=12, color=INK, alpha=0.45, linewidths=0, zorder=2, gid="runs")
        if len(known):
            side = known.std(ddof=1) if len(known) > 1 else 0.0
            ax.errorbar(known.mean(), place, xerr=side, fmt="|", color=LINES[0], markersize=11, capsize=0, zorder=3)
    ax.grid(axis="x", color=PALE, linewidth=0.5, alpha=0.5)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)
    ax.set_title(title, color=INK, fontsize=9)
