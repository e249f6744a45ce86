"""Graphs as vectors over pairs of nodes, and vectors of logits as distributions over graphs.

The p = m(m + 1)/2 places of a vector are the lower triangle of the adjacency matrix, row by row. Off the diagonal
stands whether two nodes are linked, on it whether a node exists. Of logits, the diagonal gives the distribution of the
size, p(n) ∝ exp(Σ_{i<n} logit_ii) for the sizes allowed; given the size, pairs of existing nodes are linked
independently of one another, and the other logits do not matter. So every vector of logits is a distribution over
graphs with a size in range, and its likelihood is exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ash import SparseBatch
from experiments.graph_vae_data import Graphs


class GraphCode:
    """The code of graphs of `low` to `high` nodes, low ≥ 1.

    Attributes:
        rows, columns: `(p,)`, the pair of each place, rows ≥ columns.
    """

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high
        self.rows, self.columns = torch.tril_indices(high, high)
        self._nodes = self.rows == self.columns

    @property
    def places(self) -> int:
        """p, the length of a vector."""
        return len(self.rows)

    def vectors(self, graphs: Graphs) -> Float[Tensor, "b p"]:
        """Zeros and ones."""
        whole = graphs.adjacency | torch.diag_embed(graphs.present)
        return whole[:, self.rows, self.columns].float()

    def graphs(self, links: Tensor, nodes: Int64[Tensor, " b"]) -> Graphs:
        """The graphs of these sizes whose pairs `(b, p)` are linked as said; places of other pairs do not matter."""
        present = torch.arange(self.high) < nodes[:, None]
        kept = links & present[:, self.rows] & present[:, self.columns] & ~self._nodes
        adjacency = torch.zeros(len(nodes), self.high, self.high, dtype=torch.bool)
        adjacency[:, self.rows, self.columns] = kept
        return Graphs(adjacency | adjacency.transpose(1, 2), nodes)

    def log_sizes(self, logits: Float[Tensor, "b p"]) -> Float[Tensor, "b sizes"]:
        """Log probabilities of the sizes low … high."""
        return logits[:, self._nodes].cumsum(1)[:, self.low - 1 :].log_softmax(1)

    def log_likelihood(self, logits: Float[Tensor, "b p"], graphs: Graphs) -> Float[Tensor, " b"]:
        """Log probability of each graph, in nats."""
        size = self.log_sizes(logits).gather(1, graphs.nodes[:, None] - self.low).squeeze(1)
        present = graphs.present
        pairs = present[:, self.rows] & present[:, self.columns] & ~self._nodes
        costs = binary_cross_entropy_with_logits(logits, self.vectors(graphs), reduction="none")
        return size - (costs * pairs).sum(1)

    def most_likely(self, logits: Float[Tensor, "b p"]) -> Graphs:
        """The likeliest size, and every link that is likelier than not."""
        return self.graphs(logits > 0, self.low + self.log_sizes(logits).argmax(1))

    def draw(self, logits: Float[Tensor, "b p"]) -> Graphs:
        """A graph from each distribution, by torch's default generator."""
        sizes = torch.multinomial(self.log_sizes(logits).exp(), 1).squeeze(1)
        return self.graphs(torch.rand_like(logits) < logits.sigmoid(), self.low + sizes)


def to_sparse(graphs: Graphs) -> SparseBatch:
    """The adjacency matrices, all m × m: graphs of different sizes compare by their links."""
    places = graphs.adjacency.nonzero()
    sizes = torch.full((len(graphs.nodes), 2), graphs.adjacency.shape[1])
    return SparseBatch(places[:, 0], places[:, 1:], torch.ones(len(places)), sizes)
