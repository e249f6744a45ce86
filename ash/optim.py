"""What an optimizer needs to know of sparse layers: parameter groups, and the state of entries that moved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ash.codebook import Codebook
from ash.means import Means
from ash.wirings.base import Wiring

_APART = {"log_scale": "scales", "codes": "codes", "offset": "offsets", "logits": "gates"}


def parameter_groups(
    model: nn.Module,
    lr: float = 1e-3,
    *,
    mean_lr: float = 0.1,
    scale_lr: float = 0.03,
    value_lr: float | None = None,
    gate_lr: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: means, scales, values, gates, hypernetworks' offsets, and everything else.

    Args:
        lr: of everything else, hypernetworks among it, of the values unless `value_lr` is given, and of the logits of
            gates unless `gate_lr` is.
        mean_lr: of means, in units of a tuple's own scale per step (with Adam).
        scale_lr: of log scales.
        weight_decay: of values and everything else. Means, scales, the logits of codebooks and of gates, and the
            offsets of adaptive wirings get none: it would pull means to their anchors or the centre, scales to 1,
            gates to 0.5.

    An optimizer's state is of the stored numbers alone: of a value for each entry, and of means and scales for each
    tuple, however large the tensor (dense candidates, as `TopKWiring` has, all learn and all have a state). Where few
    tuples get a gradient in a step (`GaussianWiring(subset=0.01)`), `torch.optim.Adam(…, fused=True)` goes through all
    of k = 1,000,000 in 8 ms of a step of 470, and unfused in 37, on one core.

    Returns:
        Dicts with `params`, `lr`, `weight_decay` and `name` ("means", "scales", "values", "codes", "offsets",
        "gates", "other"); empty groups are left out.
    """
    names = ("means", "scales", "values", "codes", "offsets", "gates", "other")
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    seen: set[int] = set()
    for name, module in _kinds(model):
        for parameter in module:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                groups[name].append(parameter)
    values = lr if value_lr is None else value_lr
    rates = {"means": mean_lr, "scales": scale_lr, "values": values, "codes": values, "offsets": lr, "other": lr}
    rates["gates"] = lr if gate_lr is None else gate_lr
    return [
        {
            "params": params,
            "lr": rates[name],
            "weight_decay": weight_decay if name in ("values", "other") else 0.0,
            "name": name,
        }
        for name, params in groups.items()
        if params
    ]


def _kinds(model: nn.Module) -> Iterable[tuple[str, list[nn.Parameter]]]:
    for module in model.modules():
        if isinstance(module, Means):
            yield "means", list(module.parameters(recurse=False))
        elif isinstance(module, Wiring):
            own = dict(module.named_parameters(recurse=False))
            for name, kind in _APART.items():
                if name in own:
                    yield kind, [own.pop(name)]
            yield "values", list(own.values())
        elif isinstance(module, Codebook):
            yield "values", [module.scalars]
    yield "other", list(model.parameters())


@torch.no_grad()
def clear_state(optimizer: torch.optim.Optimizer, module: nn.Module, rows: Int64[Tensor, " j"]) -> None:
    """Zero the optimizer's state of the given tuples in all of a wiring's parameters (momenta, second moments).

    Every state tensor of a parameter's own shape counts as a state per entry; step counts stay, and so does the
    state of a codebook's scalars, which belong to no tuple.
    """
    for value in _states(optimizer, module):
        value[rows] = 0.0


@torch.no_grad()
def reorder_state(optimizer: torch.optim.Optimizer, module: nn.Module, order: Int64[Tensor, " k"]) -> None:
    """Bring the optimizer's state per entry into the order that a wiring's entries have been brought into.

    `order` holds the number that every entry had before: `RewireReport.order`.
    """
    for value in _states(optimizer, module):
        value.copy_(value[order])


def _states(optimizer: torch.optim.Optimizer, module: nn.Module) -> Iterable[Tensor]:
    shared = {id(each.scalars) for each in module.modules() if isinstance(each, Codebook)}
    for parameter in module.parameters():
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape and id(parameter) not in shared:
                yield value
