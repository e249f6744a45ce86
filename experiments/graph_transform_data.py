"""The graphs of a transform with their answers: to train on, to choose by, to judge by, four times larger, and real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import networkx
import numpy as np
import torch

from ash import SparseBatch
from experiments.graph_data import directed, make, real_graphs, split, to_batch
from experiments.graph_targets import Transform, oriented, transform

LARGER = 4


class Pairs(NamedTuple):
    """Graphs, each a batch of one, and their transforms."""

    x: list[SparseBatch]
    y: list[SparseBatch]

    def batch(self, numbers: Sequence[int]) -> tuple[SparseBatch, SparseBatch]:
        """The graphs of those numbers and their transforms."""
        return SparseBatch.cat([self.x[i] for i in numbers]), SparseBatch.cat([self.y[i] for i in numbers])


class Data(NamedTuple):
    """All graphs of a run; `larger` is empty where the task does not allow any."""

    train: Pairs
    validation: Pairs
    test: Pairs
    larger: Pairs
    real: dict[str, Pairs]


def prepare(options: Any, device: torch.device) -> Data:
    """The graphs of a run, from its seed alone."""
    own, nodes = options.transform, options.nodes
    answer = transform(options.task, nodes, options.seed)
    generator = np.random.default_rng([options.seed, LARGER])
    undirected = options.task == "two_hop"

    def pairs(graphs: Sequence[networkx.Graph[int]]) -> Pairs:
        turned = graphs if undirected else [directed(graph, generator, own.both) for graph in graphs]
        return solve([to_batch([graph]).to(device) for graph in turned], answer)

    train, validation, test = map(pairs, split(own.graphs, own.counts, nodes, own.links, options.seed))
    larger = pairs(make(own.graphs, own.larger, LARGER * nodes, LARGER * own.links, generator))
    least = nodes if options.task == "relabel" else 0
    others = {name: solve([x.to(device)], answer) for name, x in real(undirected, least).items()}
    return Data(train, validation, test, larger, others)


def solve(graphs: list[SparseBatch], answer: Transform) -> Pairs:
    """The graphs beside their transforms."""
    return Pairs(graphs, [answer(graph) for graph in graphs])


def real(undirected: bool, least: int) -> dict[str, SparseBatch]:
    """The real graphs; every link has a direction, from the lower to the higher number, unless `undirected`.

    A graph of fewer than `least` nodes has that many, the others without a link; with a `least` above 0 graphs of
    more nodes are left out.
    """
    found = {}
    for name, graph in real_graphs().items():
        if not least or len(graph) <= least:
            graph.add_nodes_from(range(len(graph), least))
            found[name] = to_batch([graph if undirected else oriented(graph)])
    return found
