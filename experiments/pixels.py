"""Which pixels the hidden units of a classifier read: as numbers, and as pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash import SparseLayer
from ash.checks import require
from ash.plot import image_grid

PANELS, UNITS = 6, 20


def matrix(layer: nn.Module) -> Float[Tensor, "out ..."]:
    """The weight of a sparse layer, rounded and dense, or of a linear one; `UserError` for any other."""
    weight = layer.wiring.rounded() if isinstance(layer, SparseLayer) else None
    if weight is not None:
        return weight.to_dense().detach()
    require(isinstance(layer, nn.Linear), f"a layer {type(layer).__name__}; expected a sparse or a linear one.")
    return layer.weight.detach()  # type: ignore[operator]


def unit_weights(model: nn.Sequential, shape: tuple[int, int]) -> Float[Tensor, "hidden h w"]:
    """The weights of the first layer as an image for every hidden unit."""
    first = model[1] if isinstance(model[0], nn.Flatten) else model[0]
    return matrix(first).reshape(-1, *shape)


def readers(model: nn.Sequential, shape: tuple[int, int]) -> Float[Tensor, "h w"]:
    """How many hidden units read each pixel; of a dense layer, the sum of their absolute weights. On the CPU."""
    weights = unit_weights(model, shape)
    dense = not any(isinstance(layer, SparseLayer) for layer in model)
    return (weights.abs().sum(0) if dense else (weights != 0).float().sum(0)).cpu()


def draw_readers(seen: Sequence[Tensor], until: int, path: Path, label: str) -> None:
    """Heat maps of `readers` before training and after epochs up to `until`, those that differ."""
    epochs = sorted({round(until * i / (PANELS - 1)) for i in range(PANELS)})
    changed = [b for a, b in itertools.pairwise(epochs) if not torch.equal(seen[a], seen[b])]
    shown = {_title(epoch): seen[epoch] for epoch in (0, *changed)}
    image_grid(shown if changed else {"all epochs": seen[0]}, path, label=label)


def _title(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "start"


def draw_units(model: nn.Sequential, shape: tuple[int, int], path: Path) -> None:
    """The weights of the hidden units with the largest effect on the classes, an image each."""
    weights = unit_weights(model, shape)
    effect = weights.flatten(1).norm(dim=1) * matrix(model[-1]).norm(dim=0)
    best = effect.argsort(descending=True)[:UNITS].tolist()
    image_grid({f"unit {i}": weights[i] for i in best}, path, label="weight")
