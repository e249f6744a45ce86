"""A table of figures as a heat map with the figures in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ash.checks import require
from ash.plot.curves import INK, SEQUENTIAL, Number, add_bar, array, colour_map, new_figure, save, tidy

if TYPE_CHECKING:
    import matplotlib.figure

DARK = 0.45  # from this share of the scale on, figures are written in white


def heat_map(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    limits: tuple[Number, Number] | None = None,
    form: str = "{:.3g}",
    label: str = "",
) -> matplotlib.figure.Figure:
    """A coloured cell with its figure for every entry of a table.

    Args:
        values: `(rows, columns)`; cells that are NaN stay empty.
        rows, columns: their names.
        path: where to write the figure.
        limits: ends of the colours; by default the range of the values.
        form: a format string for the figures. label: of the colour bar.

    Raises `UserError` for names that are not as many as rows and columns, and for a table without cells.
    """
    taken = array("values", values, 2)
    require(taken.shape == (len(rows), len(columns)) and taken.size > 0,
            f"values of shape {taken.shape} for {len(rows)} rows and {len(columns)} columns; expected as many names.")
    finite = taken[np.isfinite(taken)]
    low, high = limits or (float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf)))
    if not low < high:
        low, high = (low - 0.5, low + 0.5) if np.isfinite(low) else (0.0, 1.0)
    figure = new_figure(1.6 + 0.95 * len(columns), 0.9 + 0.42 * len(rows))
    ax = figure.add_subplot()
    ax.imshow(taken, cmap=colour_map(SEQUENTIAL), vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    for (row, column), value in np.ndenumerate(taken):
        if np.isfinite(value):
            colour = "white" if (value - low) / (high - low) > DARK else INK
            ax.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize=9)
    tidy(ax)
    ax.set_xticks(range(len(columns)), [name.replace(" ", "\n") for name in columns])
    ax.set_yticks(range(len(rows)), list(rows))
    ax.tick_params(length=0, labelsize=9, top=False)
    add_bar(figure, ax, (low, high), SEQUENTIAL, label)
    if path is not None:
        save(figure, path)
    return figure
