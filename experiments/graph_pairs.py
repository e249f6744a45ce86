"""Pairs of graphs, isomorphic or not, of several kinds, and what tells them apart without learning.

| kind | the two graphs, where they are not isomorphic |
|---|---|
| `random` | drawn apart, of one family and size |
| `one_edge` | the second has one link elsewhere |
| `swaps` | a quarter as many double edge swaps as there are links: the degrees stay |
| `one_swap` | one double edge swap |
| `cospectral` | Godsil-McKay switching of four nodes: the spectrum and the degrees stay |
| `regular` | two graphs whose nodes all have degree 4, which colour refinement cannot tell apart |
| `strongly_regular` | the 4 x 4 rook's graph and the Shrikhande graph, which no colouring of pairs of nodes tells |
| `atlas` | connected graphs of seven nodes with the same characteristic polynomial |

Every pair comes from a draw of its own. A pair that is isomorphic has one of the two graphs twice, so that nothing
about a graph by itself tells. One graph of every pair is relabelled at random. That the two are not isomorphic is
sure: they differ in how many closed walks of each length their nodes have, or networkx finds no isomorphism. There
are no two connected graphs of seven nodes with the same characteristic polynomial and the same degrees, so that those
of the atlas are told apart by their degrees; they are the smallest there are.

Sources: Godsil and McKay, `Constructing cospectral graphs` (1982); Weisfeiler and Leman (1968), as in networkx.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import networkx
import numpy as np

from ash.checks import UserError, choose, require
from experiments.graph_data import make, unlabelled

Graph: TypeAlias = "networkx.Graph[int]"
Couple: TypeAlias = tuple[Graph, Graph]

NEAR = ("swaps", "one_swap", "cospectral")
"""The kinds of the near-miss set: degrees alone cannot tell them."""
DRAWN = ("random", "one_edge", *NEAR, "regular")
"""Kinds of which new graphs can be drawn without end."""
LEAST = 16
"""Nodes of the smallest graphs that are drawn."""
TRIES, WALKS, ROUNDS, SWITCHED = 200, 8, 5, 4


class Pair(NamedTuple):
    """Two graphs, whether they are isomorphic, and of what kind they are."""

    first: Graph
    second: Graph
    same: bool
    kind: str


# --- telling apart ---------------------------------------------------------------------------------------


def closed_walks(graph: Graph) -> np.ndarray:
    """`(n, WALKS - 1)`, int64: closed walks of 2 … WALKS steps from each node. Relabelling permutes the rows."""
    step = networkx.to_numpy_array(graph, dtype=np.int64)
    power, found = step, []
    for _ in range(WALKS - 1):
        power = power @ step
        found.append(power.diagonal())
    return np.stack(found, 1)


def signature(graph: Graph) -> bytes:
    """The same for isomorphic graphs: nodes, links, and the sorted closed walks of the nodes."""
    rows = closed_walks(graph)
    head = np.array([len(graph), graph.number_of_edges()])
    return head.tobytes() + rows[np.lexsort(rows.T)].tobytes()


def isomorphic(first: Graph, second: Graph) -> bool:
    """Exact: by closed walks where they differ, by networkx's search (VF2++), guided by them, where they do not."""
    if signature(first) != signature(second):
        return False
    for graph in (first, second):
        networkx.set_node_attributes(graph, dict(zip(graph, map(tuple, closed_walks(graph)), strict=True)), "walks")
    return bool(networkx.vf2pp_is_isomorphic(first, second, node_label="walks"))


def degrees(graph: Graph) -> list[int]:
    """Sorted."""
    return sorted(degree for _, degree in graph.degree)


def same_degrees(pair: Pair) -> bool:
    """The baseline that calls a pair isomorphic where its degrees are the same."""
    return degrees(pair.first) == degrees(pair.second)


def same_hash(pair: Pair) -> bool:
    """The baseline that calls a pair isomorphic where its Weisfeiler-Leman hashes are, after five rounds."""
    return colour_hash(pair.first) == colour_hash(pair.second)


def colour_hash(graph: Graph) -> str:
    """networkx's Weisfeiler-Leman hash: the multiset of colours of the nodes after some rounds of refinement."""
    with warnings.catch_warnings():  # that its hashes are not those of earlier versions
        warnings.simplefilter("ignore", UserWarning)
        return str(networkx.weisfeiler_lehman_graph_hash(graph, iterations=ROUNDS))


def right(pairs: Sequence[Pair], baseline: Callable[[Pair], bool]) -> float:
    """The share of the pairs that a baseline judges rightly."""
    return sum(baseline(pair) == pair.same for pair in pairs) / len(pairs)


# --- couples that are not isomorphic ---------------------------------------------------------------------


def links(graph: Graph) -> list[tuple[int, int]]:
    """The links, in an order that depends on nothing but them."""
    return sorted((min(edge), max(edge)) for edge in graph.edges)


def _drawn(nodes: int, generator: np.random.Generator) -> Graph:
    family = ("er", "ba", "sbm")[generator.integers(3)]
    return make(family, 1, nodes, 2 * nodes, generator)[0]


def _size(nodes: int, generator: np.random.Generator) -> int:
    """From half as many nodes as are given up to as many."""
    return int(generator.integers(max(LEAST, nodes // 2), nodes + 1))


def two_drawn(nodes: int, generator: np.random.Generator) -> Couple:
    """Two graphs of one family, with as many links (of the blocks: about as many)."""
    size, family = _size(nodes, generator), ("er", "ba", "sbm")[generator.integers(3)]
    first, second = make(family, 2, size, 2 * size, generator)
    return first, second


def edge_elsewhere(nodes: int, generator: np.random.Generator) -> Couple:
    """A graph, and the same with one link removed and one added."""
    graph = _drawn(_size(nodes, generator), generator)
    other, there = graph.copy(), links(graph)
    absent = links(networkx.complement(graph))
    other.remove_edge(*there[generator.integers(len(there))])
    other.add_edge(*absent[generator.integers(len(absent))])
    return graph, other


def swap(graph: Graph, count: int, generator: np.random.Generator) -> Graph:
    """A copy with so many times two links a-b, c-d replaced by a-d, c-b; every node keeps its degree."""
    made: Graph = graph.copy()
    done = 0
    for _ in range(TRIES * count):
        there = links(made)
        (a, b), (c, d) = (there[i] for i in generator.integers(len(there), size=2))
        if generator.random() < 0.5:
            c, d = d, c
        if len({a, b, c, d}) == 4 and not made.has_edge(a, d) and not made.has_edge(c, b):
            made.remove_edges_from([(a, b), (c, d)])
            made.add_edges_from([(a, d), (c, b)])
            done += 1
        if done == count:
            return made
    raise UserError(f"a graph of {len(graph)} nodes and {len(links(graph))} links without a double edge swap; "
                    "expected one with some; use more nodes.")  # fmt: skip


def swapped(nodes: int, generator: np.random.Generator, count: int | None = None) -> Couple:
    """A graph, and the same after `count` double edge swaps; by default a quarter as many as it has links."""
    graph = _drawn(_size(nodes, generator), generator)
    return graph, swap(graph, max(2, graph.number_of_edges() // 4) if count is None else count, generator)


def switched(nodes: int, generator: np.random.Generator) -> Couple:
    """Two cospectral graphs of equal degrees, by Godsil-McKay switching.

    Four nodes, among themselves without links, in a circle, in two pairs or all linked, are added to a drawn graph,
    every other node being linked to none, two or all four of them. Each of those that are linked to two is then
    linked to the other two instead. The links to two are drawn until the four nodes keep their degrees.
    """
    graph = _drawn(_size(nodes, generator) - SWITCHED, generator)
    outside, own = len(graph), list(range(len(graph), len(graph) + SWITCHED))
    order = generator.permutation(outside)
    half = order[: generator.integers(6, 11)]
    for node in order[len(half) : len(half) + generator.integers(0, 2)]:
        graph.add_edges_from((int(node), each) for each in own)
    inner = ("", "01 23", "01 12 23 30", "01 02 03 12 13 23")[generator.integers(4)].split()
    graph.add_nodes_from(own)
    graph.add_edges_from((own[int(ends[0])], own[int(ends[1])]) for ends in inner)
    chosen = _balanced(len(half), generator)
    couple = graph.copy(), graph.copy()
    for made, side in zip(couple, (chosen, ~chosen), strict=True):
        made.add_edges_from((int(half[i]), own[j]) for i, j in np.argwhere(side))
    return couple


def _balanced(count: int, generator: np.random.Generator) -> np.ndarray:
    """`(count, 4)`, bool: two of four chosen in each row, such that columns and their complements sum to the same."""
    while True:
        chosen = generator.permuted(np.tile([True, True, False, False], (count, 1)), axis=1)
        sums = np.sort(chosen.sum(0))
        if (sums == np.sort(count - sums)).all():
            return chosen


def two_regular(nodes: int, generator: np.random.Generator) -> Couple:
    """Two graphs of one size whose nodes all have degree 4."""
    size = _size(nodes, generator)
    first, second = (networkx.random_regular_graph(4, size, seed=generator) for _ in range(2))
    return unlabelled(first), unlabelled(second)


def rook_and_shrikhande(nodes: int, generator: np.random.Generator) -> Couple:
    """The two strongly regular graphs of 16 nodes with degree 6 and two common neighbours of any two nodes."""
    rook = networkx.line_graph(networkx.complete_bipartite_graph(4, 4))
    steps = ((0, 1), (1, 0), (1, 1))
    places = itertools.product(range(4), range(4))
    found = [((r, c), ((r + dr) % 4, (c + dc) % 4)) for r, c in places for dr, dc in steps]
    return unlabelled(rook), unlabelled(networkx.Graph(found))


@functools.cache
def cospectral_atlas() -> list[Couple]:
    """Connected graphs of seven nodes with the same characteristic polynomial, two by two."""
    groups: dict[tuple[int, ...], list[Graph]] = {}
    for graph in networkx.graph_atlas_g():
        if len(graph) == 7 and networkx.is_connected(graph):
            polynomial = np.poly(networkx.to_numpy_array(graph)).round().astype(int)
            groups.setdefault(tuple(polynomial.tolist()), []).append(unlabelled(graph))
    return [couple for group in groups.values() for couple in itertools.combinations(group, 2)]


def from_atlas(nodes: int, generator: np.random.Generator) -> Couple:
    """Any of them."""
    couples = cospectral_atlas()
    return couples[generator.integers(len(couples))]


KINDS: dict[str, Callable[[int, np.random.Generator], Couple]] = {
    "random": two_drawn,
    "one_edge": edge_elsewhere,
    "swaps": swapped,
    "one_swap": functools.partial(swapped, count=1),
    "cospectral": switched,
    "regular": two_regular,
    "strongly_regular": rook_and_shrikhande,
    "atlas": from_atlas,
}


# --- pairs -----------------------------------------------------------------------------------------------


def couple(kind: str, nodes: int, generator: np.random.Generator) -> Couple:
    """Two graphs of that kind that are not isomorphic. Raises `UserError` for an unknown kind, or where none is found.

    Args:
        nodes: at most so many (from half as many up); the last two kinds have a size of their own.
    """
    draw = choose("kind of pairs", kind, KINDS)
    require(nodes >= LEAST, f"pairs of graphs of {nodes} nodes; expected at least {LEAST}.")
    for _ in range(TRIES):
        first, second = draw(nodes, generator)
        if not isomorphic(first, second):
            return first, second
    raise UserError(f"no two graphs of {nodes} nodes of the kind {kind!r} that are not isomorphic; use more nodes.")


def relabelled(graph: Graph, generator: np.random.Generator) -> Graph:
    """The same graph with its nodes in another order."""
    order = generator.permutation(len(graph)).tolist()
    made: Graph = networkx.Graph()
    made.add_nodes_from(range(len(graph)))
    made.add_edges_from((order[u], order[v]) for u, v in links(graph))
    return made


def pairs(kind: str, count: int, nodes: int, generator: np.random.Generator) -> list[Pair]:
    """So many pairs, every other one isomorphic, each from a couple of its own."""
    made = []
    for i in range(count):
        both: list[Any] = list(couple(kind, nodes, generator))
        first, second = (both[j] for j in generator.permutation(2))
        same = i % 2 == 0
        made.append(Pair(first, relabelled(first if same else second, generator), same, kind))
    return made


def apart(given: Sequence[Pair], others: Sequence[Pair]) -> list[Pair]:
    """Those of the given pairs none of whose graphs may be isomorphic to one of the others'."""
    known = {signature(graph) for pair in others for graph in pair[:2]}
    return [pair for pair in given if not known & {signature(pair.first), signature(pair.second)}]
