"""What transforms make of graphs, by sparse products and sorting: the answers that a layer is to find."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import networkx
import numpy as np
import scipy.sparse
import torch
from jaxtyping import Int64
from torch import Tensor

from ash import SparseBatch

Transform = Callable[[SparseBatch], SparseBatch]


def identity(x: SparseBatch) -> SparseBatch:
    """The graph itself."""
    return x.coalesce()


def reverse(x: SparseBatch) -> SparseBatch:
    """Every edge turned round."""
    return x.permute(1, 0).coalesce()


def symmetric(x: SparseBatch) -> SparseBatch:
    """The symmetric closure: an edge each way where there is one either way; a value of 2 where there are both.

    So x + xᵀ, whose entries are those of the closure, and linear in x.
    """
    back = x.permute(1, 0)
    both = [torch.cat([a, b]) for a, b in zip(_parts(x), _parts(back), strict=True)]
    order = both[0].argsort(stable=True)
    return SparseBatch(both[0][order], both[1][order], both[2][order], x.sizes).coalesce()


def _parts(x: SparseBatch) -> tuple[Tensor, Tensor, Tensor]:
    return x.instance, x.indices, x.values


def two_hop(x: SparseBatch) -> SparseBatch:
    """Friends of friends: u and w ≠ u that are not linked and have friends in common, as many as the value says."""
    return SparseBatch.cat([_two_hop(graph) for graph in x])


def _two_hop(graph: SparseBatch) -> SparseBatch:
    shape, (rows, columns) = tuple(graph.sizes[0].tolist()), graph.indices.t().cpu().numpy()
    linked = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr().astype(bool).astype(float)
    common = (linked @ linked).tocoo()
    keep = common.row != common.col
    pairs = np.stack([common.row[keep], common.col[keep]], 1)
    new = ~np.isin(pairs @ np.array([shape[1], 1]), rows * shape[1] + columns)
    indices, values = torch.from_numpy(pairs[new]).long(), torch.from_numpy(common.data[keep][new])
    made = SparseBatch.from_entries([indices], [values.to(graph.values.dtype)], [shape])
    return made.to(graph.values.device).coalesce()


def new_numbers(nodes: int, seed: int) -> Int64[Tensor, " n"]:
    """The permutation of a seed: the new number of every node."""
    return torch.from_numpy(np.random.default_rng([seed, nodes]).permutation(nodes))


def relabel(order: Int64[Tensor, " n"], x: SparseBatch) -> SparseBatch:
    """Node u becomes node order[u]."""
    return SparseBatch(x.instance, order.to(x.instance.device)[x.indices], x.values, x.sizes).coalesce()


def transform(task: str, nodes: int, seed: int) -> Transform:
    """The transform that a task is to learn; `relabel` takes its permutation of `nodes` from the seed."""
    known: dict[str, Transform] = {"identity": identity, "reverse": reverse, "symmetric": symmetric}
    return (known | {"two_hop": two_hop, "relabel": partial(relabel, new_numbers(nodes, seed))})[task]


def oriented(graph: networkx.Graph[int]) -> networkx.DiGraph[int]:
    """The graph with every link from its lower to its higher node."""
    made: networkx.DiGraph[int] = networkx.DiGraph()
    made.add_nodes_from(graph)
    made.add_edges_from((min(u, v), max(u, v)) for u, v in graph.edges)
    return made
