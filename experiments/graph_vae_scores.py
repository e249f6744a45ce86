"""How good a graph VAE is: its reconstructions, and what its samples have in common with graphs not trained on.

The maximum mean discrepancy of two sets of graphs is that of their degree histograms (shares of a graph's nodes with
0, 1, … links) under a Gaussian kernel, MMD² = mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over all pairs, each with
itself among them (biased): exp(-d² / 2w²) with d the Euclidean distance of two histograms and w the bandwidth. At
bandwidth 1 any two graphs are all but alike, as histograms are at most √2 apart; at the median distance of two test
graphs (`narrow`) the kernel sees what differs. `emd` has the earth mover's distance for d, in links, and w = 1.

Source: Gretton et al., `A kernel two-sample test` (2012); for graphs You et al., GraphRNN (arXiv 1802.08773).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ash import edge_scores
from experiments.graph_vae_code import to_sparse
from experiments.graph_vae_data import Graphs, classes

BANDWIDTH = 1.0


def degree_histograms(graphs: Graphs) -> Float[Tensor, "b m"]:
    """Of each graph the shares of its nodes that have 0 … m - 1 links."""
    degrees, m = graphs.adjacency.sum(2), graphs.adjacency.shape[1]
    counts = torch.zeros(len(degrees), m).scatter_add_(1, degrees, graphs.present.float())
    return counts / graphs.nodes[:, None]


def median_distance(histograms: Float[Tensor, "b m"]) -> float:
    """Of two histograms; at least 1e-6."""
    return max(1e-6, float(torch.pdist(histograms).median()))


def mmd(x: Float[Tensor, "a m"], y: Float[Tensor, "b m"], bandwidth: float = BANDWIDTH, emd: bool = False) -> float:
    """Biased MMD² of two sets of histograms; with `emd` d is the earth mover's distance, in bins."""

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        apart = torch.cdist(u.cumsum(1), v.cumsum(1), p=1) if emd else torch.cdist(u, v)
        return torch.exp(-apart.square() / (2 * bandwidth**2)).mean()

    x, y = x.double(), y.double()
    return float(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


def connected(graphs: Graphs) -> Bool[Tensor, " b"]:
    """Whether every node can be reached from the first."""
    step = graphs.adjacency.float()
    reached = torch.zeros(step.shape[:2])
    reached[:, 0] = 1
    for _ in range(step.shape[1] - 1):
        reached = (reached + (step @ reached.unsqueeze(-1)).squeeze(-1)).clamp(max=1)
    return reached.sum(1) == graphs.nodes


def random_graphs(like: Graphs) -> Graphs:
    """Graphs of the same sizes whose pairs are all linked with the same chance, that of a pair of `like`."""
    pairs = like.present.unsqueeze(1) & like.present.unsqueeze(2)
    pairs = pairs.tril(-1)
    chance = like.adjacency.sum() / 2 / pairs.sum()
    links = (torch.rand(pairs.shape) < chance) & pairs
    return Graphs(links | links.transpose(1, 2), like.nodes)


def sample_scores(samples: Graphs, test: Graphs, known: Collection[bytes]) -> dict[str, Any]:
    """What samples are like beside test graphs.

    Args:
        known: classes of the training graphs; see `classes`.

    Returns `degree_mmd` (bandwidth 1), `degree_mmd_narrow`, `degree_mmd_emd`; `valid`, the share of connected graphs;
    `novel`, of those not isomorphic to a training graph; `unique`, different graphs for each one drawn (two graphs of
    the same closed walks count as isomorphic, so that neither is too high); `links` and `nodes`, their means.
    """
    found, wanted = degree_histograms(samples), degree_histograms(test)
    names = classes(samples)
    return {
        "degree_mmd": mmd(found, wanted),
        "degree_mmd_narrow": mmd(found, wanted, median_distance(wanted)),
        "degree_mmd_emd": mmd(found, wanted, emd=True),
        "valid": float(connected(samples).double().mean()),
        "novel": sum(name not in known for name in names) / len(names),
        "unique": len(set(names)) / len(names),
        "links": float(samples.adjacency.sum() / 2 / len(names)),
        "nodes": float(samples.nodes.double().mean()),
    }


def reconstruction_scores(found: Graphs, wanted: Graphs) -> dict[str, float]:
    """`f1`, `precision` and `recall` over links, `exact` (graphs without an error), `size` (of the right size)."""
    scores = edge_scores(to_sparse(found), to_sparse(wanted))
    size = float((found.nodes == wanted.nodes).double().mean())
    return {**scores._asdict(), "size": size}
