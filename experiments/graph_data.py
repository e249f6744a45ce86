"""Graphs to learn from: random ones of three families, made with networkx, and three real ones that come with it.

Erdős–Rényi (a given number of links, drawn uniformly), Barabási–Albert (every new node links to as many earlier
ones, in proportion to their degree) and stochastic blocks (four blocks; four fifths of the links, in the mean, lie
inside a block). None has a loop or a link twice. Parts are split by graph: each is drawn from a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import networkx
import numpy as np
import torch

from ash import SparseBatch
from ash.checks import choose, require

Family = Literal["er", "ba", "sbm", "mixed"]
"""Erdős–Rényi, Barabási–Albert, stochastic blocks, or each of them in turn."""
BLOCKS, INSIDE = 4, 0.8


def erdos_renyi(nodes: int, links: int, generator: np.random.Generator) -> networkx.Graph[int]:
    """A graph with exactly that many links."""
    return networkx.gnm_random_graph(nodes, links, seed=generator)


def barabasi_albert(nodes: int, links: int, generator: np.random.Generator) -> networkx.Graph[int]:
    """A graph that grows by ⌊links / nodes + 1/2⌋ links with every node, at least one: 252 links for 128 and 256."""
    each = min(max(1, int(links / nodes + 0.5)), nodes - 1)
    return networkx.barabasi_albert_graph(nodes, each, seed=generator)


def stochastic_blocks(nodes: int, links: int, generator: np.random.Generator) -> networkx.Graph[int]:
    """Blocks of about equal size; the number of links varies about the given one."""
    sizes = [len(part) for part in np.array_split(np.arange(nodes), min(BLOCKS, nodes))]
    inside = sum(size * (size - 1) / 2 for size in sizes)
    outside = nodes * (nodes - 1) / 2 - inside
    within = min(1.0, INSIDE * links / max(1.0, inside))
    between = min(1.0, (1 - INSIDE) * links / max(1.0, outside))
    chances = np.where(np.eye(len(sizes), dtype=bool), within, between)
    made = networkx.stochastic_block_model(sizes, chances.tolist(), seed=generator)
    return unlabelled(made)


GENERATORS: dict[str, Callable[[int, int, np.random.Generator], networkx.Graph[int]]] = {
    "er": erdos_renyi,
    "ba": barabasi_albert,
    "sbm": stochastic_blocks,
}


def make(family: str, count: int, nodes: int, links: int, generator: np.random.Generator) -> list[networkx.Graph[int]]:
    """That many graphs of a family, or of each in turn (`"mixed"`). Raises `UserError` for impossible sizes."""
    most = nodes * (nodes - 1) // 2
    require(nodes >= 2, f"{nodes} nodes; expected at least 2.")
    require(0 <= links <= most, f"{links} links between {nodes} nodes; expected 0 to {most}.")
    known = list(GENERATORS.values())
    makers = known if family == "mixed" else [choose("family of graphs", family, GENERATORS)]
    return [makers[i % len(makers)](nodes, links, generator) for i in range(count)]


class Parts(NamedTuple):
    """Graphs to train on, to choose by, and to judge by."""

    train: list[networkx.Graph[int]]
    validation: list[networkx.Graph[int]]
    test: list[networkx.Graph[int]]


def split(family: str, counts: tuple[int, int, int], nodes: int, links: int, seed: int) -> Parts:
    """Graphs for training, validation and test, as many as `counts` says, from a random stream each."""
    streams = [np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(3)]
    return Parts(*(make(family, n, nodes, links, each) for n, each in zip(counts, streams, strict=True)))


def directed(graph: networkx.Graph[Any], generator: np.random.Generator, both: float = 0.1) -> networkx.DiGraph[Any]:
    """The graph with a random direction for every link; a share of `both` keeps the two."""
    made: networkx.DiGraph[Any] = networkx.DiGraph()
    made.add_nodes_from(graph)
    for u, v in graph.edges:
        draw = generator.random()
        if draw < (1 + both) / 2:
            made.add_edge(u, v)
        if draw >= (1 - both) / 2:
            made.add_edge(v, u)
    return made


def real_graphs() -> dict[str, networkx.Graph[int]]:
    """Zachary's karate club (34 nodes), Les Misérables (77), Florentine families (15); links have no weights here."""
    made = {
        "karate": networkx.karate_club_graph(),
        "les_miserables": networkx.les_miserables_graph(),
        "florentine": networkx.florentine_families_graph(),
    }
    return {name: unlabelled(graph) for name, graph in made.items()}


def unlabelled(graph: networkx.Graph[Any]) -> networkx.Graph[int]:
    """The bare graph: nodes 0 … n - 1 in their order, and its links."""
    numbers = {node: i for i, node in enumerate(graph)}
    made = graph.__class__()
    made.add_nodes_from(range(len(numbers)))
    made.add_edges_from((numbers[u], numbers[v]) for u, v in graph.edges)
    return made


def to_batch(graphs: Iterable[networkx.Graph[Any]], weight: str | None = None) -> SparseBatch:
    """The graphs as a batch of adjacency matrices, entries in order; an undirected link is an entry each way.

    Args:
        graphs: at least one, with at least one node each. Nodes are numbered in their order.
        weight: the edge attribute that is an entry's value; 1 if None or where an edge lacks it.
    """
    given = list(graphs)
    require(len(given) > 0, "no graphs; expected at least one.")
    parts = [_entries(graph, weight) for graph in given]
    sizes = [(len(graph), len(graph)) for graph in given]
    require(min(sizes)[0] > 0, "a graph without nodes; expected at least one node.")
    return SparseBatch.from_entries([p[0] for p in parts], [p[1] for p in parts], sizes)


def _entries(graph: networkx.Graph[Any], weight: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries (u, v) of an adjacency matrix in order, and their values."""
    numbers = {node: i for i, node in enumerate(graph)}
    found = {(numbers[u], numbers[v]): _value(data, weight) for u, v, data in graph.edges(data=True)}
    if not graph.is_directed():
        found |= {(v, u): value for (u, v), value in found.items()}
    places = sorted(found)
    return torch.tensor(places, dtype=torch.int64).reshape(-1, 2), torch.tensor([found[place] for place in places])


def _value(data: dict[str, Any], weight: str | None) -> float:
    return 1.0 if weight is None else float(data.get(weight, 1.0))
