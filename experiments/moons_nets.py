"""Nets of the moons experiment, many at once: each has its own wirings and points, and they share the products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash import (
    Anneal,
    GaussianWiring,
    RigLWiring,
    Sampling,
    SETWiring,
    StaticWiring,
    Template,
    TopKWiring,
    contract,
    strip_dead_units,
)
from ash.layers.dense import materialise
from ash.pattern import ravel
from ash.wirings.base import fan_in_uniform
from experiments.moons_options import Options

SIZES = (2, 16, 16, 1)
FAN_IN = (2, 2, 4)
"""Connections of a neuron in each layer: ceil((1 - sparsity) · inputs) for the sparsities 0, 0.9 and 0.8."""

Layers = list[tuple[np.ndarray, np.ndarray]]
"""A net as it is evaluated: weight `(out, in)` and bias `(out,)` of each layer, ReLU between them."""


def moons(points: int, noise: float, seed: int) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Two interleaved half circles, and which of them each point is from, -1 or 1."""
    from sklearn.datasets import make_moons

    x, y = make_moons(points, noise=noise, random_state=seed)
    return torch.from_numpy(x).float(), torch.from_numpy(2 * y - 1).float()


class DenseBank(nn.Module):
    """A dense layer of each of s nets. Shapes: `(s, n, in)` -> `(s, n, out)`."""

    def __init__(self, nets: int, size: int, out: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(nets, out, size)), nn.Parameter(torch.zeros(nets, out))

    def forward(self, x: Tensor) -> Tensor:
        """Every net's points through its own weight."""
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weights().transpose(1, 2))

    def weights(self) -> Float[Tensor, "s out in"]:
        """The weight of each net."""
        return self.weight

    def entries(self) -> int:
        """How many each net stores."""
        return self.weights()[0].numel()

    @torch.no_grad()
    def start(self, bound: float, he: bool, generators: Sequence[torch.Generator]) -> None:
        """Weights uniform in ±bound, with `he` over the square root of the fan-in over entries that exist."""
        for weight, generator in zip(self.weight, generators, strict=True):
            scale = bound / math.sqrt(weight.shape[1]) if he else bound
            weight.copy_(scale * _uniform(weight, generator))


class WiredBank(DenseBank):
    """A sparse layer of each of s nets, with a wiring for each; products are of the small dense weights at once."""

    def __init__(self, wirings: Sequence[StaticWiring | TopKWiring]):
        out, size = wirings[0].shape
        super().__init__(len(wirings), size, out)
        del self.weight
        self.wirings = nn.ModuleList(wirings)

    def weights(self) -> Tensor:
        return torch.stack([materialise(wiring, wiring()) for wiring in self.wirings])  # type: ignore[arg-type]

    def entries(self) -> int:
        return int(self.wirings[0].stored_entries())  # type: ignore[operator]

    @torch.no_grad()
    def start(self, bound: float, he: bool, generators: Sequence[torch.Generator]) -> None:
        for wiring, generator in zip(self.wirings, generators, strict=True):
            if isinstance(wiring, TopKWiring):
                values, scale = wiring.candidate, bound / math.sqrt(wiring.k / wiring.shape[0])
                values.copy_((scale if he else bound) * _uniform(values, generator))
            else:
                assert isinstance(wiring, StaticWiring)
                values = wiring.values
                rows = wiring.indices[:, 0]
                drawn = fan_in_uniform(rows, generator) if he else _uniform(values, generator)
                values.copy_(bound * drawn)


class GaussianBank(DenseBank):
    """A layer of Gaussian edges of each of s nets: tuples of one wiring, of which each is tied to its net.

    The weight tensor is (net, out) × (net, in), both nets of a tuple are fixed and the same, and tuples have no points
    in common (context `"tuple"`), so that the nets do not know of one another. Where tuples are at least as many as
    inputs, each has its input fixed, as many for each, and learns its output.
    """

    def __init__(self, options: Options, size: int, out: int, k: int, generators: Sequence[torch.Generator]):
        nets = len(generators)
        super().__init__(nets, size, out)
        del self.weight
        tuples = [torch.arange(nets).repeat_interleave(k)] * 2
        top = torch.tensor([out, size], dtype=torch.float64) - 1
        if k >= size:
            tuples.append(torch.arange(k).mul(size).div(k, rounding_mode="floor").repeat(nets))
            top = top[:1]
        positions = [torch.rand(k, len(top), dtype=torch.float64, generator=each) * top for each in generators]
        self.wiring = GaussianWiring(
            (nets, out),
            (nets, size),
            template=Template(4, (0, 2, 3)[: len(tuples)], torch.stack(tuples, 1)),
            positions=torch.cat(positions),
            sampling=Sampling(global_samples=0, local_samples=options.local_samples),
            scale=options.scale,
            scale_floor=options.scale_end,
            scale_ceiling=Anneal(options.scale, options.scale_end, max(1, options.freeze_at)),
        )
        self.wiring.log_scale.requires_grad_(False)  # the schedule decides

    def forward(self, x: Tensor) -> Tensor:
        y = contract(self.wiring(), x.transpose(0, 1)).transpose(0, 1)
        return y + self.bias.unsqueeze(1)

    def weights(self) -> Tensor:
        whole = self.wiring.rounded().to_dense()
        return whole.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def entries(self) -> int:
        return self.wiring.k // len(self.bias)

    @torch.no_grad()
    def start(self, bound: float, he: bool, generators: Sequence[torch.Generator]) -> None:
        nets, out, *_ = self.wiring.shape
        rows = ravel(self.wiring.rounded_indices()[:, :2], (nets, out)).reshape(nets, -1)
        for values, own, generator in zip(self.wiring.values.view(nets, -1), rows, generators, strict=True):
            drawn = fan_in_uniform(own % out, generator) if he else _uniform(values, generator)
            values.copy_(bound * drawn)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(like.shape, generator=generator) - 1


def make_nets(options: Options, wiring: str, x: Float[Tensor, "s n 2"], seeds: Sequence[int]) -> nn.Sequential:
    """Nets 2-16-16-1 with ReLU, `(s, n, 2)` -> `(s, n, 1)`: the first layer is dense, then neurons have `FAN_IN` edges.

    Top-k candidates and Gaussian tuples are as many in a layer, wherever they lie; `dense` has all weights. A net's
    draws come from its own seed. Biases are 0; with `init="he"` and `kinks` the line at which a unit of the first
    layer begins to respond passes through one of the net's points.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    layers: list[nn.Module] = [DenseBank(len(seeds), SIZES[0], SIZES[1])]
    for fan_in, size, out in zip(FAN_IN[1:], SIZES[1:], SIZES[2:], strict=False):
        layers += [nn.ReLU(), _bank(options, wiring, (out, size), fan_in, generators)]
    he = options.init == "he"
    for bank, gain in zip(layers[::2], (1.0, 1.0, options.last_gain), strict=True):
        assert isinstance(bank, DenseBank)
        bank.start(gain * math.sqrt(6.0) if he else 0.1, he, generators)
    if he and options.kinks:
        _through_points(layers[0], x, generators)
    return nn.Sequential(*layers)


@torch.no_grad()
def _through_points(first: nn.Module, x: Tensor, generators: Sequence[torch.Generator]) -> None:
    assert isinstance(first, DenseBank)
    for weight, bias, points, generator in zip(first.weight, first.bias, x, generators, strict=True):
        chosen = points[torch.randint(len(points), (len(weight),), generator=generator)]
        bias.copy_(-(weight * chosen).sum(1))


def _bank(
    options: Options, wiring: str, shape: tuple[int, int], fan_in: int, generators: Sequence[torch.Generator]
) -> DenseBank:
    (out, size), k = shape, shape[0] * fan_in
    if wiring == "dense":
        return DenseBank(len(generators), size, out)
    if wiring == "gaussian":
        return GaussianBank(options, size, out, k, generators)
    if wiring == "top_k":
        return WiredBank([TopKWiring(out, size, k, generator=generator) for generator in generators])
    kinds: dict[str, type[StaticWiring]] = {"static": StaticWiring, "set": SETWiring, "rigl": RigLWiring}
    drawn = [connections(out, size, fan_in, options.defects, generator) for generator in generators]
    return WiredBank([kinds[wiring](out, size, indices=indices) for indices in drawn])


def connections(out: int, size: int, fan_in: int, first: bool, generator: torch.Generator) -> Tensor:
    """`fan_in` different inputs for every neuron, `(out · fan_in, 2)`; the published code draws the first ones."""
    drawn = [torch.arange(size) if first else torch.randperm(size, generator=generator) for _ in range(out)]
    inputs = torch.stack([each[:fan_in].sort().values for each in drawn])
    return torch.stack([torch.arange(out).repeat_interleave(fan_in), inputs.flatten()], 1)


def stored(nets: nn.Sequential) -> int:
    """Values and biases that each net stores when it is evaluated."""
    banks = [bank for bank in nets if isinstance(bank, DenseBank)]
    return sum(bank.entries() + bank.bias.shape[1] for bank in banks)


# --- single nets ---------------------------------------------------------------------------------------


@torch.no_grad()
def singles(nets: nn.Sequential) -> list[Layers]:
    """Each net on its own, as it is evaluated."""
    banks = [(bank.weights().numpy(), bank.bias.numpy()) for bank in nets if isinstance(bank, DenseBank)]
    return [[(weight[i], bias[i]) for weight, bias in banks] for i in range(len(banks[0][1]))]


def evaluate(layers: Layers, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
    """The outputs of a net."""
    for i, (weight, bias) in enumerate(layers):
        x = nn.functional.linear(x if i == 0 else x.relu(), torch.as_tensor(weight), torch.as_tensor(bias))
    return x


@torch.no_grad()
def strip(layers: Layers) -> Layers:
    """The net without its dead units."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], len(weight))
        linear.weight.copy_(torch.as_tensor(weight))
        linear.bias.copy_(torch.as_tensor(bias))
        modules += [linear, nn.ReLU()]
    stripped = strip_dead_units(nn.Sequential(*modules[:-1]).eval())
    left = [module for module in stripped.modules() if isinstance(module, nn.Linear)]
    return [(module.weight.detach().numpy(), module.bias.detach().numpy()) for module in left]
