"""Personalised PageRank: exact, by power iteration, and how well the first ten of a ranking agree with it.

A walker starts at a seed node, follows a random link with probability 0.85 and goes back to the seed with probability
0.15; a node's rank is the share of time that it spends there. Source: Page, Brin, Motwani and Winograd (1999), 'The
PageRank citation ranking', section 2.6; the probability is networkx's.

All nodes of all graphs of a batch stand one after the other; every graph has as many seeds, each of which is a column.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int64
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from torch import Tensor

from ash import SparseBatch
from ash.checks import require
from ash.sites import Adjacency

RESTART = 0.15
TOP = 10
TIE = 1e-9
"""Relative difference below which two ranks are the same (nodes that are alike have the same but for rounding)."""


def first_nodes(graphs: SparseBatch) -> Int64[Tensor, " ends"]:
    """`(b + 1,)`: the nodes of graph i are those from its number up to the next."""
    return Adjacency(graphs).first


def ends(graphs: SparseBatch) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """The nodes (u, v) of every entry, numbered through the batch."""
    known = Adjacency(graphs)
    return known.row, known.col


def degrees(graphs: SparseBatch) -> Float[Tensor, " nodes"]:
    """The number of entries that leave each node."""
    nodes = int(first_nodes(graphs)[-1])
    return torch.bincount(ends(graphs)[0], minlength=nodes).float()


def walk(graphs: SparseBatch) -> scipy.sparse.csr_matrix:
    """`(nodes, nodes)`: (v, u) is the probability with which a walker at u goes to v; links count alike.

    A node without links has an empty column: a walker there goes back to the seed, as everywhere after a restart.
    """
    u, v = (part.cpu().numpy() for part in ends(graphs))
    nodes = int(first_nodes(graphs)[-1])
    return scipy.sparse.csr_matrix((1 / np.bincount(u, minlength=nodes)[u], (v, u)), shape=(nodes, nodes))


def personalised(graphs: SparseBatch, seeds: Int64[Tensor, "b c"]) -> Float[Tensor, "nodes c"]:
    """The exact ranks, float64, that sum to 1 in every graph: a solution of (1 - 0.85 · walk) p = 0.15 · seed."""
    step = walk(graphs)
    system = scipy.sparse.identity(step.shape[0], format="csc") - (1 - RESTART) * step.tocsc()
    ranks = torch.from_numpy(splu(system).solve(one_hot(graphs, seeds).double().numpy()))
    return ranks / per_graph_sum(graphs, ranks)


def per_graph_sum(graphs: SparseBatch, x: Float[Tensor, "nodes c"]) -> Float[Tensor, "nodes c"]:
    """For every node the sum over its graph."""
    own = torch.arange(len(graphs)).repeat_interleave(graphs.sizes[:, 0])
    return x.new_zeros(len(graphs), x.shape[1]).index_add(0, own, x)[own]


def one_hot(graphs: SparseBatch, seeds: Int64[Tensor, "b c"]) -> Float[Tensor, "nodes c"]:
    """1 at the seed of each column in every graph."""
    starts = first_nodes(graphs)
    whole = torch.zeros(int(starts[-1]), seeds.shape[1], device=seeds.device)
    return whole.scatter_(0, seeds + starts[:-1].unsqueeze(1), 1.0)


def power_iteration(graphs: SparseBatch, seeds: Int64[Tensor, "b c"], steps: int) -> Float[Tensor, "nodes c"]:
    """So many steps p ← 0.85 · walk · p + 0.15 · seed, from p = seed."""
    start = one_hot(graphs, seeds).double().numpy()
    step, ranks = walk(graphs), start
    for _ in range(steps):
        ranks = (1 - RESTART) * (step @ ranks) + RESTART * start
    return torch.from_numpy(ranks)


def by_degree(graphs: SparseBatch, seeds: Int64[Tensor, "b c"]) -> Float[Tensor, "nodes c"]:
    """The seed first, then nodes by their degree, wherever they are."""
    return degrees(graphs).unsqueeze(1) + one_hot(graphs, seeds) * 1e6


def neighbours(graphs: SparseBatch, seeds: Int64[Tensor, "b c"]) -> Float[Tensor, "nodes c"]:
    """The seed, then its neighbours by their degree, then the rest by theirs."""
    u, v = ends(graphs)
    near = one_hot(graphs, seeds)
    beside = torch.zeros_like(near).index_add(0, v, near[u]).clamp(max=1)
    return degrees(graphs).unsqueeze(1) + (2 * near + beside) * 1e6


BASELINES: dict[str, Callable[[SparseBatch, Tensor], Tensor]] = {"degree": by_degree, "neighbours": neighbours}


# --- seeds, and agreement --------------------------------------------------------------------------------


def seedable(graphs: SparseBatch) -> Bool[Tensor, " nodes"]:
    """Nodes from which more than ten others can be reached, so that the first ten are decided by their ranks."""
    labels = connected_components(walk(graphs), directed=False)[1]
    return torch.from_numpy(np.bincount(labels)[labels] > TOP + 1)


def draw_seeds(graphs: SparseBatch, count: int, generator: torch.Generator | None = None) -> Int64[Tensor, "b c"]:
    """Different seeds for each graph (again the same ones where there are fewer), numbered within it.

    Raises `UserError` for a graph without a node from which more than ten others can be reached.
    """
    fit, starts = seedable(graphs), first_nodes(graphs).tolist()
    found = []
    for i, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
        usable = fit[start:end].nonzero().squeeze(1)
        require(len(usable) > 0, f"graph {i} of {end - start} nodes, none of which reaches {TOP + 1} others; expected "
                                 "one; use more links.")  # fmt: skip
        order = torch.randperm(len(usable), generator=generator)
        found.append(usable[order.repeat(-(-count // len(order)))[:count]])
    return torch.stack(found)


def overlaps(
    graphs: SparseBatch,
    seeds: Int64[Tensor, "b c"],
    scores: Float[Tensor, "nodes c"],
    ranks: Float[Tensor, "nodes c"],
    with_seed: bool = False,
) -> Float[Tensor, "b c"]:
    """The share of the first ten nodes by score that are among the first ten by rank; without the seed, or with it.

    Nodes whose rank ties with the tenth are among the ten each as well as the other, as many of them as there is
    room for; nodes whose scores tie are taken in a random order, always the same.
    """
    starts, generator = first_nodes(graphs).tolist(), torch.Generator().manual_seed(0)
    found = torch.zeros(seeds.shape, dtype=torch.float64)
    for i, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
        for j, seed in enumerate(seeds[i].tolist()):
            kept = torch.randperm(end - start, generator=generator)
            kept = kept if with_seed else kept[kept != seed]
            found[i, j] = overlap(scores[start:end, j][kept], ranks[start:end, j][kept])
    return found


def overlap(scores: Float[Tensor, " n"], ranks: Float[Tensor, " n"], top: int = TOP) -> float:
    """As `overlaps`, of one graph and seed; the first of tied scores are taken."""
    top = min(top, len(ranks))
    last = ranks.sort(descending=True).values[top - 1]
    above, level = ranks > last * (1 + TIE), (ranks - last).abs() <= last * TIE
    chosen = scores.argsort(descending=True, stable=True)[:top]
    return (int(above[chosen].sum()) + min(int(level[chosen].sum()), top - int(above.sum()))) / top
