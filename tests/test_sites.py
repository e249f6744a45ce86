"""Sites: entries and paths of two against plain Python loops, features by hand, gradients, errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ash import Sites, SparseBatch, UserError, entry_sites, path_sites

Graph = tuple[int, list[tuple[int, int]]]


@st.composite
def graph(draw: st.DrawFn) -> Graph:
    """A graph of up to 5 nodes, its edges in any order, each once."""
    n = draw(st.integers(1, 5))
    end = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(end, end), max_size=12, unique=True))


def batch(graphs: list[Graph]) -> SparseBatch:
    """Entries have their number in the batch, from 1, as their value."""
    indices = [torch.tensor(edges, dtype=torch.int64).reshape(-1, 2) for _, edges in graphs]
    count = torch.arange(1, 1 + sum(map(len, indices)), dtype=torch.float64)
    return SparseBatch.from_entries(indices, count.split([len(part) for part in indices]), [(n, n) for n, _ in graphs])


def degrees(edges: list[tuple[int, int]], node: int) -> list[float]:
    return [math.log1p(sum(edge[side] == node for edge in edges)) for side in (0, 1)]


def rows(sites: Sites) -> list[tuple[object, ...]]:
    """Every site as plain numbers, features rounded."""
    features = [tuple(round(f, 9) for f in row) for row in sites.features.tolist()]
    return list(zip(sites.entry.tolist(), map(tuple, sites.candidates.tolist()), features, strict=True))


@given(st.lists(graph(), min_size=1, max_size=3))
def test_paths_as_a_loop_finds_them(graphs: list[Graph]) -> None:
    wanted, number = [], 0
    for _, edges in graphs:
        for i, (u, v) in enumerate(edges):
            for j, (middle, w) in enumerate(edges):
                if middle != v:
                    continue
                between = sum((u, m) in edges and (m, w) in edges for m in range(5))
                known = [number + i + 1, number + j + 1, w == u, (u, w) in edges, 1 / between]
                known += [d for node in (u, v, w) for d in degrees(edges, node)]
                wanted.append((number + i, (u, v, w), tuple(round(float(f), 9) for f in known)))
        number += len(edges)
    sites = path_sites(batch(graphs))
    assert len(sites) == len(wanted) and sorted(rows(sites)) == sorted(wanted)
    assert sites.candidates.shape == (len(wanted), 3) and sites.features.shape == (len(wanted), 11)
    assert (sites.entry[1:] >= sites.entry[:-1]).all()


@given(st.lists(graph(), min_size=1, max_size=3), st.integers(0, 3))
def test_entries_as_a_loop_finds_them(graphs: list[Graph], neighbours: int) -> None:
    wanted, number = [], 0
    for _, edges in graphs:
        for u, v in edges:
            others = [w for m, w in sorted(edges) if m == v]
            others.sort(key=lambda node: -sum(degrees(edges, node)))
            others = (others + [-1] * neighbours)[:neighbours]
            known = [number + 1, (v, u) in edges, u == v, *degrees(edges, u), *degrees(edges, v)]
            wanted.append((number, (u, v, *others), tuple(round(float(f), 9) for f in known)))
            number += 1
    assert rows(entry_sites(batch(graphs), neighbours=neighbours)) == wanted


def test_node_features_and_channels() -> None:
    x = batch([(2, [(0, 1)]), (3, [(2, 0), (0, 0)])])
    nodes = torch.arange(5.0, dtype=torch.float64).unsqueeze(1).requires_grad_()
    sites = entry_sites(x.with_values(torch.rand(3, 2, dtype=torch.float64)), nodes)
    assert sites.features.shape == (3, 2 + 2 + 2 * 3)
    assert sites.features[:, [6, 9]].tolist() == [[0, 1], [4, 2], [2, 2]]
    sites.features[:, [6, 9]].sum().backward()
    assert nodes.grad is not None and nodes.grad.flatten().tolist() == [1, 1, 3, 0, 1]
    paths = path_sites(x, nodes)
    assert paths.candidates.tolist() == [[2, 0, 0], [0, 0, 0]]
    assert paths.features[:, [7, 10, 13]].tolist() == [[4, 2, 2], [2, 2, 2]]


def test_errors() -> None:
    x = batch([(3, [(0, 1)])])
    with pytest.raises(UserError, match=r"features of shape \(2, 1\) for 3 nodes"):
        entry_sites(x, torch.zeros(2, 1))
    with pytest.raises(UserError, match="neighbours=-1"):
        entry_sites(x, neighbours=-1)
    with pytest.raises(UserError, match="tensors of rank 3"):
        path_sites(SparseBatch.from_entries([torch.zeros(1, 3)], None, [(2, 2, 2)]))
    with pytest.raises(UserError, match=r"matrices of sizes \[\[2, 3\]\]"):
        entry_sites(SparseBatch.from_entries([torch.zeros(1, 2)], None, [(2, 3)]))
