"""Graphs beside their transforms, as drawings whose edges are coloured by agreement, and as images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ash.checks import optional, positive, require
from ash.plot.curves import HEAT, INK, LINES, Number, add_bar, array, colour_map, new_figure, save, tidy
from ash.plot.topology import HINT
from ash.sparse_batch import SparseBatch

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

AGREEMENT = {"hit": (LINES[2], "solid"), "missed": (LINES[1], (0, (3, 2))), "spurious": (LINES[0], "solid")}
PANEL = 3.6  # inches along a side


def graph_pair(
    source: Any,
    target: Any,
    prediction: Any = None,
    path: str | os.PathLike[str] | None = None,
    *,
    directed: bool | None = None,
    threshold: Number = 0.5,
    titles: tuple[str, ...] = ("graph", "transform", "prediction"),
    seed: int = 0,
) -> matplotlib.figure.Figure:
    """A graph, its transform, and what was predicted of it, side by side; every node keeps its place.

    Args:
        source, target: an adjacency matrix `(n, n)`, or a `SparseBatch` of one; entry (u, v) is the edge from u to v.
        prediction: the same; None leaves the third panel out. Its edges, and those that it lacks, are coloured by
            agreement with the target: hit, missed (dashed), spurious. A legend tells how many of each there are.
        path: where to write the figure.
        directed: draw heads of arrows; by default where one of the matrices is not symmetric.
        threshold: |value| from which on an entry of the target or of the prediction is an edge.
        titles: of the panels.
        seed: of the layout, networkx' spring layout of the edges of graph and transform together.

    A loop is a ring around its node. Raises `UserError` for matrices that are not square or differ in size.
    """
    positive("threshold", threshold)
    given = {"source": source, "target": target} | ({} if prediction is None else {"prediction": prediction})
    found = {name: _edges(name, value, 0.0 if name == "source" else threshold) for name, value in given.items()}
    _check_sizes(found)
    arrows = any((edges != edges.T).any() for edges in found.values()) if directed is None else directed
    places = _places(found["source"] | found["target"], seed)
    figure = new_figure(PANEL * len(found), PANEL + 0.5)
    for place, (name, edges) in enumerate(found.items()):
        ax = figure.add_subplot(1, len(found), place + 1)
        _draw(ax, places, _colours(name, edges, found["target"]), arrows)
        ax.set_title(titles[place], color=INK, fontsize=10)
    if path is not None:
        save(figure, path)
    return figure


def adjacency_pair(
    target: Any,
    prediction: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    source: Any = None,
    value_limit: Number | None = None,
    titles: tuple[str, ...] = ("graph", "target", "prediction"),
) -> matplotlib.figure.Figure:
    """The adjacency matrices of a target and of its prediction as images, colours by sign: from down, to the right.

    Args:
        target, prediction: a matrix `(n, n)`, or a `SparseBatch` of one; entry (u, v) is the edge from u to v.
        path: where to write the figure.
        source: the graph that they transform, in a panel before them.
        value_limit: end of the colours, symmetric about zero; by default the largest |value| of all.
        titles: of the graph, the target and the prediction.

    Raises `UserError` for matrices that are not square or differ in size.
    """
    given = {} if source is None else {titles[0]: source}
    taken = {name: _matrix(name, value) for name, value in (given | {titles[1]: target, titles[2]: prediction}).items()}
    _check_sizes(taken)
    limit = float(value_limit or max(np.abs(matrix).max() for matrix in taken.values()) or 1.0)
    smooth = "nearest" if len(taken[titles[1]]) <= 400 else "antialiased"  # else entries would fall between pixels
    figure = new_figure(PANEL * len(taken) + 0.8, PANEL)
    axes = [figure.add_subplot(1, len(taken), place + 1) for place in range(len(taken))]
    for ax, (name, matrix) in zip(axes, taken.items(), strict=True):
        ax.imshow(matrix, cmap=colour_map(HEAT), vmin=-limit, vmax=limit, interpolation=smooth)
        ax.set_title(name, color=INK, fontsize=10)
        ax.set_xlabel("to", color=INK, fontsize=9)
        tidy(ax)
    axes[0].set_ylabel("from", color=INK, fontsize=9)
    add_bar(figure, axes, (-limit, limit), HEAT, "value")
    if path is not None:
        save(figure, path)
    return figure


def _matrix(name: str, value: Any) -> np.ndarray:
    if isinstance(value, SparseBatch):
        require(len(value) == 1, f"{name}: a batch of {len(value)} graphs; expected one, such as batch[0].")
        value = value.to_dense()[0]
    taken = array(name, value, 2)
    require(taken.shape[0] == taken.shape[1] > 0, f"{name} of shape {taken.shape}; expected (n, n), from x to.")
    return taken


def _edges(name: str, value: Any, threshold: Number) -> np.ndarray:
    """Which entries are edges, `(n, n)`: all that are not 0, or those from a threshold on."""
    matrix = np.abs(_matrix(name, value))
    edges: np.ndarray = matrix >= threshold if threshold else matrix > 0
    return edges


def _check_sizes(matrices: Mapping[str, np.ndarray]) -> None:
    sizes = {name: len(matrix) for name, matrix in matrices.items()}
    require(len(set(sizes.values())) == 1, f"graphs of {sizes} nodes; expected the same nodes in all.")


def _colours(name: str, edges: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """The edges of a panel by what they are called."""
    if name != "prediction":
        return {"edges": edges}
    return {"hit": edges & target, "missed": ~edges & target, "spurious": edges & ~target}


def _places(edges: np.ndarray, seed: int) -> np.ndarray:
    """`(n, 2)`: a place for every node within -1 and 1; nodes without an edge to another stand in a row below."""
    networkx = optional("networkx", HINT)
    linked = edges | edges.T
    np.fill_diagonal(linked, False)
    alone = ~linked.any(1)
    places = np.stack([np.linspace(-1, 1, len(edges)), np.full(len(edges), -1.0)], 1)
    places[alone, 0] = np.linspace(-1, 1, int(alone.sum()) + 2)[1:-1]
    graph = networkx.from_numpy_array(linked[np.ix_(~alone, ~alone)])
    if len(graph):
        laid = networkx.spring_layout(graph, seed=seed, k=3 / np.sqrt(len(graph)), iterations=80)
        spread = np.array([laid[node] for node in range(len(graph))])
        low, high = spread.min(0), spread.max(0)
        floor = np.array([-1.0, -0.85 if alone.any() else -1.0])
        places[~alone] = floor + (1 - floor) * (spread - low) / np.maximum(high - low, 1e-9)
    return places


def _draw(ax: matplotlib.axes.Axes, places: np.ndarray, kinds: Mapping[str, np.ndarray], arrows: bool) -> None:
    """Edges of several kinds between nodes at their places, and a legend where they have colours of their own."""
    size = float(np.clip(1500 / len(places), 5, 40))
    radius = 0.0045 * np.sqrt(size)
    total = sum(int(edges.sum()) for edges in kinds.values())
    for name, edges in kinds.items():
        colour, style = AGREEMENT.get(name, (INK, "solid"))
        faint = 0.9 if name in ("missed", "spurious") else float(np.clip(250 / max(1, total), 0.25, 0.8))
        _lines(ax, places, edges if arrows else np.triu(edges | edges.T), (colour, style, faint, name))
        if arrows:
            _heads(ax, places, edges, radius, (colour, faint))
        loops = places[np.diagonal(edges)]
        ax.scatter(loops[:, 0], loops[:, 1], s=4 * size, facecolors="none", edgecolors=colour, linewidths=1)
        if name in AGREEMENT:
            ax.plot([], [], color=colour, linestyle=style, label=f"{name} {edges.sum() if arrows else _links(edges)}")
    ax.scatter(places[:, 0], places[:, 1], s=size, color=INK, linewidths=0, zorder=3, gid="nodes")
    if len(kinds) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, fontsize=8, labelcolor=INK)
    ax.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal")
    ax.set_axis_off()


def _links(edges: np.ndarray) -> int:
    """How many undirected links these are."""
    return int(np.triu(edges | edges.T).sum())


def _lines(ax: matplotlib.axes.Axes, places: np.ndarray, edges: np.ndarray, look: tuple[Any, ...]) -> None:
    from matplotlib.collections import LineCollection

    colour, style, faint, name = look
    lines = places[np.argwhere(edges & ~np.eye(len(edges), dtype=bool))]
    thin = 0.6 if name in ("edges", "hit") else 1.2
    drawn = LineCollection(list(lines), colors=colour, linestyles=style, linewidths=thin, alpha=faint, gid=name)
    ax.add_collection(drawn)


def _heads(ax: matplotlib.axes.Axes, places: np.ndarray, edges: np.ndarray, radius: float, look: Any) -> None:
    """Heads of arrows, which end at the rim of the node that they point at."""
    from matplotlib.collections import PolyCollection

    u, v = (edges & ~np.eye(len(edges), dtype=bool)).nonzero()
    way = places[v] - places[u]
    length = np.linalg.norm(way, axis=1, keepdims=True)
    along = way / np.maximum(length, 1e-9)
    across = along[:, ::-1] * np.array([-1.0, 1.0])
    tip = places[v] - radius * along
    back = tip - 2.2 * radius * along
    corners = np.stack([tip, back + 0.8 * radius * across, back - 0.8 * radius * across], 1)
    ax.add_collection(PolyCollection(list(corners), facecolors=look[0], linewidths=0, alpha=look[1], gid="heads"))
