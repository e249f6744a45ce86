"""Drawings of graphs abreast, each with a layout of its own and nodes in colours that a legend explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import networkx
import numpy as np

from ash.plot.curves import INK, LINES, PALE, new_figure, save, tidy

PANEL = 3.6
COLOURS = {"seed": INK, "hit": LINES[2], "missed": LINES[1], "spurious": LINES[0], "other": PALE}


class Panel(NamedTuple):
    """A graph with a title, and nodes by the kind (of `COLOURS`) that they are; the rest are `"other"`."""

    graph: networkx.Graph[Any]
    title: str
    marked: Mapping[str, Sequence[int]]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """The panels side by side."""
    figure = new_figure(PANEL * len(panels), PANEL + 0.4)
    for place, panel in enumerate(panels):
        ax = figure.add_subplot(1, len(panels), place + 1)
        ax.set_title(panel.title, color=INK, fontsize=9)
        _draw(ax, panel)
    save(figure, path)


def _draw(ax: Any, panel: Panel) -> None:
    """Links, then nodes, those that are marked larger and on top."""
    from matplotlib.collections import LineCollection

    graph = networkx.convert_node_labels_to_integers(panel.graph)
    laid = networkx.spring_layout(graph, seed=0, k=2.5 / np.sqrt(len(graph)), iterations=80)
    places = np.array([laid[node] for node in graph])
    lines = [places[list(edge)] for edge in graph.edges]
    ax.add_collection(LineCollection(lines, colors=INK, linewidths=0.6, alpha=0.4))
    marked = {node for nodes in panel.marked.values() for node in nodes}
    rest = [node for node in graph if node not in marked]
    size = float(np.clip(1500 / len(places), 8, 50))
    for name, nodes in {"other": rest, **panel.marked}.items():
        own = places[list(nodes)].reshape(-1, 2)
        label = None if name == "other" else f"{name} {len(nodes)}" if name != "seed" else name
        look = {"s": size if name == "other" else 2.2 * size, "color": COLOURS[name], "linewidths": 0}
        ax.scatter(own[:, 0], own[:, 1], zorder=2 if name == "other" else 3, label=label, **look)
    if panel.marked:
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0.02),
            ncols=4,
            frameon=False,
            fontsize=7,
            labelcolor=INK,
            handletextpad=0.2,
        )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()


def strips(kinds: Mapping[str, tuple[Any, Any]], threshold: float, path: Path) -> None:
    """A row of dots for every kind of pairs: log distances, isomorphic pairs above, others below, and the threshold.

    Args:
        kinds: by name the log distances `(pairs,)` and whether the pairs are isomorphic `(pairs,)`.
    """
    figure = new_figure(6.4, 0.5 * len(kinds) + 0.9)
    ax = figure.add_subplot()
    tidy(ax)
    for place, (found, same) in enumerate(kinds.values()):
        for truth, colour, lift in ((True, LINES[2], -0.15), (False, LINES[0], 0.15)):
            own = np.asarray(found)[np.asarray(same) == truth] / np.log(10)
            label = ("isomorphic" if truth else "not isomorphic") if place == 0 else None
            ax.scatter(own, np.full(len(own), place + lift), s=14, color=colour, alpha=0.4, linewidths=0, label=label)
    ax.axvline(threshold / np.log(10), color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="threshold")
    ax.set_yticks(range(len(kinds)), [name.replace("_", " ") for name in kinds])
    ax.invert_yaxis()
    ax.set_xlabel("log10 of the distance", color=INK, fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)
