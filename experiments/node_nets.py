"""Classifiers that are graphs of nodes: a stem, a graph and a linear layer, or a chain of graphs like MobileNetV1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ash import NodeGraph, SparseLinear, Wiring
from ash.layers.node_dynamics import Dynamics

Wire = Callable[[int], Callable[..., Wiring]]
"""From a number of edges to a factory of wirings."""

CHAIN = ((32, 64, 1, 1), (64, 128, 2, 2), (128, 256, 2, 2), (256, 512, 2, 6), (512, 1024, 2, 2))
"""The graphs of a chain: input nodes, output nodes, stride, blocks of as many nodes as there are outputs."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a small net: nodes, the stem's strides, and edges."""

    inputs: int
    blocks: tuple[int, ...]
    outputs: int
    edges: int
    strides: tuple[int, int] = (2, 2)

    @property
    def nodes(self) -> int:
        """All nodes of the graph."""
        return self.inputs + sum(self.blocks) + self.outputs


class SmallNet(nn.Module):
    """Convolutions that shrink the image fourfold, a node graph, pooling, a linear layer.

    Args:
        shape: sizes. channels, classes: of images and labels. pool: side of the square in the middle that is
            averaged; 0: everything. After an instance norm every channel has the same mean and spread in every image,
            and averages over whole channels tell little: on MNIST 3 × 3 of 7 × 7 trains many times faster.

    Source: arXiv 1906.00586, section 4.1 ('small scale').
    """

    def __init__(
        self, shape: Shape, channels: int, classes: int, wire: Wire, dynamics: str | Dynamics, pool: int, norm: str
    ):
        super().__init__()
        first, (one, two) = shape.inputs // 2, shape.strides
        self.stem = nn.Sequential(
            nn.Conv2d(channels, first, 3, stride=one, padding=1),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, first, 3, stride=two, padding=1, groups=first),
            nn.Conv2d(first, shape.inputs, 1),
            nn.BatchNorm2d(shape.inputs),
        )
        wiring = wire(shape.edges)
        self.graph = NodeGraph(
            shape.inputs, shape.blocks, shape.outputs, wiring=wiring, dynamics=dynamics, norm=norm
        )
        self.pool, self.classifier = pool, nn.Linear(shape.outputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, channels, height, width)` -> `(b, classes)`."""
        y: Tensor = self.classifier(middle(self.graph(self.stem(x)), self.pool).mean((2, 3)))
        return y


def middle(x: Tensor, side: int) -> Tensor:
    """The square of that side in the middle of `(b, c, h, w)`; 0: everything."""
    if side == 0:
        return x
    top, left = ((size - side) // 2 for size in x.shape[2:])
    return x[:, :, top : top + side, left : left + side]


class ChainedGraphs(nn.Module):
    """Node graphs one after the other, each at half the resolution: what MobileNetV1 is if its wiring is free.

    Args:
        width: d; a graph has as many edges as MobileNetV1 × d has weights there, d²·(in·out + (blocks − 1)·out²).
        small: the last layer is sparse too, a fraction d of it, and has no bias.
        stride: of the first convolution: 2, and 1 for images of at most 64 pixels.

    Source: arXiv 1906.00586, section 4.2.
    """

    def __init__(
        self,
        width: float,
        wire: Wire,
        channels: int = 3,
        classes: int = 1000,
        *,
        small: bool = False,
        stride: int = 2,
        chain: Sequence[tuple[int, int, int, int]] = CHAIN,
        dynamics: str | Dynamics = "static",
    ):
        super().__init__()
        graphs: list[nn.Module] = []
        stem: list[nn.Module] = [nn.Conv2d(channels, chain[0][0], 3, stride=stride, padding=1, bias=False)]
        for taken, given, step, blocks in chain:
            depthwise = nn.Conv2d(taken, taken, 3, stride=step, padding=1, groups=taken, bias=False)
            entry = nn.Sequential(*stem, nn.BatchNorm2d(taken), nn.ReLU(), depthwise)
            wiring, hidden = wire(edges_of(width, taken, given, blocks)), (given,) * (blocks - 1)
            graphs.append(
                NodeGraph(taken, hidden, given, wiring=wiring, norm="batch", entry=entry, dynamics=dynamics)
            )
            stem = []
        self.graphs, last = nn.Sequential(*graphs), chain[-1][1]
        self.head = nn.Sequential(nn.BatchNorm2d(last), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier: nn.Module = nn.Linear(last, classes)
        if small:
            sparse = wire(math.ceil(round(width * last * classes, 6)))
            self.classifier = SparseLinear(last, classes, bias=False, wiring=sparse)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, channels, height, width)` -> `(b, classes)`."""
        y: Tensor = self.classifier(self.head(self.graphs(x)))
        return y


def edges_of(width: float, taken: int, given: int, blocks: int) -> int:
    """k of one graph of a chain."""
    return math.ceil(round(width**2 * (taken * given + (blocks - 1) * given**2), 6))


def graphs_of(model: nn.Module) -> list[NodeGraph]:
    """The node graphs of a model."""
    return [each for each in model.modules() if isinstance(each, NodeGraph)]
