"""Graphs of the benchmark: an edge-wise layer learns to turn edges round, on one graph of ten edges a node.

A step is forward, loss, backward (to the parameters and to the input's values) and Adam, as in
`graphs --task reverse`. Every step gets its graph anew, so that nothing is known of it from the step before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ash import EdgeHypernetwork, EdgeLayer, EdgeWiring, SparseBatch, sparse_loss
from experiments.benchmark_oracle import compare

EDGES, HIDDEN, LR = 10, 32, 0.03
"""Edges of each node, hidden units of the perceptron, Adam's step."""
SMALL = (7, 5)
"""Nodes of the graphs on which the layer is compared with its dense meaning."""


def edge_layer() -> EdgeLayer:
    """The layer of the task `reverse`: one tuple for each edge."""
    return EdgeLayer(EdgeWiring(partial(EdgeHypernetwork, hidden=(HIDDEN,))))


def random_graph(n: int) -> SparseBatch:
    """n nodes and `EDGES` · n edges, all different, with gradients by their values."""
    count = min(EDGES * n, n * n)
    ids = torch.randint(n * n, (count,)).unique()
    while len(ids) < count:
        more = torch.randint(n * n, (2 * (count - len(ids)),))
        ids = torch.cat([ids, more]).unique()
    ids = ids[torch.randperm(len(ids))[:count]].sort().values
    edges = torch.stack([ids // n, ids % n], 1)
    return SparseBatch.from_entries([edges], [torch.ones(count).requires_grad_()], [(n, n)])


def graph_step(n: int) -> Callable[[], object]:
    """A training step on a graph of n nodes."""
    layer, graph = edge_layer(), random_graph(n)
    target = graph.permute(1, 0).coalesce().with_values(torch.ones(graph.entries))
    optimizer = torch.optim.Adam(layer.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        graph.values.grad = None
        sparse_loss(layer(replace(graph)), replace(target)).backward()
        optimizer.step()

    return step


def check_graphs() -> float:
    """Largest relative error of output, loss and gradients against the dense weight tensor of rank 4."""
    layer = edge_layer()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = SparseBatch.cat([random_graph(n) for n in SMALL])
    x = x.with_values(torch.randn(x.entries, requires_grad=True))
    target = x.permute(1, 0).with_values(torch.ones(x.entries))
    found = layer(x)
    weight = layer.wiring(x).as_batch().to_dense()
    dense = torch.einsum("bijkl,bkl->bij", weight, x.to_dense())
    squares = (dense - target.to_dense()).square().sum() / target.entries
    return compare(layer, x.values, _flat(found.to_dense(), sparse_loss(found, target)), _flat(dense, squares))


def _flat(y: Tensor, loss: Tensor) -> Tensor:
    return torch.cat([y.flatten(), loss.reshape(1)])
