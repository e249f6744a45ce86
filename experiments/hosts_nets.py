"""The nets of the hosts experiment: a small host of every kind between a stem and a head, and every wiring for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ash import (
    Anneal,
    Continuous,
    Discrete,
    Dynamics,
    GateWiring,
    GaussianWiring,
    HyperWiring,
    LayerGraph,
    MLPHypernetwork,
    NodeGraph,
    RigLWiring,
    Sampling,
    SETWiring,
    SparseConv2d,
    SparseLinear,
    SparseWeight,
    Static,
    StaticWiring,
    TopKWiring,
)
from ash.wirings.base import Wiring

CLASSES, PIXELS = 10, (1, 8, 8)
MAPS = 8
"""Maps of the stem."""

Factory = Callable[..., Wiring]


class EmptyWiring(Wiring):
    """No entries: what a host can do without a weight."""

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        """The weight that is zero everywhere."""
        return self.rounded()

    def rounded(self) -> SparseWeight:
        """The same."""
        return SparseWeight(torch.zeros(0, self.rank, dtype=torch.int64), torch.zeros(0), self.out_shape, self.in_shape)

    def stored_entries(self) -> int:
        return 0


def empty(out_shape: Any, in_shape: Any, **given: Any) -> EmptyWiring:
    """An empty wiring, whatever values a host's factory is called with besides the shapes."""
    return EmptyWiring(out_shape, in_shape, given.get("admissible"))


def wirings(density: float, freeze_at: int) -> dict[str, Factory]:
    """A factory for every wiring; `freeze_at` is the step at which scales have become small."""
    scale = Anneal(1.0, 0.3, freeze_at)
    sampling = Sampling(global_samples=0, local_samples=2)
    kinds: dict[str, Factory] = {
        "static": StaticWiring,
        "gaussian": functools.partial(
            GaussianWiring, scale=1.0, scale_floor=0.3, scale_ceiling=scale, sampling=sampling
        ),
        "hyper": functools.partial(
            HyperWiring,
            hypernetwork=functools.partial(MLPHypernetwork, hidden=(32,)),
            condition_shape=PIXELS,
            scales="scheduled",
            scale=scale,
            sampling=Sampling(global_samples=0, local_samples=0),
        ),
        "top_k": TopKWiring,
        "set": SETWiring,
        "rigl": RigLWiring,
        "gate": GateWiring,
    }
    return {name: functools.partial(kind, density=density) for name, kind in kinds.items()} | {"empty": empty}


class Net(nn.Module):
    """Stem, host and head; the host's wiring may look at the picture itself.

    Shapes: `(b, 1, 8, 8)` -> `(b, 10)`.
    """

    def __init__(self, stem: nn.Module, host: nn.Module, head: nn.Module):
        super().__init__()
        self.stem, self.host, self.head = stem, host, head

    @property
    def wiring(self) -> Wiring:
        """The host's."""
        made = self.host.wiring
        assert isinstance(made, Wiring)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        scores: Tensor = self.head(self.host(self.stem(x), condition=x))
        return scores


def _stem() -> nn.Module:
    """8 maps of 4 x 4 pixels."""
    return nn.Sequential(nn.Conv2d(1, MAPS, 3, stride=2, padding=1), nn.ReLU())


def _head(maps: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(maps * 16, CLASSES))


def linear(wiring: Factory) -> Net:
    """64 pixels to 32 hidden units."""
    head = nn.Sequential(nn.ReLU(), nn.Linear(32, CLASSES))
    return Net(nn.Flatten(), SparseLinear(64, 32, wiring=wiring), head)


def conv(wiring: Factory) -> Net:
    """A 3 x 3 convolution from 8 maps to 16."""
    return Net(_stem(), SparseConv2d(MAPS, 16, 3, padding=1, wiring=wiring), _head(16))


def node_graph(dynamics: Dynamics, wiring: Factory) -> Net:
    """8 input nodes, 16 hidden ones and 12 outputs."""
    return Net(_stem(), NodeGraph(MAPS, 16, 12, wiring=wiring, dynamics=dynamics), _head(12))


def layer_graph(wiring: Factory) -> Net:
    """Four 3 x 3 convolutions of 8 maps, with a connection for every map of every earlier layer."""
    layers = [nn.Sequential(nn.Conv2d(MAPS, MAPS, 3, padding=1), nn.BatchNorm2d(MAPS), nn.ReLU()) for _ in range(4)]
    return Net(_stem(), LayerGraph(layers, (MAPS, 4, 4), wiring=wiring, unique=True, merge="sum"), _head(MAPS))


HOSTS: dict[str, Callable[[Factory], Net]] = {
    "linear": linear,
    "conv": conv,
    "node_graph_static": functools.partial(node_graph, Static()),
    "node_graph_discrete": functools.partial(node_graph, Discrete()),
    "node_graph_continuous": functools.partial(node_graph, Continuous(method="rk4", options={"step_size": 0.5})),
    "layer_graph": layer_graph,
}
DENSITIES = dict.fromkeys(HOSTS, 0.15) | {"linear": 0.1, "conv": 0.1, "layer_graph": 0.25}
"""Share of the admissible entries that exist."""
