"""LeNet-300-100 with every kind of wiring, and with which settings each of them is trained."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ash import (
    Anneal,
    Context,
    DynamicWiring,
    GaussianWiring,
    LayerSize,
    RigLWiring,
    Sampling,
    SETWiring,
    SNFSWiring,
    SparseLayer,
    SparseLinear,
    SparseWeight,
    StaticWiring,
    Template,
    TopKWiring,
    Wiring,
    allot,
    parameter_groups,
)
from ash import DSRWiring as DSR
from ash.checks import require
from experiments.models import around_centre, distinct

WIDTHS = (300, 100)
"""Hidden units of LeNet-300-100."""


@dataclass(frozen=True)
class Recipe:
    """How the nets of one wiring are trained.

    `lr` goes to 0 by one cosine. `weight_decay` is L2 in the gradient for SGD, decoupled for AdamW. Every `every`
    steps, until `rewire_until` of the run, `fraction` of the entries is rewired (annealed by a cosine), by gradients
    averaged over `average_over` steps; `drop` says which entries go first (see `ash.DynamicWiring`).
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    batch: int = 100
    every: int = 100
    fraction: float = 0.3
    average_over: int = 1
    rewire_until: float = 0.75
    drop: str = "magnitude"


GAUSSIAN = Recipe("adamw", 1e-2, 0.1, batch=256)
RECIPES: dict[str, Recipe] = {
    "dense": Recipe(),
    "static": Recipe(),
    "set": Recipe(),
    "rigl": Recipe(fraction=0.5, average_over=100, drop="dead_first"),
    "snfs": Recipe(fraction=0.5, drop="dead_first"),
    "dsr": Recipe(),
    "top_k": Recipe(weight_decay=1e-3),
    "gaussian": GAUSSIAN,
}
STORED: dict[str, Any] = {
    "static": StaticWiring,
    "set": SETWiring,
    "rigl": RigLWiring,
    "snfs": SNFSWiring,
    "dsr": DSR,
    "top_k": TopKWiring,
}
MEAN_LR, SPREAD, FREEZE = 0.05, 0.2, 0.7
SCALES = (3 / 28, 0.3)
"""Scale of a Gaussian at the start, as a share of the image's size, and when the means are frozen, in pixels."""
HIDDEN_SCALE = 0.6
"""Scale at the start where inputs are hidden units, in units of an index."""


class Task(NamedTuple):
    """What is to be classified: images `(h, w)` and how many classes they have."""

    image: tuple[int, int]
    classes: int

    @property
    def sizes(self) -> dict[str, LayerSize]:
        """The three layers of the net."""
        units = (math.prod(self.image), *WIDTHS, self.classes)
        return {str(i): LayerSize(out, inputs) for i, (inputs, out) in enumerate(zip(units, units[1:], strict=False))}


def build(
    wiring: str, task: Task, density: float, distribution: str, steps: int, drop: str = "magnitude"
) -> nn.Sequential:
    """The net with layers of that wiring; `density` of all weights are shared out among them.

    Scales of Gaussians reach their end at `FREEZE` of `steps`.
    """
    sizes = task.sizes
    if wiring == "dense":
        layers: list[nn.Module] = [nn.Linear(size.inputs, size.out) for size in sizes.values()]
    elif wiring == "gaussian":
        counts = allot(sizes, density, distribution)
        layers = [_gaussian(size, counts[name], task.image, steps) for name, size in sizes.items()]
    else:
        counts = allot(sizes, density, distribution)
        how = {"drop": drop} if issubclass(STORED[wiring], DynamicWiring) else {}
        make = functools.partial(STORED[wiring], **how)
        layers = [SparseLinear(size.inputs, size.out, wiring=functools.partial(make, k=counts[name]))
                  for name, size in sizes.items()]  # fmt: skip
    return chain(layers)


def chain(layers: list[nn.Module]) -> nn.Sequential:
    """The layers with ReLU between them; images are flattened where the first one is not for images."""
    for layer in layers:
        if isinstance(layer, SparseLayer):
            layer.check_input = False  # the data were looked at once
    first, second, third = layers
    flat = not isinstance(first, SparseLayer) or len(first.in_shape) == 1
    start = [nn.Flatten()] if flat else []
    return nn.Sequential(*start, first, nn.ReLU(), second, nn.ReLU(), third)


def _gaussian(size: LayerSize, k: int, image: tuple[int, int], steps: int) -> SparseLayer:
    """A layer of k tuples: units are fixed, as many tuples for each, and inputs are learned.

    Inputs that are an image have a row and a column. Others have an index, whose neighbours mean nothing: there a
    unit's tuples start at different inputs and are narrow.
    """
    first = size.inputs == math.prod(image)
    in_shape = image if first else (size.inputs,)
    rows = torch.arange(k) * size.out // k
    start = max(SCALES[0] * max(image) if first else HIDDEN_SCALE, SCALES[1])
    schedule = Anneal(start, SCALES[1], max(1, round(FREEZE * steps)))
    others = distinct(torch.bincount(rows, minlength=size.out), torch.ones(size.inputs))
    wiring = GaussianWiring(
        size.out,
        in_shape,
        k,
        template=Template(1 + len(in_shape), (0,), rows[:, None]),
        positions=around_centre(k, image, SPREAD) if first else others[:, None],
        context=Context("tuple"),
        sampling=Sampling(global_samples=0, local_samples=2),
        scale=start,
        scale_floor=schedule,
        scale_ceiling=schedule,
    )
    return SparseLayer(in_shape, size.out, wiring=wiring)


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe, fused."""
    groups = parameter_groups(model, recipe.lr, mean_lr=MEAN_LR, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    require(recipe.optimizer == "sgd", f"optimizer {recipe.optimizer!r}; expected 'sgd' or 'adamw'.")
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, fused=True)


def wirings(model: nn.Module) -> dict[str, Wiring]:
    """The wirings of a net, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Wiring)}


# --- the inference form: what is stored of a trained net ------------------------------------------------


@torch.no_grad()
def stored(model: nn.Sequential) -> list[dict[str, Tensor]]:
    """For every layer its entries, values and biases, or its dense weight and biases."""
    kept = []
    for layer in model:
        if isinstance(layer, SparseLayer):
            weight = layer.wiring.rounded()
            assert isinstance(weight, SparseWeight) and layer.bias is not None
            parts = {"indices": weight.indices, "values": weight.values, "bias": layer.bias}
            kept.append({name: tensor.clone() for name, tensor in parts.items()})
        elif isinstance(layer, nn.Linear):
            kept.append({"weight": layer.weight.clone(), "bias": layer.bias.clone()})
    return kept


@torch.no_grad()
def restored(kept: list[dict[str, Tensor]], task: Task) -> nn.Sequential:
    """The net that was stored."""
    sizes = task.sizes.values()
    return chain([_layer(parts, size, task) for parts, size in zip(kept, sizes, strict=True)]).eval()


def _layer(parts: dict[str, Tensor], size: LayerSize, task: Task) -> nn.Module:
    if "weight" in parts:
        dense = nn.Linear(size.inputs, size.out)
        dense.load_state_dict(parts)
        return dense
    in_shape = task.image if parts["indices"].shape[1] == 3 else (size.inputs,)
    wiring = StaticWiring(size.out, in_shape, indices=parts["indices"])
    layer = SparseLayer(in_shape, size.out, wiring=wiring)
    wiring.values.copy_(parts["values"])
    assert layer.bias is not None
    layer.bias.copy_(parts["bias"])
    return layer
