"""`Wiring`: what decides, for every batch, which entries of a weight tensor exist and what they are worth."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from ash.checks import UserError, require, shape
from ash.growth import Score
from ash.pattern import check_ravel
from ash.template import Admissible, Everything
from ash.weight import SparseWeight


@dataclass(frozen=True)
class RewireReport:
    """What a rewiring did.

    Attributes:
        moved: numbers of the entries (or tuples) that moved.
        merged: how many were merged with others.
        order: `(capacity,)`, the number that every entry had before, where they were numbered anew; `moved` then
            holds the new numbers. An optimizer's state has to follow (`ash.reorder_state`).
    """

    moved: Int64[Tensor, " moves"]
    merged: int = 0
    order: Int64[Tensor, " capacity"] | None = None

    @property
    def moves(self) -> int:
        """How many entries moved."""
        return len(self.moved)


class Wiring(nn.Module, ABC):
    """A sparse weight tensor whose entries are decided anew, or kept; the hosts know nothing else.

    Args:
        out_shape, in_shape: the two halves of the weight tensor's shape (an int or a sequence).
        admissible: which entries may exist; all of them by default.

    Raises `UserError` for sizes below 1, a tensor whose flattened positions exceed int64, and an
    admissible set that leaves no entry or is made for another shape.
    """

    collecting: bool
    """Whether gradients are to be added up for the next rewiring; what drives the rewiring says so."""
    _collected: Score | None

    inference_tensors: ClassVar[tuple[str, ...]] = ("values",)
    """Names of the parameters and buffers of the inference form; training holds the others besides."""

    def __init__(
        self, out_shape: int | Sequence[int], in_shape: int | Sequence[int], admissible: Admissible | None = None
    ):
        super().__init__()
        self.collecting, self._collected = False, None
        self.out_shape = shape("out_shape", out_shape)
        self.in_shape = shape("in_shape", in_shape)
        check_ravel(self.shape)
        self.admissible = Everything(self.shape) if admissible is None else admissible
        require(
            tuple(self.admissible.shape) == self.shape,
            f"{self.admissible!r} is made for {tuple(self.admissible.shape)}; expected {self.shape}, "
            "the weight tensor's shape, output dimensions first.",
        )
        self.admissible.check()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight tensor, output dimensions first."""
        return (*self.out_shape, *self.in_shape)

    @property
    def rank(self) -> int:
        """r, the rank of the weight tensor."""
        return len(self.shape)

    @abstractmethod
    def forward(self, x: Tensor | None = None) -> SparseWeight:
        """Required. One draw of the weight; x `(b, *in_shape, …)` is for adaptive wirings only."""

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as when the wiring was made; default: there are none."""
        return

    @abstractmethod
    def stored_entries(self) -> int:
        """Required. Entries of the inference form: what `ash.count` counts."""

    def rounded(self) -> SparseWeight | None:
        """The weight in evaluation; None, the default, where it depends on the input."""
        return None

    def frozen_entries(self) -> Bool[Tensor, " n"]:
        """Which entries of the evaluated weight no gradient can move; by default all: they have no means."""
        return torch.ones(self.stored_entries(), dtype=torch.bool)

    @property
    def wants_factors(self) -> bool:
        """Whether the host is to hand over the weight's gradient after each backward pass: while `collecting`."""
        return self.collecting and self.training

    def observe(self, score: Score) -> None:
        """Receive the gradient of the batch that has just been through; default: while `collecting`, add it up."""
        if self.collecting:
            own = score.kept()
            self._collected = own if self._collected is None else self._collected + own

    def collected(self) -> Score | None:
        """The sum of what was observed while `collecting`, given once; None where there was nothing."""
        score, self._collected = self._collected, None
        return score

    def advance(self, step: int) -> None:
        """Told by `ash.Rewirer` how many optimizer steps there have been; default: nothing depends on it."""
        return

    def rewire(self, score: Score) -> RewireReport:
        """Move entries, led by the gradient of the loss by the weight tensor; default: nothing changes."""
        return RewireReport(moved=torch.zeros(0, dtype=torch.int64))

    @torch.no_grad()
    def load_dense(self, weight: Tensor) -> None:
        """Take the values at this wiring's entries from a dense tensor of the same shape.

        Raises `UserError` where the wiring has no values of its own.
        """
        raise UserError(f"{type(self).__name__} has no values to load; use one with learned values.")

    def extra_repr(self) -> str:
        entries = self.stored_entries()
        total = math.prod(self.shape)
        text = f"{self.out_shape} x {self.in_shape}, entries={entries}, density={entries / total:.3g}"
        return text if self.admissible.everything else f"{text}, admissible={self.admissible!r}"


def version(tensor: Tensor) -> int:
    """How often a tensor was written to; −1 for a tensor made in inference mode, which does not count."""
    return -1 if tensor.is_inference() else tensor._version


def entries_from(k: int | None, density: float | None, admissible: Admissible) -> int:
    """k itself, or the number of entries that is `density` (0 … 1] of the admissible ones, at least 1."""
    require(k is None or density is None, f"k={k} and density={density}; give one of them.")
    if k is not None:
        require(k >= 1, f"k={k}; expected at least 1 tuple.")
        return int(k)
    d = 0.1 if density is None else density
    require(0 < d <= 1, f"density={d}; expected a number above 0 and at most 1.")
    return max(1, round(d * admissible.count()))


def fan_in_uniform(rows: Int64[Tensor, " n"], generator: torch.Generator | None = None) -> Tensor:
    """Values uniform in ±1/√(fan-in), the fan-in of every output counted over its stored entries, `(n,)`.

    What `nn.Linear` does for a dense weight (Kaiming-uniform with a = √5).
    """
    if len(rows) and int(rows.max()) <= 8 * len(rows):  # counting is linear; of far more rows it would fill the memory
        counts = rows.bincount().take(rows)
    else:
        _, place, each = rows.unique(return_inverse=True, return_counts=True)
        counts = each.take(place)
    bound = counts.to(torch.get_default_dtype()).rsqrt()
    return (2 * torch.rand(bound.shape, generator=generator, device=rows.device) - 1) * bound
