"""The layers that learn transforms of graphs."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ash import Anneal, SparseBatch
from ash.edge_hypernets import EdgeHypernetwork
from ash.layers.edge import EdgeLayer
from ash.wirings.edge import EdgeWiring


class GraphNet(nn.Module):
    """One `EdgeLayer`, and what it is told of the nodes.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: EdgeLayer):
        super().__init__()
        self.layer = layer

    def nodes(self, x: SparseBatch) -> Tensor | None:
        """Features of the nodes of all graphs, or None."""
        return None

    def forward(self, x: SparseBatch) -> SparseBatch:
        """Graphs -> graphs of as many nodes."""
        y: SparseBatch = self.layer(x, self.nodes(x))
        return y


def make_net(options: Any) -> GraphNet:
    """The layer for a task; options are resolved."""
    own = options.transform
    wiring = EdgeWiring(
        partial(EdgeHypernetwork, hidden=own.hidden),
        own.tuples,
        sites="path" if options.task == "two_hop" else "entry",
        values=own.values,
        scale=Anneal(own.scale, own.scale_end, max(1, options.steps // 2)),
    )
    return GraphNet(EdgeLayer(wiring))
