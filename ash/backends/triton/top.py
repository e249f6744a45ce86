"""The largest entries of a sum of outer products Σ_b g_b ⊗ x_b on a GPU, in memory proportional to how many.

The sum is computed tile by tile in tf32 or bfloat16 and never stored: what may be above a bar is collected in a buffer
and scored again in float32. The bar comes from a grid of entries. A tile's entry is off by at most ε |g_i| |x_j|
(Cauchy–Schwarz over the b products), where ε = 2 δ + δ² + b · 2^-21: δ, what rounding takes off a factor (2^-10 of it
in tf32, whose last bits the matrix units cut off; 2^-8 in bfloat16), and what adding up b products in float32 may
lose here and in the score, b · 2^-23 each, twice over. So no entry above the bar is missed, and where the n-th best
found reaches the bar the n best are those of all entries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.backends.triton.launch import power
from ash.backends.triton.serving import interpreted, serves
from ash.ids import among, ascending

if TYPE_CHECKING:
    from ash.growth import Factors
    from ash.template import Admissible

PRECISIONS = {"tf32": 2.0**-10, "bf16": 2.0**-8, "ieee": 0.0}
"""What rounding takes off a factor, relative."""
precision = "tf32"
"""Of the tiles: tf32, bf16 or ieee."""

LEAST = 1 << 24
"""Entries from which a search pays."""
SAMPLE = 1 << 22
"""Entries from which the bar is guessed."""
ROOM, SLACK = 4, 1 << 16
"""Candidates held: so many times n, and some more."""
TRIES = 8
TILE = {"M": 128, "N": 128, "K": 32, "GROUP": 8}
ORDERS = {"largest": 0, "positive": 1, "negative": -1}


class Search:
    """The entries of Σ_b g_b ⊗ x_b, g (b, o) and x (b, i), that come first.

    Args:
        gone: flattened positions, ascending, that do not count.
    """

    def __init__(self, g: Tensor, x: Tensor, n: int, by: str, gone: Tensor | None = None):
        self.gt, self.xt = g.t().float().contiguous(), x.t().float().contiguous()
        self.n, self.by, self.gone = n, ORDERS[by], gone
        (self.rows, self.b), self.cols = self.gt.shape, len(self.xt)
        more = 0 if gone is None else len(gone)
        self.capacity = min(ROOM * n + more + SLACK, self.rows * self.cols)

    def ids(self) -> Int64[Tensor, " n"] | None:
        """Their flattened positions in falling order; None where the bar cannot be found."""
        place: int | None = self._place(SAMPLE)
        bar = self._guess(place)
        for _ in range(TRIES):
            found, count = self._collect(bar)
            if self.gone is not None:
                found = found[~among(found, self.gone)]
            values, order = torch.topk(self.scores(found), min(self.n, len(found)))
            last = float(values[-1]) if len(values) == self.n else -math.inf
            if count <= self.capacity and last >= bar:
                return found[order]
            raised = count > self.capacity and last > bar
            if not raised and (place is None or count > self.capacity):
                return None
            if not raised:
                assert place is not None
                place = 2 * place if 2 * place < SAMPLE else None
            bar = last if raised else self._guess(place)
        return None

    def _place(self, sample: int) -> int:
        """Which of the sample's scores, in falling order, a little more than n of all should pass."""
        expected = self.n * min(1.0, sample / (self.rows * self.cols))
        return math.ceil(expected + 3 * math.sqrt(expected) + 8)

    def _guess(self, place: int | None) -> float:
        """The score at that place of a grid of entries; −∞ where there are fewer."""
        share = math.sqrt(min(1.0, SAMPLE / (self.rows * self.cols)))
        rows, cols = (
            torch.linspace(0, n - 1, max(1, round(n * share)), device=self.gt.device, dtype=torch.float64).long()
            for n in (self.rows, self.cols)
        )
        ids = (rows[:, None] * self.cols + cols).flatten()
        if self.gone is not None:
            ids = ids[~among(ids, self.gone)]
        if place is None or place > len(ids):
            return -math.inf
        return float(torch.topk(self.scores(ids), place).values[-1])

    def scores(self, ids: Int64[Tensor, " m"]) -> Float[Tensor, " m"]:
        """What entries are ordered by, in float32."""
        from ash.backends.triton.candidates import score

        values = self.gt.new_empty(len(ids))
        if not len(ids):
            return values
        e = power(min(self.b, 64))
        known = {"SPAN": e * math.ceil(self.b / e), "P": 32, "E": e}
        with torch.cuda.device_of(values):
            score[(math.ceil(len(ids) / 32),)](self.gt, self.xt, ids, values, len(ids), self.cols, self.b, **known)
        return values.abs_() if self.by == 0 else values.mul_(self.by)

    def _collect(self, bar: float) -> tuple[Int64[Tensor, " m"], int]:
        """The candidates, as far as they fit, and how many there are."""
        from ash.backends.triton.candidates import collect

        found = torch.empty(self.capacity, dtype=torch.int64, device=self.gt.device)
        count = torch.zeros(1, dtype=torch.int32, device=self.gt.device)
        tiles = math.ceil(self.rows / TILE["M"]) * math.ceil(self.cols / TILE["N"])
        known = {"BY": self.by, "SPAN": TILE["K"] * math.ceil(self.b / TILE["K"]), **self._precision(), **TILE}
        given = [*self._operands(), self.gt.new_tensor([bar]), found, count]
        with torch.cuda.device_of(found):
            collect[(tiles,)](*given, self.rows, self.cols, self.b, self.capacity, num_warps=8, **known)
        total = int(count)
        return found[: min(total, self.capacity)], total

    def _operands(self) -> list[Tensor]:
        """Both factors, and what bounds the errors of their product."""
        lost = PRECISIONS[precision]
        error = 2 * lost + lost**2 + self.b * 2.0**-21
        heights = torch.linalg.vector_norm(self.gt, dim=1).mul_(1.001 * error)  # room for the norms' own rounding
        widths = torch.linalg.vector_norm(self.xt, dim=1)
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        return [self.gt.to(kind), self.xt.to(kind), heights, widths]

    def _precision(self) -> dict[str, Any]:
        return {"PRECISION": "ieee" if precision == "bf16" else precision, "WIDEN": interpreted()}


def places(
    factors: Factors, n: int, exclude: Tensor | None = None, admissible: Admissible | None = None, by: str = "largest"
) -> Int64[Tensor, " n"] | None:
    """Flattened positions of the n entries that come first, as `Score.places`; None where that does better.

    For factors in float32 or narrower on a GPU, with every entry admissible.
    """
    total = math.prod(factors.shape)
    small = factors.x.dtype == torch.float64 or total < LEAST or 4 * n > total
    if small or not serves(factors.x, factors.g) or not (admissible is None or admissible.everything):
        return None
    return Search(factors.g, factors.x, n, by, None if exclude is None else ascending(exclude)).ids()
