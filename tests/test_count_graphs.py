"""`ash.count` of node graphs: small cases by hand, and the published costs of chained graphs before training."""

from __future__ import annotations

import functools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ash import Discrete, NodeGraph, SparseConv2d, SparseLinear, StaticWiring, UserError
from ash.count import Count, count
from experiments.node_nets import CHAIN, ChainedGraphs, edges_of

COSTS = [(0.15, True, 35.3), (0.225, True, 54.9), (0.225, False, 55.7), (0.3, False, 77.9), (0.49, False, 158.8)]
EDGES = {0.15: 70_643, 0.225: 158_944, 0.3: 282_565, 0.49: 753_816}


def wire(k: int) -> partial[StaticWiring]:
    return partial(StaticWiring, k=k)


def test_a_graph_by_hand() -> None:
    """0 -> 2 -> 3 and 0 -> 3 of 2 inputs, 1 hidden, 1 output, on 4 × 5: 3 edges; the functions of nodes 0 and 2."""
    indices = torch.tensor([[2, 0], [3, 2], [3, 0]])
    graph = NodeGraph(2, 1, 1, wiring=StaticWiring(4, 4, indices=indices))
    found = count(graph, torch.zeros(1, 2, 4, 5))
    assert found.flops == 2 * (3 + 2 * 9) * 20
    assert count(graph).flops == 2 * (3 + 2 * 9)
    assert (found.values, found.indices, found.biases) == (3 + 3 * 9 + 3, 3, 3)
    later = NodeGraph(2, 1, 1, wiring=StaticWiring(4, 4, indices=indices), dynamics=Discrete(3))
    assert count(later, torch.zeros(1, 2, 4, 5)).flops == 3 * found.flops
    assert later.training and graph.training


def test_an_entry_counts_for_the_nodes_that_are_read() -> None:
    """Of 4 input nodes 1 is read: 27 of the 108 weights of the convolution that makes them, a quarter of the next."""
    entry = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    wiring = StaticWiring(5, 5, indices=torch.tensor([[4, 1]]))
    x = torch.zeros(2, 3, 8, 8)
    assert count(NodeGraph(4, 0, 1, wiring=wiring, entry=entry), x).flops == 2 * 16 * (1 + 27 + 9)
    mixing = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    assert count(NodeGraph(4, 0, 1, wiring=wiring, entry=mixing), x).flops == 2 * 64 * (1 + 12 + 4)


def test_positions_of_other_layers() -> None:
    conv = SparseConv2d(3, 4, 3, wiring=partial(StaticWiring, k=10))
    linear = SparseLinear(3, 5, wiring=partial(StaticWiring, k=7))
    model = nn.Sequential(conv, nn.AvgPool2d(2), nn.Flatten(0, 2), linear)
    found = {each.name: each.flops for each in count(model, torch.zeros(2, 3, 8, 8)).layers}
    assert found == {"0": 2 * 10 * 36, "1": 2 * 4 * 36, "3": 2 * 7 * 12}
    assert count(nn.Conv2d(2, 2, 3, bias=False), torch.zeros(1, 2, 5, 6)).flops == 2 * 36 * 12
    assert count(nn.Linear(3, 5), torch.zeros(2, 7, 3)).flops == 2 * 15 * 7
    with pytest.raises(UserError, match="expected a batch"):
        count(nn.Linear(3, 5), torch.zeros(0, 3))


# --- chained graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", EDGES)
def test_edges_of_the_chained_graphs(width: float) -> None:
    each = [edges_of(width, taken, given, blocks) for taken, given, _, blocks in CHAIN]
    assert sum(each) == EDGES[width]
    if width == 0.225:
        assert each == [104, 1_245, 4_977, 72_991, 79_627]


@functools.cache
def published_weights() -> list[Tensor]:
    """Initial weights of the graphs (targets × sources, without inputs as targets), drawn in the published order."""
    torch.manual_seed(0)
    nn.Conv2d(3, 32, 3, bias=False)
    weights = []
    for taken, given, _, blocks in CHAIN:
        sources, targets = taken + (blocks - 1) * given, blocks * given
        nn.Conv2d(taken, taken, 3, groups=taken, bias=False)
        if blocks > 1:
            nn.Conv2d(targets - given, targets - given, 3, groups=targets - given, bias=False)
        weights.append(nn.Conv2d(sources, targets, 1, bias=False).weight.detach().flatten(1))
    return weights


@functools.cache
def drawn(width: float, usable: bool) -> list[StaticWiring]:
    """The k largest of these weights, as edges; of all of them as published, or of those that point forward."""
    wirings = []
    for (taken, given, _, blocks), weight in zip(CHAIN, published_weights(), strict=True):
        k, n, score = edges_of(width, taken, given, blocks), taken + len(weight), weight.abs()
        for block in range(1, blocks if usable else 1):
            first = taken + (block - 1) * given
            score[: block * given, first : first + given] = -1
        ids = score.flatten().topk(k).indices.sort().values
        indices = torch.stack([ids // weight.shape[1] + taken, ids % weight.shape[1]], -1)
        wirings.append(StaticWiring(n, n, indices=indices))
    return wirings


def as_published(width: float, small: bool) -> nn.Module:
    """The chain as it was drawn: about a third of its edges go backwards, which only a graph in time can have."""
    graphs = []
    for (taken, given, stride, blocks), wiring in zip(CHAIN, drawn(width, usable=False), strict=True):
        first = nn.MaxPool2d(1, stride) if graphs else nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        hidden = (blocks - 1) * given
        graphs.append(
            NodeGraph(taken, hidden, given, wiring=wiring, norm="batch", entry=first, dynamics=Discrete(1))
        )
    last = SparseLinear(1024, 1000, False, wiring=wire(int(width * 1_024_000))) if small else nn.Linear(1024, 1000)
    return nn.Sequential(*graphs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def macs(model: nn.Module) -> float:
    """Millions of multiplications with addition at 224 × 224."""
    return count(model, torch.zeros(1, 3, 224, 224)).flops / 2e6


@pytest.mark.parametrize(("width", "small", "published"), COSTS)
def test_the_published_costs(width: float, small: bool, published: float) -> None:
    """At seed 0: the edges drawn, the functions of nodes that an edge leaves, stem, pooling, classifier."""
    assert round(macs(as_published(width, small)), 1) == published


@pytest.mark.parametrize(("width", "small", "published"), COSTS[:3])
def test_the_costs_of_graphs_whose_edges_can_all_be_used(width: float, small: bool, published: float) -> None:
    """The same weights; 22 nodes of the second graph at ×.15, which backward edges alone had read, cost nothing."""
    given = iter([*drawn(width, usable=True), wire(int(width * 1_024_000))])
    model = ChainedGraphs(width, lambda k: next(given), small=small)
    assert round(macs(model), 1) == (34.9 if width == 0.15 else published)
    assert sum(graph.wiring.stored_entries() for graph in model.graphs) == EDGES[width]


def test_every_node_is_read_where_there_are_enough_edges() -> None:
    """Closed form at ×.49: stem, depthwise convolutions, edges, pooling, classifier."""
    pixels = [112**2, 56**2, 28**2, 14**2, 7**2]
    expected = 27 * 32 * pixels[0] + 49 * 1024 + 1000 * 1024
    for (taken, given, _, blocks), positions in zip(CHAIN, pixels, strict=True):
        expected += positions * (9 * (taken + (blocks - 1) * given) + edges_of(0.49, taken, given, blocks))
    assert expected == 158_835_017
    given = iter(drawn(0.49, usable=True))
    found: Count = count(ChainedGraphs(0.49, lambda k: next(given)), torch.zeros(1, 3, 224, 224))
    assert found.flops == 2 * expected
