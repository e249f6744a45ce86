"""How often the weights of a model are used for one instance: at how many positions, and for which channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd

from ash.checks import require
from ash.layers.linear import SparseLayer
from ash.layers.node_graph import NodeGraph

POOLS = (_AvgPoolNd, _AdaptiveAvgPoolNd)


def outputs_per_position(module: nn.Module) -> int:
    """Numbers that a module gives at one position; 0 where its weights are not used at positions."""
    if isinstance(module, SparseLayer):
        return math.prod(module.out_shape)
    for name in ("out_channels", "out_features"):
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    return module.sizes.outputs if isinstance(module, NodeGraph) else 0


@torch.no_grad()
def positions(model: nn.Module, example: Tensor) -> dict[int, int]:
    """Positions of one instance at which each module (by `id`) is used, from one pass of `example` in evaluation.

    Of an average pooling, the numbers that it takes.
    """
    found: dict[int, int] = {}
    b = example.shape[0] if example.dim() else 0
    require(b > 0, f"an example of shape {tuple(example.shape)}; expected a batch, of one instance say.")

    def watch(module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            used = given[0].numel() if isinstance(module, POOLS) else output.numel() // outputs_per_position(module)
            found[id(module)] = found.get(id(module), 0) + used // b

        return hook

    watched = [m for m in model.modules() if isinstance(m, POOLS) or outputs_per_position(m)]
    handles = [module.register_forward_hook(watch(module)) for module in watched]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return found


def node_operations(graph: NodeGraph) -> int:
    """FLOPs of the functions of a graph's nodes at one position: of nodes that an edge reads."""
    return 2 * graph.function.operations * int(graph.read_nodes()[slice(*graph.functional)].sum())


def read_shares(model: nn.Module) -> dict[int, float]:
    """Share of their channels that convolutions (by `id`) need to compute, where a node graph reads only some.

    Those are the convolutions of its `entry`: the last one, and those before it as long as only depthwise ones and
    modules without weights of their own for each pair of channels follow.
    """
    shares: dict[int, float] = {}
    for graph in model.modules():
        if isinstance(graph, NodeGraph) and graph.entry is not None:
            inputs = graph.sizes.inputs
            share = float(graph.read_nodes()[:inputs].double().mean())
            shares |= {id(conv): share for conv in _last_convolutions(graph.entry) if conv.out_channels == inputs}
    return shares


def _last_convolutions(entry: nn.Module) -> Iterator[_ConvNd]:
    """From the end, convolutions of a chain up to the first that mixes channels."""
    chain = list(entry) if isinstance(entry, nn.Sequential) else [entry]
    for module in reversed(chain):
        if isinstance(module, _ConvNd):
            yield module
            if module.groups != module.out_channels:
                return
        elif isinstance(module, nn.Linear) or len(list(module.children())):
            return
