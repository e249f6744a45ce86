"""`EdgeIndex`: graphs as PyTorch Geometric holds them, without depending on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from ash.checks import require


class EdgeIndex(NamedTuple):
    """The edges of one or more graphs, whose nodes are numbered one graph after the other.

    Attributes:
        edge_index: `(2, n)`, int64, source and target of every edge.
        num_nodes: nodes of all graphs together.
        values: `(n,)` or `(n, *extra)`, weights or features of the edges; None where they have none.
        batch: `(num_nodes,)`, the graph of every node, never decreasing; None for one graph.
    """

    edge_index: Int[Tensor, "2 n"]
    num_nodes: int
    values: Float[Tensor, "n ..."] | None = None
    batch: Int[Tensor, " nodes"] | None = None

    def entries(self) -> tuple[Int64[Tensor, " n"], Int64[Tensor, "n 2"], Float[Tensor, "n ..."], Int64[Tensor, "b 2"]]:
        """Instances, indices within each graph, values and sizes, as a `SparseBatch` takes them.

        Raises `UserError` for parts that do not fit, a node that is not there, an edge from one graph to another,
        and a graph without nodes.
        """
        values, batch = self._check_parts()
        ends = self.edge_index.long()
        self._check_ends(ends, batch)
        nodes = torch.bincount(batch)
        require(bool((nodes > 0).all()), f"graphs of {nodes.tolist()} nodes; expected at least 1 node in each.")
        instance = batch[ends[0]]
        indices = (ends - (nodes.cumsum(0) - nodes)[instance]).t()
        if not bool((instance[1:] >= instance[:-1]).all()):
            order = instance.argsort(stable=True)
            instance, indices, values = instance[order], indices[order], values[order]
        return instance, indices, values, nodes.unsqueeze(1).expand(-1, 2)

    def _check_parts(self) -> tuple[Tensor, Int64[Tensor, " nodes"]]:
        """Values and batch, also where there were none, after a look at shapes."""
        ends, nodes, values, batch = self
        fits = ends.dim() == 2 and len(ends) == 2 and not (ends.is_floating_point() or ends.is_complex())
        require(fits, f"an edge_index of shape {tuple(ends.shape)}, {ends.dtype}; expected whole numbers (2, n).")
        require(nodes >= 1, f"num_nodes={nodes}; expected at least 1 node.")
        values = torch.ones(ends.shape[1], device=ends.device) if values is None else values
        fits = values.shape[:1] == ends.shape[1:]
        require(
            fits, f"values of shape {tuple(values.shape)} for {ends.shape[1]} edges; expected ({ends.shape[1]}, …)."
        )
        batch = ends.new_zeros(nodes) if batch is None else batch
        fits = batch.shape == (nodes,) and int(batch[0]) >= 0 and bool((batch[1:] >= batch[:-1]).all())
        require(fits, f"a batch vector of shape {tuple(batch.shape)} for num_nodes={nodes}; expected the graph of each "
                      "node, from 0 on, never decreasing.")  # fmt: skip
        return values, batch.long()

    def _check_ends(self, ends: Int64[Tensor, "2 n"], batch: Int64[Tensor, " nodes"]) -> None:
        """Raise `UserError` with the first edge that has an end where no node of its graph is."""
        outside = ((ends < 0) | (ends >= self.num_nodes)).any(0)
        if bool(outside.any()):
            edge = ends[:, outside][:, 0].tolist()
            require(False, f"an edge {edge} among {self.num_nodes} nodes; expected 0 <= node < num_nodes.")
        graphs = batch[ends]
        across = graphs[0] != graphs[1]
        if bool(across.any()):
            edge, two = ends[:, across][:, 0].tolist(), graphs[:, across][:, 0].tolist()
            require(False, f"an edge {edge} from graph {two[0]} to graph {two[1]}; expected both ends in one graph.")
