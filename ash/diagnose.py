"""`diagnose`: index tuples that do no work: those that collided, died or froze, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from ash.checks import positive
from ash.count import aligned
from ash.pattern import ravel
from ash.wirings.base import Wiring


@dataclass(frozen=True, eq=False, repr=False)
class LayerDiagnosis:
    """The tuples of one layer that do no work, by their numbers in the wiring.

    Attributes:
        name: path of the layer in the model, "" for the model itself. kind: the class of its wiring.
        entries: how many tuples (or entries) it has; None where its weight depends on the input, so that
            there are no tuples to look at.
        collided, dead, frozen: numbers of the tuples, ascending; `diagnose` defines the words.
    """

    name: str
    kind: str
    entries: int | None
    collided: Int64[Tensor, " i"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    dead: Int64[Tensor, " j"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    frozen: Int64[Tensor, " l"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __repr__(self) -> str:
        if self.entries is None:
            return f"{self.name or '(model)'}: {self.kind} without tuples of its own"
        found = ", ".join(f"{len(getattr(self, word))} {word}" for word in ("collided", "dead", "frozen"))
        return f"{self.name or '(model)'}: {self.kind} of {self.entries}, {found}"


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What `diagnose` found: a `LayerDiagnosis` for every wiring; `str` of it is a table."""

    layers: tuple[LayerDiagnosis, ...]

    def __str__(self) -> str:
        if not self.layers:
            return "no sparse layer"
        head = ["layer", "wiring", "tuples", "collided", "dead", "frozen"]
        return aligned([head, *map(_row, self.layers)], text=2)

    def __repr__(self) -> str:
        return f"Diagnosis({'; '.join(map(repr, self.layers)) or 'no sparse layer'})"


@torch.no_grad()
def diagnose(model: nn.Module, dead: float = 0.01) -> Diagnosis:
    """Find the tuples of every wiring in a model that do no work. Changes nothing.

    - *collided*: its rounded tuple is the same entry of the weight tensor as that of another tuple. All that
      share an entry are listed.
    - *dead*: |value| is zero, or below `dead` times the mean |value| of its wiring. With the values fixed to
      one none is.
    - *frozen*: no gradient moves its mean. Its scale is so small that, of the integer points around the mean,
      the nearest has a share of 1, to the precision of the wiring's floating point numbers; or the wiring has
      been frozen; or its entries have no means (`StaticWiring`: all).

    A wiring whose weight depends on the input has no tuples of its own and gets a row that says so. One that
    several layers share is listed once. Raises `UserError` for `dead` below 0.
    """
    positive("dead", dead, zero=True)
    return Diagnosis(tuple(_layer(name, wiring, dead) for name, wiring in _wirings(model)))


def _wirings(model: nn.Module) -> Iterator[tuple[str, Wiring]]:
    """Every wiring, under the name of its host."""
    for name, module in model.named_modules():
        if isinstance(module, Wiring):
            yield "" if name == "wiring" else name.removesuffix(".wiring"), module


def _layer(name: str, wiring: Wiring, dead: float) -> LayerDiagnosis:
    kind, weight = type(wiring).__name__, wiring.rounded()
    if weight is None:
        return LayerDiagnosis(name, kind, None)
    size = weight.values.abs()
    found = (
        _collided(ravel(weight.indices, weight.shape)),
        (size == 0) | (size < dead * size.mean()),
        wiring.frozen_entries(),
    )
    return LayerDiagnosis(name, kind, len(size), *(each.nonzero().squeeze(-1) for each in found))


def _collided(ids: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """True for every flattened position that occurs more than once."""
    _, place, times = torch.unique(ids, return_inverse=True, return_counts=True)
    return times[place] > 1


def _row(layer: LayerDiagnosis) -> list[str]:
    start = [layer.name or "(model)", layer.kind]
    if layer.entries is None:
        return [*start, "none of its own", "–", "–", "–"]
    found = (len(layer.collided), len(layer.dead), len(layer.frozen))
    return [*start, *(f"{number:,}" for number in (layer.entries, *found))]
