"""The layers that learn transforms of graphs."""

from __future__ import annotations

from functools import partial
from typing import Any

from ash import Anneal, EdgeHypernetwork, EdgeLayer, EdgeWiring, PositionWiring
from experiments import graph_learning


def make_layer(options: Any) -> EdgeLayer:
    """The layer for a task; options are resolved."""
    own = options.transform
    if options.task == "relabel":
        return EdgeLayer(PositionWiring(options.nodes))
    wiring = EdgeWiring(
        partial(EdgeHypernetwork, hidden=own.hidden),
        own.tuples,
        sites="path" if options.task == "two_hop" else "entry",
        values=own.values,
        scale=Anneal(own.scale, own.scale_end, max(1, 2 * options.steps // 3)),
    )
    return EdgeLayer(wiring)


def stored_numbers(layer: EdgeLayer) -> int:
    """What has to be kept for inference: a rounded position for every node, or the perceptron and its offset."""
    if isinstance(layer.wiring, PositionWiring):
        return layer.wiring.nodes
    return graph_learning.stored_numbers(layer)
