"""The nets of the moons experiment, and how one of them is trained: one seed after the other, none of them large."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash import (
    Anneal,
    GaussianWiring,
    Rewirer,
    RigLWiring,
    Sampling,
    SETWiring,
    SparseLayer,
    SparseLinear,
    StaticWiring,
    TopKWiring,
    parameter_groups,
    strip_dead_units,
)
from ash.pattern import ravel
from ash.wirings.base import Wiring, fan_in_uniform
from ash.wirings.dynamic import DynamicWiring
from experiments.moons_options import Options

SIZES = (2, 16, 16, 1)
FAN_IN = (2, 2, 4)
"""Connections of a neuron in each layer: ceil((1 - sparsity) · inputs) for the sparsities 0, 0.9 and 0.8."""

Layers = list[tuple[np.ndarray, np.ndarray]]
"""A net as it is evaluated: weight `(out, in)` and bias `(out,)` of each layer, ReLU between them. Arrays, which pass
from process to process by value."""


@dataclass(frozen=True)
class Result:
    """What came of one seed.

    Attributes:
        seed: of data and net. accuracy: of the evaluated net on its training points, after the last step.
        loss: the last step's hinge loss. parameters: values and biases that the evaluated net stores.
        layers, stripped: the net before and after its dead units are taken away.
    """

    seed: int
    accuracy: float
    loss: float
    parameters: int
    layers: Layers
    stripped: Layers

    @property
    def sizes(self) -> list[int]:
        """Inputs, and units of each layer, of the stripped net."""
        return [self.stripped[0][0].shape[1], *(len(bias) for _, bias in self.stripped)]


def moons(points: int, noise: float, seed: int) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Two interleaved half circles, and which of them each point is from, -1 or 1."""
    from sklearn.datasets import make_moons

    x, y = make_moons(points, noise=noise, random_state=seed)
    return torch.from_numpy(x).float(), torch.from_numpy(2 * y - 1).float()


def evaluate(layers: Layers, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
    """The outputs of a net of plain layers."""
    for i, (weight, bias) in enumerate(layers):
        x = nn.functional.linear(x if i == 0 else x.relu(), torch.as_tensor(weight), torch.as_tensor(bias))
    return x


def plain(model: nn.Module) -> Layers:
    """The layers of a model as they are evaluated, dense."""
    found: Layers = []
    for module in model.modules():
        if isinstance(module, SparseLayer):
            rounded = module.wiring.rounded()
            assert rounded is not None and module.bias is not None
            found.append((rounded.to_dense().detach().numpy(), module.bias.detach().numpy()))
        elif isinstance(module, nn.Linear):
            found.append((module.weight.detach().numpy(), module.bias.detach().numpy()))
    return found


# --- nets --------------------------------------------------------------------------------------------


def make_net(options: Options, wiring: str, x: Tensor, generator: torch.Generator) -> nn.Sequential:
    """A net 2-16-16-1 with ReLU: the first layer is dense, in the others a neuron has `FAN_IN` connections.

    Top-k candidates and Gaussian tuples are as many in a layer, wherever they lie; `dense` has all weights.
    """
    layers: list[nn.Module] = [nn.Linear(2, 16)]
    for fan_in, size, out in zip(FAN_IN[1:], SIZES[1:], SIZES[2:], strict=False):
        layers += [nn.ReLU(), _layer(options, wiring, (out, size), fan_in, generator)]
    net = nn.Sequential(*layers)
    _start(net, options, x, generator)
    return net


def _layer(
    options: Options, wiring: str, shape: tuple[int, int], fan_in: int, generator: torch.Generator
) -> nn.Module:
    out, size = shape
    if wiring == "dense":
        return nn.Linear(size, out)
    k = out * fan_in
    if wiring == "top_k":
        made: Wiring = TopKWiring(out, size, k, generator=generator)
    elif wiring == "gaussian":
        made = _gaussian(options, shape, k, generator)
    else:
        kinds: dict[str, type[StaticWiring]] = {"static": StaticWiring, "set": SETWiring, "rigl": RigLWiring}
        made = kinds[wiring](out, size, indices=_connections(out, size, fan_in, options.defects, generator))
    layer = SparseLinear(size, out, wiring=made)
    layer.check_input = False  # a look at 100 points costs as much as the product
    return layer


def _connections(out: int, size: int, fan_in: int, first: bool, generator: torch.Generator) -> Tensor:
    """`fan_in` different inputs for every neuron, `(out · fan_in, 2)`; the published code draws the first ones."""
    drawn = [torch.arange(size) if first else torch.randperm(size, generator=generator) for _ in range(out)]
    inputs = torch.stack([each[:fan_in].sort().values for each in drawn])
    return torch.stack([torch.arange(out).repeat_interleave(fan_in), inputs.flatten()], 1)


def _gaussian(options: Options, shape: tuple[int, int], k: int, generator: torch.Generator) -> GaussianWiring:
    ceiling = Anneal(options.scale, options.scale_end, max(1, options.freeze_at))
    wiring = GaussianWiring(
        *shape,
        k,
        sampling=Sampling(global_samples=0, local_samples=2),
        scale=options.scale,
        scale_floor=options.scale_end,
        scale_ceiling=ceiling,
        generator=generator,
    )
    wiring.log_scale.requires_grad_(False)  # the schedule decides
    return wiring


@torch.no_grad()
def _start(net: nn.Sequential, options: Options, x: Tensor, generator: torch.Generator) -> None:
    """Initial weights and biases: `he` (see the experiment's docstring), or the demo's uniform ±0.1 and 0."""
    he = options.init == "he"
    layers = [module for module in net if isinstance(module, (nn.Linear, SparseLinear))]
    for layer, gain in zip(layers, (1.0, 1.0, options.last_gain), strict=True):
        values = _values(layer)
        drawn = _unit(layer, generator) * (gain * math.sqrt(6.0)) if he else 0.1 * _uniform(values, generator)
        values.copy_(drawn)
        assert layer.bias is not None
        layer.bias.zero_()
    if he and options.kinks:
        first = layers[0]
        chosen = x[torch.randint(len(x), (SIZES[1],), generator=generator)]
        first.bias.copy_(-(_values(first) * chosen).sum(1))  # type: ignore[union-attr]


def _values(layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Linear):
        return layer.weight
    assert isinstance(layer, SparseLinear)
    wiring = layer.wiring
    if isinstance(wiring, TopKWiring):
        return wiring.candidate
    assert isinstance(wiring, (StaticWiring, GaussianWiring))
    return wiring.values


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(like.shape, generator=generator) - 1


def _unit(layer: nn.Module, generator: torch.Generator) -> Tensor:
    """Uniform in ±1/√(fan-in), the fan-in over the entries that exist."""
    values = _values(layer)
    if isinstance(layer, SparseLinear) and not isinstance(layer.wiring, TopKWiring):
        rounded = layer.wiring.rounded()
        assert rounded is not None
        return fan_in_uniform(ravel(rounded.indices[:, :1], rounded.out_shape), layer.out_features, generator)
    stored = layer.wiring.stored_entries() if isinstance(layer, SparseLinear) else values.numel()
    return _uniform(values, generator) / math.sqrt(stored / len(values))


# --- training ----------------------------------------------------------------------------------------


def train(options: Options, wiring: str, seed: int) -> Result:
    """One net on its own points, from its first to its last step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = moons(options.points, options.noise, seed)
    net = make_net(options, wiring, x, generator)
    optimizer = _optimizer(options, net)
    rates = [group["lr"] for group in optimizer.param_groups]
    rewire = _rewiring(options, net, optimizer, seed)
    hinge = functools.partial(_hinge, net)
    loss = torch.zeros(())
    for step in range(options.steps):
        progress = step / options.steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - 0.9 * progress)
        if step == options.freeze_at:
            _freeze(net)
        optimizer.zero_grad()
        loss = hinge(x, y)
        loss.backward()
        optimizer.step()
        rewire(step, x, y)
    net.eval()
    layers, stripped = plain(net), plain(strip_dead_units(net))
    right = (evaluate(layers, x).squeeze(1) > 0) == (y > 0)
    return Result(seed, float(right.double().mean()), float(loss.detach()), stored(net), layers, stripped)


def _hinge(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (1 - y * net(x).squeeze(1)).relu().mean()


def stored(net: nn.Module) -> int:
    """Values and biases that the evaluated net stores."""
    total = 0
    for module in net.modules():
        if isinstance(module, SparseLayer):
            total += module.wiring.stored_entries() + (0 if module.bias is None else module.bias.numel())
        elif isinstance(module, nn.Linear):
            total += sum(p.numel() for p in module.parameters())
    return total


def _optimizer(options: Options, net: nn.Module) -> torch.optim.Optimizer:
    """Adam or SGD; the gradient of l2·Σp² is 2·l2·p, which an optimizer's own L2 adds without a pass over p."""
    assert options.lr is not None and options.decay is not None
    decay = 2 * (options.l2 + options.decay)
    groups = parameter_groups(net, options.lr, mean_lr=options.mean_lr, weight_decay=decay)
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, fused=True)  # a fifth of a step's time
    return torch.optim.SGD(groups, fused=True)


def _freeze(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, GaussianWiring):
            module.freeze()


def _rewiring(
    options: Options, net: nn.Module, optimizer: torch.optim.Optimizer, seed: int
) -> Callable[[int, Tensor, Tensor], object]:
    """What is called after every step: the library's `Rewirer`, or the demo's own way."""
    if not any(isinstance(module, DynamicWiring) for module in net.modules()):
        return lambda step, x, y: None
    if options.rewiring == "demo":
        generator = torch.Generator().manual_seed(seed)
        return functools.partial(_as_in_the_demo, options, net, generator)
    rewirer = Rewirer(
        net, optimizer, every=options.every, end=options.steps - 1, fraction=options.fraction, explored=False, seed=seed
    )
    return lambda step, x, y: rewirer.step()


def _as_in_the_demo(
    options: Options, net: nn.Module, generator: torch.Generator, step: int, x: Tensor, y: Tensor
) -> None:
    """Every 20th step, on the gradient after it; the share of the edges falls with the learning rate.

    The published code keeps the gradient of absent edges from the last point alone.
    """
    if step == 0 or step % options.every:
        return
    wirings = [module for module in net.modules() if isinstance(module, DynamicWiring)]
    for wiring in wirings:
        wiring.collecting = True
    last = slice(-1, None) if options.defects else slice(None)
    _hinge(net, x[last], y[last]).backward()
    fraction = options.fraction * (1 - 0.9 * step / options.steps)
    for wiring in wirings:
        k = wiring.stored_entries()
        wiring.rewire(wiring.collected(), math.floor(fraction * k) / k, generator)
        wiring.collecting = False
