"""Small graphs to learn a generative model of: connected, of several sizes and families, in a canonical node order.

Erdős–Rényi (n to 2n links for n nodes), Barabási–Albert (one or two links with every new node) and two blocks (about
three links of a node inside its block, half a one outside), in turn. Each graph occurs once up to isomorphism, and
the parts share none: what is split are classes of graphs, told apart by their closed walks. Few pairs of other graphs
have the same closed walks at every node; they count as one class.

A vector of pairs of nodes means the same in every graph only where nodes stand in an order that the graph decides.
Breadth-first, every node but the first has a link to an earlier one, and most pairs that are far apart in the order
have none. Were pairs independent, graphs of 8 to 12 nodes would take 35.3 bits each, 39.2 in the order of degrees,
and 43.6 as the generators number them: there is less to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import networkx
import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ash.checks import choose, require

WALKS = 8
"""Steps of the longest closed walks that tell graphs apart."""
INSIDE, OUTSIDE, MOST = 3.0, 0.5, 0.9
TRIES = 1000


class Graphs(NamedTuple):
    """b undirected graphs of at most m nodes.

    Attributes:
        adjacency: `(b, m, m)`, symmetric, nothing on the diagonal or beyond a graph's own nodes.
        nodes: `(b,)`, how many each has.
    """

    adjacency: Bool[Tensor, "b m m"]
    nodes: Int64[Tensor, " b"]

    def select(self, which: Tensor | slice) -> Graphs:
        """Some of them."""
        return Graphs(self.adjacency[which], self.nodes[which])

    @property
    def present(self) -> Bool[Tensor, "b m"]:
        """Which nodes exist: the first ones."""
        return torch.arange(self.adjacency.shape[1]) < self.nodes[:, None]


class Parts(NamedTuple):
    """Graphs to train on, to choose by, and to judge by."""

    train: Graphs
    validation: Graphs
    test: Graphs


# --- drawing -------------------------------------------------------------------------------------------


def erdos_renyi(nodes: int, chance: Random) -> networkx.Graph[int]:
    """As many links as nodes, or up to twice as many."""
    return networkx.gnm_random_graph(nodes, chance.randint(nodes, 2 * nodes - 1), seed=chance)


def barabasi_albert(nodes: int, chance: Random) -> networkx.Graph[int]:
    """One or two links with every new node."""
    return networkx.barabasi_albert_graph(nodes, chance.randint(1, 2), seed=chance)


def two_blocks(nodes: int, chance: Random) -> networkx.Graph[int]:
    """Two blocks of about half of the nodes."""
    half = nodes // 2
    inside, outside = min(MOST, INSIDE / max(1, half - 1)), OUTSIDE / half
    chances = [[inside, outside], [outside, inside]]
    return networkx.stochastic_block_model([half, nodes - half], chances, seed=chance)


FAMILIES: dict[str, Callable[[int, Random], networkx.Graph[int]]] = {
    "er": erdos_renyi,
    "ba": barabasi_albert,
    "sbm": two_blocks,
}


def draw(family: str, nodes: int, chance: Random) -> networkx.Graph[int]:
    """A connected graph of a family, of at least 4 nodes."""
    make = choose("family of graphs", family, FAMILIES)
    for _ in range(TRIES):
        graph = make(nodes, chance)
        if networkx.is_connected(graph):
            return graph
    raise AssertionError(f"no connected graph of {nodes} nodes in {TRIES} draws of {family!r}")


def drawn(family: str, sizes: tuple[int, int], chance: Random) -> Iterator[networkx.Graph[int]]:
    """Graphs without end, sizes uniform between two (inclusive); the families in turn for `"mixed"`."""
    names = list(FAMILIES) if family == "mixed" else [family]
    while True:
        for name in names:
            yield draw(name, chance.randint(*sizes), chance)


# --- node orders ---------------------------------------------------------------------------------------

Key = tuple[int, ...]


def importance(graphs: Graphs) -> list[list[Key]]:
    """Of each node how many walks of one to four steps start there: what nodes are compared by."""
    step = graphs.adjacency.double()
    counts, walks = graphs.present.double().unsqueeze(-1), []
    for _ in range(4):
        counts = step @ counts
        walks.append(counts)
    return [[tuple(row) for row in graph] for graph in torch.cat(walks, -1).long().tolist()]


def breadth_first(graph: networkx.Graph[int], keys: Sequence[Key]) -> list[int]:
    """From the most important node on, the more important neighbours first."""
    order = [max(graph, key=keys.__getitem__)]
    for node in order:  # grows on the way
        order += sorted((v for v in graph[node] if v not in order), key=keys.__getitem__, reverse=True)
    return order


def by_importance(graph: networkx.Graph[int], keys: Sequence[Key]) -> list[int]:
    """The most important nodes first, so that degrees fall."""
    return sorted(graph, key=keys.__getitem__, reverse=True)


def as_given(graph: networkx.Graph[int], keys: Sequence[Key]) -> list[int]:
    """The generator's own numbering."""
    return sorted(graph)


ORDERS = {"bfs": breadth_first, "degree": by_importance, "given": as_given}


def to_graphs(given: Sequence[networkx.Graph[int]], most: int, order: str = "bfs") -> Graphs:
    """Connected graphs of at most `most` nodes, numbered from 0, with their nodes in the named order."""
    arrange = choose("order of nodes", order, ORDERS)
    keys = importance(_numbered(given, most, [list(range(len(graph))) for graph in given]))
    return _numbered(given, most, [arrange(graph, own) for graph, own in zip(given, keys, strict=True)])


def _numbered(given: Sequence[networkx.Graph[int]], most: int, orders: Sequence[Sequence[int]]) -> Graphs:
    """The graphs with the nodes of each in an order."""
    adjacency = torch.zeros(len(given), most, most, dtype=torch.bool)
    places = []
    for number, (graph, order) in enumerate(zip(given, orders, strict=True)):
        new = {node: place for place, node in enumerate(order)}
        places += [(number, new[u], new[v]) for u, v in graph.edges]
    which, rows, columns = torch.tensor(places).reshape(-1, 3).unbind(1)
    adjacency[which, rows, columns] = adjacency[which, columns, rows] = True
    return Graphs(adjacency, torch.tensor([len(graph) for graph in given]))


# --- telling graphs apart, and the parts ---------------------------------------------------------------


def classes(graphs: Graphs) -> list[bytes]:
    """A name for each graph, the same for isomorphic ones: the closed walks of its nodes, sorted."""
    step = graphs.adjacency.double()
    power, walks = step, []
    for _ in range(WALKS - 1):
        power = power @ step
        walks.append(power.diagonal(dim1=1, dim2=2))
    counts = torch.stack(walks, -1).long().numpy()  # exact: below 2^53
    odd = np.random.default_rng(0).integers(2**62, size=WALKS - 1) * 2 + 1
    names = np.sort((counts * odd).sum(-1), axis=1)
    return [row.tobytes() + bytes([n]) for row, n in zip(names, graphs.nodes.tolist(), strict=True)]


def split(family: str, counts: tuple[int, int, int], sizes: tuple[int, int], seed: int, order: str = "bfs") -> Parts:
    """Graphs for training, validation and test, no two of them isomorphic; of `counts` the first is reached about.

    As many graphs are drawn as `counts` says together; those met before are left out, at the cost of training.
    Raises `UserError` where what is left does not suffice.
    """
    stream, generator = drawn(family, sizes, Random(seed)), np.random.default_rng(seed)
    pool = to_graphs([next(stream) for _ in range(sum(counts))], sizes[1], order)
    first = {name: place for place, name in reversed(list(enumerate(classes(pool))))}
    distinct = generator.permutation(sorted(first.values()))
    held = counts[1] + counts[2]
    require(
        len(distinct) > held,
        f"{len(distinct)} different graphs among {sum(counts)} drawn; expected more than the {held} that are held out; "
        "ask for more graphs, or larger ones.",
    )
    ends = (distinct[held:], distinct[: counts[1]], distinct[counts[1] : held])
    return Parts(*(pool.select(torch.from_numpy(part)) for part in ends))
