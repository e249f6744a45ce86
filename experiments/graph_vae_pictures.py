"""Pictures of the graph VAE: samples beside training graphs, reconstructions, degrees, and the course of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import torch

from ash.plot import curves, save
from ash.plot.curves import INK, LINES, new_figure
from experiments.graph_vae_data import Graphs
from experiments.graph_vae_scores import degree_histograms

SIDE, ACROSS, GAP = 1.5, 8, 2.9
STYLES = {"kept": (INK, "solid"), "missed": (LINES[1], (0, (3, 2))), "spurious": (LINES[0], "solid")}


def gallery(rows: Mapping[str, Graphs], path: Path) -> None:
    """A row for each name, of its first graphs."""
    figure, ax = _page(len(rows))
    for row, (name, graphs) in enumerate(rows.items()):
        ax.text(-1, 1.25 - GAP * row, name, color=INK, fontsize=10)
        for column, links in enumerate(matrices(graphs)[:ACROSS]):
            _draw(ax, layout(links) + (GAP * column, -GAP * row), {"kept": links}, len(links))
    save(figure, path)


def reconstructions(wanted: Graphs, found: Graphs, path: Path) -> None:
    """Graphs above, and what became of them below: links that were kept, missed or are spurious."""
    figure, ax = _page(2)
    for row, name in enumerate(("test graphs", "reconstructed")):
        ax.text(-1, 1.25 - GAP * row, name, color=INK, fontsize=10)
    sizes = torch.stack([wanted.nodes, found.nodes], 1).tolist()
    for column, (n, k) in enumerate(sizes[:ACROSS]):
        most = max(n, k)
        links, others = (part.adjacency[column, :most, :most].numpy() for part in (wanted, found))
        places = layout(links | others) + (GAP * column, 0)
        _draw(ax, places, {"kept": links}, n)
        kinds = {"kept": links & others, "missed": links & ~others, "spurious": ~links & others}
        _draw(ax, places - (0, GAP), kinds, k)
    handles = [ax.plot([], [], color=colour, linestyle=style)[0] for colour, style in STYLES.values()]
    figure.legend(handles, list(STYLES), loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


def degrees(sets: Mapping[str, Graphs], path: Path) -> None:
    """The mean share of a graph's nodes that have each number of links."""
    found = {name: degree_histograms(graphs).mean(0).numpy() for name, graphs in sets.items()}
    most = 1 + max(int(np.flatnonzero(shares).max()) for shares in found.values())
    series = {name: (np.arange(most), shares[:most]) for name, shares in found.items()}
    curves(series, path, ylabel="share of the nodes", xlabel="links of a node")


def course(points: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """F1 on the validation graphs over training, of every network."""
    series = {name: ([p["step"] for p in own], [p["validation_f1"] for p in own]) for name, own in points.items()}
    curves(series, path, ylabel="F1 of validation graphs", xlabel="batch")


def matrices(graphs: Graphs) -> list[np.ndarray]:
    """The adjacency matrices, each of its own size."""
    return [matrix[:n, :n].numpy() for matrix, n in zip(graphs.adjacency, graphs.nodes.tolist(), strict=True)]


def layout(links: np.ndarray) -> np.ndarray:
    """`(n, 2)`: a place for every node within -1 and 1; parts of a graph stay near each other."""
    graph = networkx.from_numpy_array(links)
    parts = sorted(networkx.connected_components(graph), key=len)
    graph.add_edges_from((min(parts[-1]), min(part)) for part in parts[:-1])
    laid = networkx.spring_layout(graph, seed=0, iterations=100)
    places = np.array([laid[node] for node in range(len(links))])
    low, high = places.min(0), places.max(0)
    return np.asarray(2 * (places - low) / np.maximum(high - low, 1e-9) - 1)


def _page(rows: int) -> tuple[Any, Any]:
    """A figure with room for rows of graphs, and its axes; drawn as one, which takes a tenth of the time of many."""
    figure = new_figure(SIDE * ACROSS, (SIDE + 0.1) * rows)
    ax = figure.add_subplot()
    ax.set(xlim=(-1.2, GAP * ACROSS - 1.4), ylim=(1.2 - GAP * rows, 1.7), aspect="equal")
    ax.set_axis_off()
    return figure, ax


def _draw(ax: Any, places: np.ndarray, kinds: Mapping[str, np.ndarray], nodes: int) -> None:
    """Links of several kinds between places, and as many nodes."""
    from matplotlib.collections import LineCollection

    for name, links in kinds.items():
        colour, style = STYLES[name]
        lines = list(places[np.argwhere(np.tril(links))])
        ax.add_collection(LineCollection(lines, colors=colour, linestyles=style, linewidths=0.9, gid=name))
    ax.scatter(places[:nodes, 0], places[:nodes, 1], s=14, color=INK, linewidths=0, zorder=3, gid="nodes")
