"""The nets of the experiment `gates`: layers connected through gates, with all connections at 1, or in a chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash import GateWiring, LayerGraph
from ash.checks import UserError, require
from experiments.adaptive import as_large_as, learned

BASE, DENSE = 32, 16
"""Maps of the first convolutions, and units of the dense layer for each of these, at full width."""
SPREAD = 0.5
"""Deviation of the logits around 0.5 with `--gate-init gaussian`."""

Make = Callable[[tuple[int, ...]], nn.Module]


@dataclass(frozen=True)
class Shapes:
    """What a net is for: images (c, h, w); `base` maps in the first of `blocks` blocks, in each next twice as many."""

    image: tuple[int, int, int]
    classes: int
    blocks: int
    base: int

    def maps(self, block: int) -> int:
        """Maps of the convolutions of a block."""
        return self.base * 2**block


def convolution(maps: int, padding: int) -> Make:
    """A 3 × 3 convolution without bias of whatever comes to so many maps."""

    def make(shape: tuple[int, ...]) -> nn.Module:
        layer = nn.Conv2d(shape[0], maps, 3, padding=padding, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return layer

    return make


class Flatten(nn.Module):
    """Maps as vectors, pixel by pixel: with channels last a view, whose gradient has channels last too. (That of
    `nn.Flatten` has them first, and everything that it meets on its way back becomes half as fast.)"""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        return x.movedim(1, -1).flatten(1)


def head(units: int, classes: int, side: int | None = None) -> Make:
    """Dense layers with dropout on all pixels of all maps; with `side` the maps are averaged to side × side before."""

    def make(shape: tuple[int, ...]) -> nn.Module:
        pixels = math.prod(shape[1:]) if side is None else side * side
        layers = [nn.Linear(shape[0] * pixels, units), nn.ReLU(), nn.Dropout(0.5), nn.Linear(units, classes)]
        nn.init.kaiming_normal_(layers[0].weight, nonlinearity="relu")  # type: ignore[arg-type]
        shrink = [] if side is None else [nn.AdaptiveAvgPool2d(side)]
        return nn.Sequential(*shrink, Flatten(), *layers)

    return make


def chained(*makes: Make | Callable[[], nn.Module]) -> Make:
    """Modules one after the other, as one."""

    def make(shape: tuple[int, ...]) -> nn.Module:
        first = makes[0](shape)  # type: ignore[call-arg]
        return nn.Sequential(first, *(each() for each in makes[1:]))  # type: ignore[call-arg]

    return make


def body(shapes: Shapes, every_layer: bool) -> list[nn.Module | Make]:
    """The blocks: convolution, convolution, max-pooling, dropout. Pooling and dropout are layers of their own, with
    `every_layer`, or belong to the second convolution. (ReLU comes after the pooling, which gives the same for less.)
    """
    layers: list[nn.Module | Make] = []
    for block in range(shapes.blocks):
        first, second = (convolution(shapes.maps(block), padding) for padding in (1, 0))
        layers.append(chained(first, nn.ReLU))
        if every_layer:
            layers += [chained(second, nn.ReLU), nn.MaxPool2d(2), nn.Dropout(0.25)]
        else:
            layers.append(chained(second, partial(nn.MaxPool2d, 2), nn.ReLU, partial(nn.Dropout, 0.25)))
    return layers


def final_side(shapes: Shapes) -> int:
    """Height of the last maps. Raises `UserError` where nothing is left."""
    side = min(shapes.image[1:])
    for _ in range(shapes.blocks):
        side = (side - 2) // 2
    require(
        side >= 1, f"--blocks {shapes.blocks} for images of {shapes.image[1:]} pixels leaves no map; give fewer blocks."
    )
    return side


def start(init: str | None, gate: str) -> dict[str, Any]:
    """`--gate-init` as options of `GateWiring`. Raises `UserError` for what is no number and no known name."""
    if init is None:
        return {}
    if init == "gaussian":
        return {"init": 0.5, "init_std": SPREAD}
    if init == "forward":
        return {"init": _forward}
    try:
        return {"init": float(init)}
    except ValueError:
        raise UserError(f"--gate-init {init}; expected a number (the logit), gaussian or forward.") from None


def _forward(entries: Tensor) -> Tensor:
    """1 from each layer to the next one, 0.5 elsewhere."""
    return torch.where(entries[:, 0] == entries[:, 1], 1.0, 0.5)


def gated(
    shapes: Shapes,
    *,
    merge: str = "concat",
    resize: str = "bilinear",
    unique: bool = False,
    gate: str = "sigmoid",
    init: str | None = None,
    every_layer: bool = False,
) -> LayerGraph:
    """Every layer fed by all earlier ones and the image through gates."""
    makes = body(shapes, every_layer)
    makes.append(head(DENSE * shapes.base, shapes.classes, final_side(shapes) if resize == "pad" else None))
    squeeze = None
    if merge == "squeeze":
        squeeze = [shapes.maps(t * shapes.blocks // (len(makes) - 1)) for t in range(len(makes) - 1)]
        squeeze.append(shapes.maps(shapes.blocks - 1))
    wiring = partial(GateWiring, values="ones", gate=gate, **start(init, gate))
    return LayerGraph(
        makes,
        shapes.image,
        wiring=wiring,
        unique=unique,
        merge=merge,
        resize=resize,
        squeeze=squeeze,
        fill_maps=merge in ("sum", "max"),
    )


def open_net(shapes: Shapes, **options: Any) -> LayerGraph:
    """The same net with every connection at weight 1, for good."""
    net = gated(shapes, **options | {"gate": "linear", "init": "1.0"})
    net.wiring.requires_grad_(False)
    return net


def chain(shapes: Shapes) -> nn.Sequential:
    """The same layers, each fed by the one before alone."""
    makes = [*body(shapes, every_layer=False), head(DENSE * shapes.base, shapes.classes)]
    side, maps = min(shapes.image[1:]), shapes.image[0]
    layers = []
    for t, make in enumerate(makes):
        layers.append(make((maps, side, side)))
        if t < len(makes) - 1:
            maps = shapes.maps(t // 2)
            side = side if t % 2 == 0 else (side - 2) // 2
    return nn.Sequential(*layers)


def chain_as_large_as(size: int, shapes: Shapes) -> nn.Module:
    """The chain of the width at which it has nearest to `size` learned numbers."""
    final_side(shapes)
    return as_large_as(size, lambda base: chain(Shapes(shapes.image, shapes.classes, shapes.blocks, base)), 256)


def connection_gates(net: LayerGraph) -> Float[Tensor, " connections"]:
    """The gate of every connection, in the order of `net.connections()`; of unique ones the mean over the maps."""
    dense = net.wiring.eval()().to_dense().detach()
    net.wiring.train(net.training)
    if dense.dim() == 3:
        maps = net.wiring.admissible.contains(torch.ones(dense.shape, device=dense.device).nonzero())
        dense = dense.sum(2) / maps.reshape(dense.shape).sum(2).clamp(min=1)
    rows, columns = zip(*net.connections(), strict=True)
    return dense[list(rows), list(columns)]


__all__ = ["Shapes", "chain", "chain_as_large_as", "connection_gates", "gated", "learned", "open_net"]
