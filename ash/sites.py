"""Sites: where in a batch of graphs an edge-wise hypernetwork is applied, what it sees there, and where it can point.

Everything is found by sorting and counting, at a cost proportional to the stored entries (or to the paths of two).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ash.checks import choose, positive, require
from ash.pattern import pointers
from ash.sparse_batch import SparseBatch


@dataclass(frozen=True, eq=False)
class Sites:
    """s places in a batch of graphs, in the order of the batch.

    Attributes:
        entry: `(s,)`, int64, the number of the input's entry that a site multiplies; never decreasing.
        candidates: `(s, l)`, int64, nodes of its own graph to which its pointers can point; −1 where there is none.
        features: `(s, f)`, what a hypernetwork sees.
    """

    entry: Int64[Tensor, " s"]
    candidates: Int64[Tensor, "s l"]
    features: Float[Tensor, "s f"]

    def __len__(self) -> int:
        """s, the number of sites."""
        return len(self.entry)


class Adjacency:
    """Who is whose neighbour in a batch of graphs.

    Args:
        x: matrices `(n_i, n_i)`. Raises `UserError` for tensors of another rank, and for other sizes.

    Attributes:
        first: `(b + 1,)`, number of the first node of every graph, where all nodes of the batch are numbered.
        row, col: `(n,)`, the ends of every entry in these numbers.
    """

    def __init__(self, x: SparseBatch):
        require(x.rank == 2, f"tensors of rank {x.rank}; expected graphs, as adjacency matrices of rank 2.")
        square = bool((x.sizes[:, 0] == x.sizes[:, 1]).all())
        require(square, f"matrices of sizes {x.sizes[:4].tolist()}; expected graphs, as many rows as columns.")
        self.x = x
        self.first = x.sizes.new_zeros(len(x) + 1)
        self.first[1:] = x.sizes[:, 0].cumsum(0)
        shift = self.first[x.instance]
        self.row, self.col = x.indices[:, 0] + shift, x.indices[:, 1] + shift

    @property
    def nodes(self) -> int:
        """How many nodes all graphs have together."""
        return int(self.first[-1])

    @cached_property
    def degrees(self) -> Float[Tensor, "nodes 2"]:
        """log(1 + entries) in the row and in the column of every node."""
        ends = [torch.bincount(end, minlength=self.nodes) for end in (self.row, self.col)]
        return torch.stack(ends, 1).to(self.x.values.dtype).log1p_()

    @cached_property
    def order(self) -> Int64[Tensor, " n"] | None:
        """The entries in the order of their positions; None where they are in it."""
        ids = self.x.ids
        return None if bool((ids[1:] >= ids[:-1]).all()) else torch.argsort(ids)

    @cached_property
    def starts(self) -> Int64[Tensor, " ends"]:
        """`(nodes + 1,)`: where the entries of every row begin in `order`."""
        return pointers(self.row, self.nodes)

    def ordered(self, part: Tensor) -> Tensor:
        """Something of every entry, in `order`."""
        return part if self.order is None else part[self.order]

    def among(self, ids: Int64[Tensor, " s"]) -> Bool[Tensor, " s"]:
        """Whether there is an entry at each of some positions, given as `SparseBatch.ids` numbers them."""
        own = self.ordered(self.x.ids)
        if not len(own):
            return torch.zeros_like(ids, dtype=torch.bool)
        return own[torch.searchsorted(own, ids).clamp_(max=len(own) - 1)] == ids

    def channels(self) -> Float[Tensor, "n c"]:
        """The values of every entry, one column for each channel."""
        return self.x.values.unsqueeze(-1).flatten(1)


def feature_count(sites: str, channels: int = 1, node_features: int = 0) -> int:
    """f, how many features the sites called `"entry"` or `"path"` have; `UserError` for others."""
    ends, entries, extra = choose("kind of site", sites, {"entry": (2, 1, 2), "path": (3, 2, 3)})
    return entries * channels + extra + ends * (2 + node_features)


def entry_sites(x: SparseBatch, nodes: Float[Tensor, "nodes g"] | None = None, neighbours: int = 0) -> Sites:
    """One site for every stored entry (u, v).

    Args:
        x: graphs. nodes: features of all nodes, those of one graph after those of the other; gradients reach them.
        neighbours: how many neighbours of v follow in the list of candidates: ends of entries in its row, those of
            the largest degree first.

    Candidates are u, v, and the neighbours. Features are the entry's value (all its channels), whether (v, u) is an
    entry, whether u = v, and of u and of v log(1 + entries) in row and in column and what `nodes` says.

    Neighbours of equal degree stand in the order of their numbers; but for that, another numbering of the nodes
    changes nothing.

    Raises `UserError` for tensors that are not square matrices, and for `nodes` of another number.
    """
    positive("neighbours", neighbours, zero=True)
    graph = Adjacency(x)
    u, v = x.indices.unbind(1)
    mutual = graph.among(x.ids_of(x.instance, torch.stack([v, u], 1)))
    parts = [graph.channels(), torch.stack([mutual, u == v], 1)]
    features = _features(graph, parts, (graph.row, graph.col), nodes)
    candidates = x.indices
    if neighbours:
        candidates = torch.cat([candidates, _neighbours(graph, neighbours)], 1)
    return Sites(torch.arange(x.entries, device=u.device), candidates, features)


def path_sites(x: SparseBatch, nodes: Float[Tensor, "nodes g"] | None = None) -> Sites:
    """One site for every path of two entries, (u, v) and (v, w), which multiplies the first.

    Args:
        x: graphs. nodes: features of all nodes, those of one graph after those of the other; gradients reach them.

    Candidates are u, v, w. Features are the values of both entries, whether w = u, whether (u, w) is an entry, one
    over the number of paths of two from u to w, and of u, v and w log(1 + entries) in row and in column and what
    `nodes` says.

    Raises `UserError` for tensors that are not square matrices, and for `nodes` of another number.
    """
    graph = Adjacency(x)
    one, two = _paths(graph)
    u, v, w = x.indices[one, 0], x.indices[one, 1], x.indices[two, 1]
    ids = x.ids_of(x.instance[one], torch.stack([u, w], 1))
    _, place, count = torch.unique(ids, return_inverse=True, return_counts=True)
    values = graph.channels()
    known = torch.stack([w == u, graph.among(ids), count.to(values.dtype).reciprocal()[place]], 1)
    parts = [values[one], values[two], known]
    features = _features(graph, parts, (graph.row[one], graph.col[one], graph.col[two]), nodes)
    return Sites(one, torch.stack([u, v, w], 1), features)


def _features(
    graph: Adjacency, parts: Sequence[Tensor], ends: Sequence[Tensor], nodes: Tensor | None
) -> Float[Tensor, "s f"]:
    """What is known of sites, then of the nodes at their ends."""
    dtype = graph.x.values.dtype
    known = graph.degrees
    if nodes is not None:
        require(
            nodes.dim() == 2 and len(nodes) == graph.nodes,
            f"features of shape {tuple(nodes.shape)} for {graph.nodes} nodes; expected (all nodes, features).",
        )
        known = torch.cat([known, nodes.to(dtype)], 1)
    return torch.cat([*(part.to(dtype) for part in parts), *(known.index_select(0, end) for end in ends)], 1)


def _paths(graph: Adjacency) -> tuple[Int64[Tensor, " s"], Int64[Tensor, " s"]]:
    """Numbers of the first and of the second entry of every path."""
    low = graph.starts[graph.col]
    count = graph.starts[graph.col + 1] - low
    one = torch.arange(len(count), device=count.device).repeat_interleave(count)
    before = count.cumsum(0) - count
    place = torch.arange(len(one), device=one.device) - (before - low)[one]
    return one, place if graph.order is None else graph.order[place]


def _neighbours(graph: Adjacency, most: int) -> Int64[Tensor, "n most"]:
    """The first neighbours of every entry's column node, by falling degree; −1 where there are fewer."""
    row, col, index = (graph.ordered(part) for part in (graph.row, graph.col, graph.x.indices[:, 1]))
    order = graph.degrees.sum(1)[col].sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]
    place = graph.starts[graph.col].unsqueeze(1) + torch.arange(most, device=row.device)
    there = place < graph.starts[graph.col + 1].unsqueeze(1)
    return index[order][place.clamp_(max=max(0, len(row) - 1))].masked_fill_(~there, -1)
