"""Graphs of nodes, as a drawing and as an image of their adjacency matrix, and the inputs that a wiring reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ash.checks import optional, require
from ash.pattern import ravel
from ash.plot.curves import HEAT, INK, Number, add_bar, array, colour_map, image_grid, new_figure, save, tidy
from ash.plot.topology import HINT, alive_nodes, draw_graph
from ash.weight import SparseWeight

if TYPE_CHECKING:
    import matplotlib.figure
    import networkx


def node_graph(
    weight: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    inputs: Iterable[int] | None = None,
    outputs: Iterable[int] | None = None,
    title: str | None = None,
) -> matplotlib.figure.Figure:
    """A graph of n nodes: an edge from source to target for every non-zero entry of its adjacency matrix.

    Args:
        weight: `(n, n)`, target x source.
        path: where to write the figure.
        blocks: sizes of blocks that stand in columns, the first at the left; without them, a graph without
            cycles stands in columns by the longest path to each node, and any other in a circle.
        inputs, outputs: nodes; those on no path between them are dead and grey. Without either, it is the
            nodes without an edge that are.

    Edges are orange above zero and blue below, and as wide as the weight is large.

    Raises `UserError` for a matrix that is not square, blocks that do not add up to n, and unknown nodes.
    """
    taken = _square(weight)
    n = len(taken)
    graph = _graph(taken)
    alive = _alive(graph, n, inputs, outputs)
    figure = new_figure(6.0, 4.5)
    ax = figure.add_subplot()
    draw_graph(ax, graph, _places(graph, n, blocks), alive, float(np.abs(taken).max()) or 1.0)
    if title:
        ax.set_title(title, color=INK, fontsize=10)
    if path is not None:
        save(figure, path)
    return figure


def _square(weight: Any) -> np.ndarray:
    taken = array("weight", weight, 2)
    require(taken.shape[0] == taken.shape[1] > 0,
            f"an adjacency matrix of shape {taken.shape}; expected (n, n), target x source.")
    return taken


def _graph(weight: np.ndarray) -> networkx.DiGraph[Any]:
    graph = optional("networkx", HINT).DiGraph()
    graph.add_nodes_from(range(len(weight)))
    targets, sources = weight.nonzero()
    values = weight[targets, sources].tolist()
    graph.add_weighted_edges_from(zip(sources.tolist(), targets.tolist(), values, strict=True))
    return graph


def _alive(
    graph: networkx.DiGraph[Any], n: int, inputs: Iterable[int] | None, outputs: Iterable[int] | None
) -> set[int]:
    if inputs is None and outputs is None:
        return {node for node, degree in graph.degree() if degree}
    ends = [set(range(n)) if given is None else set(given) for given in (inputs, outputs)]
    wrong = sorted((ends[0] | ends[1]) - set(range(n)))
    require(not wrong, f"inputs or outputs {wrong} of a graph of {n} nodes; expected numbers from 0 to {n - 1}.")
    return alive_nodes(graph, *ends)


def _places(graph: networkx.DiGraph[Any], n: int, blocks: Sequence[int] | None) -> dict[int, Any]:
    """A place for every node: in columns where there is an order, else in a circle."""
    networkx = optional("networkx", HINT)
    if blocks is not None:
        _check_blocks(blocks, n)
        column = np.repeat(np.arange(len(blocks)), list(blocks)).tolist()
    elif networkx.is_directed_acyclic_graph(graph):
        column = [0] * n
        for node in networkx.topological_sort(graph):
            column[node] = max((column[source] + 1 for source in graph.predecessors(node)), default=0)
    else:
        return dict(networkx.circular_layout(graph))
    networkx.set_node_attributes(graph, dict(enumerate(column)), "column")
    return dict(networkx.multipartite_layout(graph, subset_key="column"))


def _check_blocks(blocks: Sequence[int], n: int) -> None:
    require(sum(blocks) == n and all(size > 0 for size in blocks),
            f"blocks={tuple(blocks)}; expected sizes above 0 that add up to the {n} nodes.")


def adjacency(
    weight: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    value_limit: Number | None = None,
    title: str | None = None,
) -> matplotlib.figure.Figure:
    """The adjacency matrix of a graph of nodes as an image: target down, source to the right, colours by sign.

    Args:
        weight: `(n, n)`, target x source.
        path: where to write the figure.
        blocks: sizes of the blocks of nodes; lines part them.
        value_limit: end of the colours, symmetric about zero; by default the largest weight.

    Raises `UserError` for a matrix that is not square and blocks that do not add up to n.
    """
    taken = _square(weight)
    n = len(taken)
    limit = float(value_limit or np.abs(taken).max() or 1.0)
    figure = new_figure(5.4, 4.4)
    ax = figure.add_subplot()
    smooth = "nearest" if n <= 600 else "antialiased"  # single entries of a large matrix would fall between pixels
    ax.imshow(taken, cmap=colour_map(HEAT), vmin=-limit, vmax=limit, interpolation=smooth)
    if blocks is not None:
        _check_blocks(blocks, n)
        for end in np.cumsum(blocks)[:-1]:
            for line in (ax.axhline, ax.axvline):
                line(end - 0.5, color=INK, linewidth=0.5, alpha=0.5)
    tidy(ax)
    ax.set_xlabel("source", color=INK, fontsize=9)
    ax.set_ylabel("target", color=INK, fontsize=9)
    if title:
        ax.set_title(title, color=INK, fontsize=10)
    add_bar(figure, ax, (-limit, limit), HEAT, "weight")
    if path is not None:
        save(figure, path)
    return figure


def readers(weight: Any, shape: tuple[int, int]) -> np.ndarray:
    """How many outputs read each input pixel, `(h, w)`.

    Args:
        weight: a `SparseWeight` (an entry stored twice counts once), or a matrix `(out, in)`, zero where there is
            no edge.
        shape: (h, w) of the input.

    Raises `UserError` for another number of inputs, and for a weight per instance.
    """
    if isinstance(weight, SparseWeight):
        require(not weight.per_instance, "a weight per instance; take one: weight.instance(0).")
        once = ravel(weight.indices, weight.shape).unique() % weight.matrix_shape[1]
        counts = np.bincount(once.cpu().numpy(), minlength=weight.matrix_shape[1])
    else:
        counts = (array("weight", weight, 2) != 0).sum(axis=0)
    require(len(counts) == shape[0] * shape[1], f"a weight of {len(counts)} inputs; expected {shape[0]} x {shape[1]}.")
    return counts.reshape(shape)


def chosen_inputs(
    weights: Mapping[str, Any], shape: tuple[int, int], path: str | os.PathLike[str] | None = None
) -> matplotlib.figure.Figure:
    """How many outputs read each input pixel, an image for each of `weights` (title: weight), one colour scale.

    `weights` and `shape` are as for `readers`. Writes the figure where a path is given. Raises `UserError` for no
    weight and for another number of inputs.
    """
    return image_grid({title: readers(weight, shape) for title, weight in weights.items()}, path, label="readers")
