"""How the nets of the moons experiment are trained: every step is one of all nets, none of which knows the others."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash import GaussianWiring, Rewirer, parameter_groups
from ash.wirings.dynamic import DynamicWiring
from experiments.moons_nets import Layers, evaluate, make_nets, moons, singles, stored, strip
from experiments.moons_options import Options


@dataclass(frozen=True)
class Result:
    """What came of one seed.

    Attributes:
        seed: of data and net. accuracy: of the evaluated net on its training points, after the last step.
        loss: the evaluated net's hinge loss. parameters: values and biases that it stores.
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


def train(options: Options, wiring: str, seeds: Sequence[int]) -> list[Result]:
    """A net for each seed, on its own points, from the first to the last step."""
    torch.manual_seed(seeds[0])
    x, y = (torch.stack(each) for each in zip(*(moons(options.points, options.noise, s) for s in seeds), strict=True))
    nets = make_nets(options, wiring, x, seeds)
    optimizer = _optimizer(options, nets)
    rates = [group["lr"] for group in optimizer.param_groups]
    rewire = _rewiring(options, nets, optimizer, seeds[0])
    for step in range(options.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - 0.9 * step / options.steps)
        if step == options.freeze_at:
            _freeze(nets)
        optimizer.zero_grad()
        hinge(nets(x), y).sum().backward()
        optimizer.step()
        rewire(step, x, y)
    nets.eval()
    each = zip(seeds, singles(nets), x, y, strict=True)
    return [_judge(seed, layers, stored(nets), own_x, own_y) for seed, layers, own_x, own_y in each]


def hinge(scores: Float[Tensor, "*s n 1"], y: Float[Tensor, "*s n"]) -> Float[Tensor, "*s"]:
    """Mean hinge loss of each net."""
    return (1 - y * scores.squeeze(-1)).relu().mean(-1)


def _judge(seed: int, layers: Layers, parameters: int, x: Tensor, y: Tensor) -> Result:
    loss = float(hinge(evaluate(layers, x), y))
    return Result(seed, share_right(layers, x, y), loss, parameters, layers, strip(layers))


def share_right(layers: Layers, x: Float[Tensor, "n 2"], y: Float[Tensor, " n"]) -> float:
    """The share of the points that a net tells right."""
    return float(((evaluate(layers, x).squeeze(1) > 0) == (y > 0)).double().mean())


def _optimizer(options: Options, nets: nn.Module) -> torch.optim.Optimizer:
    """Adam or SGD; the gradient of l2·Σp² is 2·l2·p, which an optimizer's own L2 adds without a pass over p."""
    assert options.lr is not None and options.decay is not None
    decay = 2 * (options.l2 + options.decay)
    groups = parameter_groups(nets, options.lr, mean_lr=options.mean_lr, weight_decay=decay)
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, fused=True)
    return torch.optim.SGD(groups, fused=True)


def _freeze(nets: nn.Module) -> None:
    for module in nets.modules():
        if isinstance(module, GaussianWiring):
            module.freeze()


# --- rewiring ------------------------------------------------------------------------------------------


def _rewiring(
    options: Options, nets: nn.Module, optimizer: torch.optim.Optimizer, seed: int
) -> Callable[[int, Tensor, Tensor], object]:
    """What is called after every step: the library's `Rewirer`, or the demo's own way."""
    if not any(isinstance(module, DynamicWiring) for module in nets.modules()):
        return lambda step, x, y: None
    if options.rewiring == "demo":
        return functools.partial(as_in_the_demo, options, nets, torch.Generator().manual_seed(seed))
    end, fraction = options.steps - 1, options.fraction
    rewirer = Rewirer(nets, optimizer, every=options.every, end=end, fraction=fraction, explored=False, seed=seed)
    return lambda step, x, y: rewirer.step()


def as_in_the_demo(
    options: Options, nets: nn.Module, generator: torch.Generator, step: int, x: Tensor, y: Tensor
) -> None:
    """Every 20th step, on the gradient after it; the share of the edges falls with the learning rate.

    The published code keeps the gradient of absent edges from the last point alone.
    """
    if step == 0 or step % options.every:
        return
    wirings = [module for module in nets.modules() if isinstance(module, DynamicWiring)]
    for wiring in wirings:
        wiring.collecting = True
    last = slice(-1, None) if options.defects else slice(None)
    hinge(nets(x[:, last]), y[:, last]).sum().backward()
    fraction = options.fraction * (1 - 0.9 * step / options.steps)
    for wiring in wirings:
        k = wiring.stored_entries()
        wiring.rewire(wiring.collected(), math.floor(fraction * k) / k, generator)
        wiring.collecting = False
