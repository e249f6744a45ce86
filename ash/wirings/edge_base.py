"""`AdjacencyWiring`: what decides, for every graph, where in the output each of its entries goes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash.edge_weight import EdgeWeight
from ash.sparse_batch import SparseBatch


class AdjacencyWiring(nn.Module, ABC):
    """A sparse weight tensor for every graph of a batch, with entries for the graph's stored entries alone."""

    @abstractmethod
    def forward(self, x: SparseBatch, nodes: Float[Tensor, "nodes g"] | None = None) -> EdgeWeight:
        """Required. One draw of the weights of graphs x; `nodes` are features of all nodes, graph after graph."""

    @torch.no_grad()
    def guide(self, x: SparseBatch, prediction: SparseBatch, target: SparseBatch) -> None:
        """Told after a batch what came out and what should have: where to look for points. Default: nothing."""
        return

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as when the wiring was made; default: there are none."""
        return
