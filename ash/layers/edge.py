"""`EdgeLayer`: a transform of graphs that is learned edge by edge."""

from __future__ import annotations

from torch import Tensor, nn

from ash.checks import check_finite, require
from ash.edge_weight import EdgeWeight
from ash.interchange import SparseInput, as_sparse_batch
from ash.sparse_batch import SparseBatch
from ash.wirings.edge_base import AdjacencyWiring


class EdgeLayer(nn.Module):
    """y = W(x) · x for sparse graphs x, with a sparse weight that a wiring makes from the graph itself.

    Nothing costs more than the sites of the graph, and no tensor of n² or n⁴ positions is ever made.

    Args:
        wiring: an `EdgeWiring` or a `PositionWiring`.

    Raises `UserError` for input that is no batch of graphs, with an index outside, or NaN or infinite values;
    `layer.check_input = False` leaves the look at the contents out.
    """

    def __init__(self, wiring: AdjacencyWiring):
        super().__init__()
        fits = isinstance(wiring, AdjacencyWiring)
        require(fits, f"a wiring of type {type(wiring).__name__}; expected an EdgeWiring or a PositionWiring.")
        self.wiring, self.check_input = wiring, True

    def forward(self, x: SparseInput, nodes: Tensor | None = None) -> SparseBatch:
        """Graphs -> graphs of as many nodes (or tensors of the wiring's output rank), every position once.

        Args:
            x: a `SparseBatch`, or what `as_sparse_batch` takes. Entries at the same position are added up first.
                Values `(n,)` or `(n, channels)`.
            nodes: `(nodes, g)`, features of all nodes, those of one graph after those of the other.
        """
        x = x if isinstance(x, SparseBatch) else as_sparse_batch(x)
        if self.check_input:
            x.check()
            if nodes is not None:
                check_finite(nodes, self)
        ids = x.ids
        if not bool((ids[1:] > ids[:-1]).all()):
            x = x.coalesce()
        weight: EdgeWeight = self.wiring(x, nodes)
        return weight.contract(x)

    def guide(self, x: SparseBatch, prediction: SparseBatch, target: SparseBatch) -> None:
        """Tell the wiring after a batch what came out of x and what should have; some look there the next time."""
        self.wiring.guide(x, prediction, target)

    def reset_parameters(self) -> None:
        """A new wiring, as when the layer was made."""
        self.wiring.reset_parameters()
