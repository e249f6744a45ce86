"""Random and real graphs, their batches, and what transforms make of them."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import torch

from ash import SparseBatch, UserError
from experiments.graph_data import GENERATORS, directed, make, real_graphs, split, to_batch, unlabelled
from experiments.graph_targets import oriented, transform


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("family", sorted(GENERATORS))
def test_a_family_has_the_nodes_and_about_the_links(family: str) -> None:
    graphs = make(family, 20, 128, 256, generator())
    assert all(sorted(graph) == list(range(128)) for graph in graphs)
    assert all(graph.__class__ is networkx.Graph and not networkx.number_of_selfloops(graph) for graph in graphs)
    links = [graph.number_of_edges() for graph in graphs]
    assert 240 < np.mean(links) < 270 and (family == "sbm" or len(set(links)) == 1)


def test_blocks_hold_four_fifths_of_the_links() -> None:
    graphs = make("sbm", 20, 128, 256, generator())
    inside = [u // 32 == v // 32 for graph in graphs for u, v in graph.edges]
    assert 0.77 < np.mean(inside) < 0.83


def test_families_take_turns() -> None:
    graphs = make("mixed", 6, 30, 60, generator())
    assert [graph.number_of_edges() for graph in graphs[:2]] == [60, 56]
    assert max(dict(graphs[4].degree()).values()) > max(dict(graphs[0].degree()).values())


@pytest.mark.parametrize(
    ("family", "nodes", "links", "message"),
    [("er", 4, 7, "expected 0 to 6"), ("er", 1, 0, "at least 2"), ("ring", 4, 4, "unknown family of graphs 'ring'")],
)
def test_impossible_graphs(family: str, nodes: int, links: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(family, 1, nodes, links, generator())


def test_parts_share_no_graph_and_follow_the_seed() -> None:
    parts = split("er", (3, 2, 2), 20, 40, 7)
    edges = [frozenset(graph.edges) for part in parts for graph in part]
    assert [len(part) for part in parts] == [3, 2, 2] and len(set(edges)) == 7
    again, other = split("er", (5, 2, 2), 20, 40, 7), split("er", (3, 2, 2), 20, 40, 8)
    assert [frozenset(graph.edges) for part in (again.validation, again.test) for graph in part] == edges[3:]
    assert not set(edges) & {frozenset(graph.edges) for part in other for graph in part}


def test_directions_are_drawn_and_some_links_have_both() -> None:
    graph = networkx.gnm_random_graph(60, 1000, seed=1)
    turned = directed(graph, generator(), both=0.3)
    assert {frozenset(edge) for edge in turned.edges} == {frozenset(edge) for edge in graph.edges}
    mutual = turned.number_of_edges() - 1000
    up = sum(u < v for u, v in turned.edges)
    assert 250 < mutual < 350 and 0.45 < up / turned.number_of_edges() < 0.55
    assert directed(graph, generator(), both=0.0).number_of_edges() == 1000
    assert directed(graph, generator(), both=1.0).number_of_edges() == 2000


def test_a_batch_holds_both_directions_of_a_link_and_a_loop_once() -> None:
    graph = networkx.Graph([("a", "b"), ("c", "c")])
    graph["a"]["b"]["weight"] = 2.5
    one, other = networkx.DiGraph([(0, 2)]), networkx.empty_graph(1)
    one.add_node(1)
    batch = to_batch([graph, one, other]).check("refuse")
    assert batch.instance.tolist() == [0, 0, 0, 1] and batch.sizes.tolist() == [[3, 3], [3, 3], [1, 1]]
    assert batch.indices.tolist() == [[0, 1], [1, 0], [2, 2], [0, 1]]
    assert to_batch([graph], weight="weight").values.tolist() == [2.5, 2.5, 1.0]


def test_nodes_are_numbered_in_their_order() -> None:
    one = networkx.DiGraph([(5, 3)])
    assert to_batch([one]).indices.tolist() == [[0, 1]] and list(unlabelled(one).edges) == [(0, 1)]


def test_graphs_without_nodes_are_refused() -> None:
    with pytest.raises(UserError, match="without nodes"):
        to_batch([networkx.Graph()])
    with pytest.raises(UserError, match="no graphs"):
        to_batch([])


def test_the_real_graphs() -> None:
    found = {name: (len(graph), graph.number_of_edges()) for name, graph in real_graphs().items()}
    assert found == {"karate": (34, 78), "les_miserables": (77, 254), "florentine": (15, 20)}


# --- transforms ------------------------------------------------------------------------------------


def dense(batch: SparseBatch) -> torch.Tensor:
    return batch.to_dense()


def small(undirected: bool) -> SparseBatch:
    graphs = [networkx.gnm_random_graph(n, 2 * n, seed=n) for n in (6, 9)] + [networkx.empty_graph(3)]
    return to_batch(graphs if undirected else [directed(graph, generator(), 0.3) for graph in graphs])


def test_transforms_are_the_dense_ones() -> None:
    x = small(undirected=False)
    a = dense(x)
    assert torch.equal(dense(transform("identity", 9, 0)(x)), a)
    assert torch.equal(dense(transform("reverse", 9, 0)(x)), a.transpose(1, 2))
    assert torch.equal(dense(transform("symmetric", 9, 0)(x)), a + a.transpose(1, 2))


def test_friends_of_friends_are_the_dense_ones() -> None:
    x = small(undirected=True)
    a = dense(x)
    expected = (a @ a) * (1 - a) * (1 - torch.eye(9))
    assert torch.equal(dense(transform("two_hop", 9, 0)(x)), expected) and expected.sum() > 0


def test_friends_of_friends_by_hand() -> None:
    # a square 0-1-2-3 with a tail 3-4: opposite corners have two friends in common, 4 has one with 0 and with 2
    y = transform("two_hop", 5, 0)(to_batch([networkx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (3, 4)])]))
    found = {tuple(place): value for place, value in zip(y.indices.tolist(), y.values.tolist(), strict=True)}
    assert found == {(0, 2): 2, (2, 0): 2, (1, 3): 2, (3, 1): 2, (0, 4): 1, (4, 0): 1, (2, 4): 1, (4, 2): 1}


def test_a_relabelled_graph_is_isomorphic_and_its_permutation_is_that_of_the_seed() -> None:
    graph = directed(networkx.gnm_random_graph(9, 18, seed=1), generator())
    x = to_batch([graph])
    y = transform("relabel", 9, 3)(x)
    assert torch.equal(dense(y), dense(transform("relabel", 9, 3)(x)))
    assert not torch.equal(dense(y), dense(transform("relabel", 9, 4)(x)))
    made = networkx.DiGraph(y.indices.tolist())
    made.add_nodes_from(range(9))
    assert networkx.is_isomorphic(graph, made) and not torch.equal(dense(y), dense(x))


def test_links_of_real_graphs_go_up() -> None:
    graph = oriented(networkx.Graph([(2, 1), (0, 2)]))
    assert sorted(graph.edges) == [(0, 2), (1, 2)]
