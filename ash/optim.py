"""What an optimizer needs to know of sparse layers: parameter groups, and the state of entries that moved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ash.means import Means
from ash.wirings.base import Wiring
from ash.wirings.gaussian import GaussianWiring


def parameter_groups(
    model: nn.Module,
    lr: float = 1e-3,
    *,
    mean_lr: float = 0.1,
    scale_lr: float = 0.03,
    value_lr: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: the means, the scales, the values of sparse layers, and everything else.

    Args:
        lr: of everything else, and of the values unless `value_lr` is given.
        mean_lr: of means, in units of a tuple's own scale per step (with Adam).
        scale_lr: of log scales.
        weight_decay: of values and everything else. Means and scales get none: it would pull means to their
            anchors or the centre, and scales to 1.

    Returns:
        Dicts with `params`, `lr`, `weight_decay` and `name` ("means", "scales", "values", "other"); empty groups
        are left out.
    """
    groups: dict[str, list[nn.Parameter]] = {"means": [], "scales": [], "values": [], "other": []}
    seen: set[int] = set()
    for name, module in _kinds(model):
        for parameter in module:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                groups[name].append(parameter)
    rates = {"means": mean_lr, "scales": scale_lr, "values": lr if value_lr is None else value_lr, "other": lr}
    return [
        {
            "params": params,
            "lr": rates[name],
            "weight_decay": 0.0 if name in ("means", "scales") else weight_decay,
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
            scale = own.pop("log_scale", None) if isinstance(module, GaussianWiring) else None
            if scale is not None:
                yield "scales", [scale]
            yield "values", list(own.values())
    yield "other", list(model.parameters())


@torch.no_grad()
def clear_state(optimizer: torch.optim.Optimizer, module: nn.Module, rows: Int64[Tensor, " j"]) -> None:
    """Zero the optimizer's state of the given tuples in all of a wiring's parameters (momenta, second moments).

    Every state tensor of a parameter's own shape counts as a state per entry; step counts stay.
    """
    for parameter in module.parameters():
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[rows] = 0.0
