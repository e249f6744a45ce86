"""Classifiers of images whose layers are wired anew for every image, and the nets to compare them with.

    image -> convolution, norm, ReLU -> adaptive layer -> convolution, norm, ReLU -> adaptive layer -> classes

A hypernetwork looks at a down-sampled view of the image: a convolutional trunk, shared by both layers, and a head for
each. An output position of an adaptive layer has some index tuples; the head emits, from the features at that
position, where in the layer's input they lie and what they are worth. Channels ride along as an extra dimension, which
shares the weight. So the adaptive layers stand where other nets pool.

MNIST, 6 epochs, seeds 100 to 102, test accuracy at the final epoch, 13,420 to 13,474 learned numbers each:

| net | what it sees | test accuracy, % |
|---|---|---|
| hyper, rounded (sampled the same within 0.01) | view of 7 x 7; layers the whole image | 99.28, 99.33, 99.24 |
| hyper `--codebook 15`, rounded (sampled within 0.03) | view of 7 x 7; layers the whole image | 99.30, 99.22, 99.24 |
| trunk | view of 7 x 7 | 97.25, 97.38, 97.26 |
| trunk | view of 14 x 14 (`--view 2`) | 99.14, 99.18, 99.18 |
| convnet, with max-pooling | the whole image | 99.43, 99.32, 99.31 |

CIFAR-10 (`--data cifar10`) after one epoch alone, seed 100: hyper 52.6 % (sampled the same), trunk 53.9, convnet 47.6.

The tricks of the blog, `--train-images 12000 --epochs 2`, seed 0, validation accuracy in % (noise about 0.2):

| what | rounded | sampled |
|---|---|---|
| hyper as it is | 97.3 | 97.3 |
| `--model fixed`: nothing emitted | 97.2 | 97.2 |
| `--reconstruction 0.01` | 97.4 | 97.5 |
| `--pretrain 1`, in place of the first epoch | 88.6 | 88.6 |
| `--subset 0.5` | 97.4 | 97.5 |
| `--kernel student_t` (fat tail) | 97.3 | 97.5 |
| `--scales emitted` with the end of the schedule as floor | 97.3 | 97.7 |
| the same with `--scale-penalty 0.1` | 97.2 | 97.7 |

So early in training what is emitted, and most tricks, hardly matter here; pre-training costs more than it gives; and
what is not on a schedule, or has a fat tail, loses 0.2 to 0.4 points by rounding.

What was learned on seed 0 (validation; 16,000 images, 4 epochs, noise about 0.15 points):
- A ReLU before the adaptive layers rather than after them: 98.1 -> 98.5 %.
- What the hypernetworks see may be small: with a view of 7 x 7 in place of 14 x 14 the net loses nothing (98.5 %),
  while its trunk alone falls from 98.4 to 95.5 %. Detail is read at the places that the coarse view points to.
- Rounding costs nothing where scales end small and the kernel is a Gaussian: at a scale of 0.1 pixels only tuples
  within 0.03 of the middle between two pixels are undecided. The shares of a Student-t depend, far from the mean, on
  ratios of distances alone: in a smaller net 97.0 % sampled were 89.2 % rounded with it, and equal with a Gaussian.
  Nor may tuples start half way between two pixels.
- Max-pooling in place of the adaptive layers is better still (`convnet`), as weight sharing is on pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from ash import Anneal, Codebook, HyperWiring, IndexTuples, Sampling, SparseLayer, Template
from ash.hypernets import View
from ash.losses import Reconstruction


@dataclass(frozen=True)
class Shapes:
    """How large the layers of `hyper` are.

    Attributes:
        image: `(channels, height, width)`.
        trunk: channels of the trunk's two convolutions.
        sides: of the two adaptive layers' square outputs. tuples: of each of their positions.
        kernels: sides of the two convolutions. channels: what they make.
    """

    image: tuple[int, int, int]
    trunk: tuple[int, int] = (8, 16)
    sides: tuple[int, int] = (14, 5)
    tuples: tuple[int, int] = (1, 4)
    kernels: tuple[int, int] = (5, 3)
    channels: tuple[int, int] = (12, 32)


def shapes_for(image: tuple[int, int, int], plain: bool) -> Shapes:
    """The shapes that go with images `(channels, height, width)`; `plain`: convolutions of 1 x 1."""
    side = max(2, min(image[1:]) // 2)
    sides, more = (side, max(2, round(5 * side / 14))), (2 if image[0] > 1 else 1)
    kernels, tuples = ((1, 1), (4, 8)) if plain else ((5, 3), (1, 4))
    return Shapes(image, (8 * more, 16 * more), sides, tuples, kernels, (12 * more, 32 * more))


class Pictures(nn.Module):
    """`(b, h, w)` or `(b, c, h, w)` -> `(b, c, h, w)`."""

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        return x.unsqueeze(1) if x.dim() == 3 else x


def make_trunk(image: tuple[int, int, int], view: int, channels: Sequence[int]) -> nn.Sequential:
    """A view of the image, then two convolutions: `(b, *image)` -> `(b, c, h / view, w / view)`."""
    first, second = channels
    return nn.Sequential(
        View(image, view),
        nn.Conv2d(image[0], first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1),
        nn.BatchNorm2d(second),
        nn.ReLU(),
    )


class GridHypernetwork(nn.Module):
    """Emits the tuples of a layer with a square of output positions, each from the features at its place.

    A 1 × 1 convolution, so that all positions share its weights (and, by `groups`, the wiring's offset). Means are
    emitted relative to the place of the output in the layer's input, in units of an index.

    Args:
        in_shape: `(c, h, w)` of the features. k, width: tuples, and numbers of each.
        side: output positions per row and column; k is a multiple of side².
        size: `(h, w)` of the layer's input.
        gain: standard deviation of what is emitted at first, about. still: emit the places only.

    Attributes: groups: side².

    Shapes: `(b, c, h, w)` -> `(b, k, width)`.
    """

    places: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        k: int,
        width: int,
        *,
        side: int,
        size: tuple[int, int],
        gain: float = 0.3,
        still: bool = False,
    ):
        super().__init__()
        self.side, self.groups, self.width, self.still = side, side**2, width, still
        self.head = nn.Conv2d(in_shape[0], k // self.groups * width, 1)
        nn.init.normal_(self.head.weight, std=gain / math.sqrt(in_shape[0]))
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.head.requires_grad_(not still)
        places = torch.zeros(self.groups, 1, width)
        places[:, 0, :2] = centres(side, size)
        self.register_buffer("places", places)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k width"]:
        b = len(features)
        if self.still:
            return self.places.expand(b, -1, self.head.out_channels // self.width, -1).flatten(1, 2)
        raw: Tensor = self.head(features)
        if tuple(features.shape[2:]) != (self.side, self.side):
            raw = adaptive_avg_pool2d(raw, self.side)  # after the head, which has fewer channels: both are linear
        return (raw.flatten(2).transpose(1, 2).unflatten(-1, (-1, self.width)) + self.places).flatten(1, 2)


def centres(side: int, size: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Places of side × side positions, spread evenly over a picture of `size`, in units of its indices.

    On pixels, not half way between two: there a tuple serves both, and loses by rounding if nothing moves it.
    """
    axes = [((torch.arange(side) + 0.5) * each / side - 0.51).round() for each in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


@dataclass(frozen=True)
class Wirings:
    """How the tuples of adaptive layers are sampled; `steps` is when scales have come to their end."""

    steps: int
    kernel: str = "gaussian"
    context: Any = "tuple"
    local_samples: int = 0
    global_samples: int = 0
    scale: float = 0.7
    scale_end: float = 0.05
    emit_scales: bool = False
    codebook: int = 0
    subset: float = 1.0
    still: bool = False
    reconstruct: bool = False

    def layer(self, side: int, each: int, size: tuple[int, int], features: tuple[int, ...]) -> nn.Module:
        """An adaptive layer `(*size, extra)` -> `(side, side, extra)` with `each` tuples for every output."""
        schedule = Anneal(self.scale, self.scale_end, max(1, self.steps))
        wiring = HyperWiring(
            (side, side),
            size,
            hypernetwork=partial(GridHypernetwork, side=side, size=size, still=self.still),
            condition_shape=features,
            template=Template.per_output((side, side), size, each),
            kernel=self.kernel,
            context=self.context,
            sampling=Sampling(True, self.global_samples, self.local_samples),
            means="direct",
            positions=torch.randn(side**2 * each, 2) * (0.5 if each > 1 else 0.0),
            scales="emitted" if self.emit_scales else "scheduled",
            scale=self.scale if self.emit_scales else schedule,
            scale_floor=self.scale_end,
            scale_ceiling=max(schedule.start, schedule.end) if self.emit_scales else None,
            values=self._book(each) if self.codebook else "emitted",
            subset=self.subset if self.subset < 1 else None,
        )
        _start_values(wiring, each)
        layer = SparseLayer(size, (side, side), bias=False, wiring=wiring)
        return Reconstruction(layer, bias=False) if self.reconstruct else layer

    def _book(self, each: int) -> Codebook:
        # Hardened along with the scales: at the end a choice is as good as fixed, as rounded means are.
        return Codebook(self.codebook, spread=2 / each, temperature=Anneal(1.0, 0.1, max(1, self.steps)))


@torch.no_grad()
def _start_values(wiring: HyperWiring, each: int) -> None:
    """Values (or the scalars chosen) start as those of a mean over the tuples of a position."""
    start = torch.full((each,), 1 / each)
    if wiring.codebook is None:
        wiring.offset[:, -1] = start
        return
    logits = wiring.offset[:, -wiring.codebook.size :]
    nearest = (wiring.codebook.scalars - start[:, None]).abs().argmin(-1, keepdim=True)
    logits.zero_().scatter_(-1, nearest, 4.0)


class Hyper(nn.Module):
    """Two convolutions, each with a norm and a ReLU and followed by an adaptive layer; then a dense one to the classes.

    Attributes:
        layers: the adaptive layers, wrapped by a `Reconstruction` each where their terms are wanted.
        features: what the hypernetworks' heads saw in the last forward pass.

    Shapes: `(b, *image)` -> `(b, classes)`.
    """

    def __init__(self, shapes: Shapes, wirings: Wirings, view: int, classes: int):
        super().__init__()
        channels, h, w = shapes.image
        self.pictures, self.trunk = Pictures(), make_trunk(shapes.image, view, shapes.trunk)
        self.trunk.requires_grad_(not wirings.still)
        features = (shapes.trunk[1], h // view, w // view)
        (n1, n2), (t1, t2), (c1, c2) = shapes.sides, shapes.tuples, shapes.channels
        layers = [wirings.layer(n1, t1, (h, w), features), wirings.layer(n2, t2, (n1, n1), features)]
        self.layers = nn.ModuleList(layers)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, side, padding=side // 2, bias=False)
            for before, after, side in zip((channels, c1), (c1, c2), shapes.kernels, strict=True)
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what rides along lies together
        self.norms = nn.ModuleList([nn.BatchNorm2d(c1), nn.BatchNorm2d(c2)])
        self.head = nn.Linear(c2 * n2**2, classes)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b classes"]:
        x = self.pictures(x)
        self.features = features = self.trunk(x)
        for convolution, layer, norm in zip(self.convolutions, self.layers, self.norms, strict=True):
            maps = norm(convolution(x.contiguous(memory_format=torch.channels_last))).relu()
            x = layer(maps.movedim(1, -1), features).movedim(-1, 1)
        scores: Tensor = self.head(x.flatten(1))
        return scores

    @property
    def wirings(self) -> list[HyperWiring]:
        """Of the two layers."""
        return [module for module in self.modules() if isinstance(module, HyperWiring)]

    def last_tuples(self) -> list[IndexTuples]:
        """The tuples of the last forward pass, once more, of every layer."""
        return [wiring.tuples(self.features) for wiring in self.wirings]


class Shrink(nn.Module):
    """The maximum over the cells of a square grid: `(b, c, h, w)` -> `(b, c, side, side)`."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c n n"]:
        pooled: Tensor = adaptive_max_pool2d(x, self.side)
        return pooled


def trunk_net(shapes: Shapes, view: int, classes: int, width: int) -> nn.Sequential:
    """The trunk of `Hyper` on the same view, pooled, with a hidden layer of `width` and a linear one to the classes."""
    trunk, side = make_trunk(shapes.image, view, shapes.trunk), max(2, shapes.sides[1] - 2)
    head = [nn.Linear(shapes.trunk[1] * side**2, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(Pictures(), *trunk, Shrink(side), nn.Flatten(), *head, nn.Linear(width, classes))


def conv_net(shapes: Shapes, classes: int, width: int) -> nn.Sequential:
    """`Hyper` with maxima over square cells in place of its adaptive layers, and `width` channels at the end."""
    (s1, s2), (n1, n2), c1 = shapes.kernels, shapes.sides, shapes.channels[0]
    layers: list[nn.Module] = [Pictures()]
    for inputs, outputs, square, side in ((shapes.image[0], c1, s1, n1), (c1, width, s2, n2)):
        layers.append(nn.Conv2d(inputs, outputs, square, padding=square // 2, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(), Shrink(side)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * n2**2, classes))


def learned(model: nn.Module) -> int:
    """Numbers that a model learns."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def as_large_as(size: int, make: Callable[[int], nn.Module], most: int = 2048) -> nn.Module:
    """`make(width)` with the width, at most `most`, at which it has nearest to `size` learned numbers."""
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if learned(make(middle)) <= size else (low, middle)
    return min((make(low), make(high)), key=lambda model: abs(learned(model) - size))
