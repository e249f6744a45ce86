"""Wirings as drawings: networks of units in layers, and graphs of nodes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ash.checks import UserError, optional, require
from ash.layers.linear import SparseLayer
from ash.plot.curves import DIVERGING, INK, PALE, Number, array, grid_shape, new_figure, save
from ash.wirings.base import Wiring

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import networkx

NEGATIVE, POSITIVE = DIVERGING[1], DIVERGING[-2]
WIDEST = 2.6  # points of paper, of the edge with the largest weight
HINT = "pip install 'ash-wiring[plot]'"


def topology(
    nets: Mapping[str, Sequence[Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    value_limit: Number | None = None,
) -> matplotlib.figure.Figure:
    """Networks of units in layers, a panel for each: inputs at the left, an edge for every non-zero weight.

    Args:
        nets: title -> the weights of the layers in order, `(out, in)` each, zero where there is no edge;
            `layer_weights` gives those of a model.
        path: where to write the figure.
        value_limit: the weight with the widest edge; by default the largest of all panels.

    Edges are orange above zero and blue below, and as wide as the weight is large. A unit that no path from an
    input to an output passes is dead: it is hollow and grey, and so are its edges. Below each column stands how
    many units live.

    Raises `UserError` for no net, no layer, and layers that do not follow one another.
    """
    require(len(nets) > 0, "no nets were given; expected at least one title with the weights of its layers.")
    taken = {title: _chain(title, layers) for title, layers in nets.items()}
    limit = value_limit or max(_largest(layers) for layers in taken.values())
    tallest = max(max(_sizes(layers)) for layers in taken.values())
    columns = max(len(layers) for layers in taken.values()) + 1
    width, height = 0.6 + 1.15 * columns, min(1.0 + 0.22 * tallest, 8.0)
    rows, abreast = grid_shape(len(taken), width / height)
    figure = new_figure(abreast * width, rows * height)
    for place, (title, layers) in enumerate(taken.items()):
        ax = figure.add_subplot(rows, abreast, place + 1)
        _draw_layers(ax, layers, limit, tallest)
        ax.set_title(title, color=INK, fontsize=10)
    if path is not None:
        save(figure, path)
    return figure


def layer_weights(model: nn.Module) -> list[np.ndarray]:
    """The weights of a model's linear and sparse layers, as they are evaluated, `(out, in)` each, in their order.

    Raises `UserError` where there are none, and where a weight depends on the input.
    """
    found = []
    for module in model.modules():
        if isinstance(module, SparseLayer):
            found.append(_evaluated(module.wiring).reshape(math.prod(module.out_shape), -1))
        elif isinstance(module, nn.Linear):
            found.append(array("weight", module.weight, 2))
    require(len(found) > 0, f"{type(model).__name__} has no linear and no sparse layer; expected at least one.")
    return found


def _evaluated(wiring: Wiring) -> np.ndarray:
    weight = wiring.rounded()
    if weight is None:
        raise UserError(f"the weight of {type(wiring).__name__} depends on the input; draw wiring(x).to_dense()[0].")
    return array("weight", weight.to_dense(), len(weight.shape))


def live_units(layers: Sequence[Any]) -> list[np.ndarray]:
    """Which inputs, and which units of each layer, lie on a path from an input to an output.

    Args:
        layers: weights in order, `(out, in)` each, zero where there is no edge.

    Returns:
        A boolean array for the inputs, `(in,)` of the first layer, and one for each layer, `(out,)`.
    """
    taken = _chain("layers", layers)
    sizes, last = _sizes(taken), len(taken)
    alive = alive_nodes(_layered(taken), [(0, u) for u in range(sizes[0])], [(last, u) for u in range(sizes[-1])])
    return [np.array([(layer, unit) in alive for unit in range(size)]) for layer, size in enumerate(sizes)]


def _chain(title: str, layers: Sequence[Any]) -> list[np.ndarray]:
    taken = [array(f"layer {i} of {title!r}", layer, 2) for i, layer in enumerate(layers)]
    require(len(taken) > 0, f"{title!r} has no layers; expected at least one weight (out, in).")
    require(all(layer.size for layer in taken), f"{title!r} has a layer without entries; expected (out, in).")
    for i, (one, other) in enumerate(zip(taken, taken[1:], strict=False)):
        require(other.shape[1] == len(one),
                f"layer {i + 1} of {title!r} has {other.shape[1]} inputs after {len(one)} outputs; expected as many.")
    return taken


def _sizes(layers: Sequence[np.ndarray]) -> list[int]:
    return [layers[0].shape[1], *(len(layer) for layer in layers)]


def _largest(layers: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(layer).max()) for layer in layers) or 1.0


def _layered(layers: Sequence[np.ndarray]) -> networkx.DiGraph[Any]:
    """The units, (layer, unit), and the edges between them."""
    graph = optional("networkx", HINT).DiGraph()
    graph.add_nodes_from((layer, unit) for layer, size in enumerate(_sizes(layers)) for unit in range(size))
    for layer, weight in enumerate(layers):
        for target, source in np.argwhere(weight != 0).tolist():
            graph.add_edge((layer, source), (layer + 1, target), weight=float(weight[target, source]))
    return graph


def alive_nodes(graph: networkx.DiGraph[Any], inputs: Iterable[Any], outputs: Iterable[Any]) -> set[Any]:
    """The nodes of a graph on a path from one of `inputs` to one of `outputs`."""
    return _reached(graph, inputs) & _reached(graph.reverse(copy=False), outputs)


def _reached(graph: networkx.DiGraph[Any], start: Iterable[Any]) -> set[Any]:
    layers = optional("networkx", HINT).bfs_layers(graph, list(start))
    return {node for layer in layers for node in layer}


def _draw_layers(ax: matplotlib.axes.Axes, layers: list[np.ndarray], limit: float, tallest: int) -> None:
    sizes, live = _sizes(layers), live_units(layers)
    places = {(i, u): (float(i), (size - 1) / 2 - u) for i, size in enumerate(sizes) for u in range(size)}
    alive = {(i, u) for i, which in enumerate(live) for u in np.flatnonzero(which).tolist()}
    draw_graph(ax, _layered(layers), places, alive, limit)
    bottom = -0.52 * tallest
    for i, which in enumerate(live):
        text = f"{which.sum()}" if which.all() else f"{which.sum()} of {len(which)}"
        ax.text(i, bottom, text, ha="center", va="top", color=INK, fontsize=8)
    ax.set(xlim=(-0.3, len(layers) + 0.3), ylim=(bottom - 0.05 * tallest, tallest / 2))


def draw_graph(
    ax: matplotlib.axes.Axes,
    graph: networkx.DiGraph[Any],
    places: Mapping[Any, Any],
    alive: set[Any],
    limit: float,
) -> None:
    """The edges of a graph (by their `weight`) and its nodes at their places, those that are not alive in grey."""
    from matplotlib.collections import LineCollection

    edges = sorted(graph.edges(data="weight"), key=lambda edge: abs(edge[2]))
    used = [source in alive and target in alive for source, target, _ in edges]
    signs = [POSITIVE if weight > 0 else NEGATIVE for *_, weight in edges]
    colours = [sign if on else PALE for sign, on in zip(signs, used, strict=True)]
    widths = [max(0.4, WIDEST * min(1.0, abs(weight) / limit)) for *_, weight in edges]
    lines = [np.array([places[source], places[target]]) for source, target, _ in edges]
    faint = float(np.clip(100 / max(1, len(edges)), 0.12, 0.9))  # many edges over one another still show
    ax.add_collection(LineCollection(lines, colors=colours, linewidths=widths, alpha=faint, zorder=1, gid="edges"))
    nodes = list(graph)
    spots, live = np.array([places[node] for node in nodes]), np.array([node in alive for node in nodes])
    size = float(np.clip(1500 / len(nodes), 4, 36))
    (x, y), (dead_x, dead_y) = spots[live].T, spots[~live].T
    ax.scatter(x, y, s=size, color=INK, linewidths=0, zorder=3, gid="live")
    ax.scatter(dead_x, dead_y, s=size, facecolors="white", edgecolors=PALE, linewidths=0.8, zorder=2, gid="dead")
    ax.set_axis_off()
