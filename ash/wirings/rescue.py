"""`Rescue`: moves free tuples by other means than the gradient of their means. Every move is counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ash.checks import positive, require
from ash.growth import Score
from ash.pattern import ravel
from ash.wirings.base import RewireReport

if TYPE_CHECKING:
    from ash.wirings.gaussian import GaussianWiring


@dataclass(frozen=True)
class Rescue:
    """Merge tuples that share an entry, take idle ones to where the gradient is largest, part straddling ones.

    With learned values, two tuples at one entry are as good as one and feel no force apart; a tuple at an entry
    that is not needed loses its value, and with it the gradient of its mean; and a tuple half way between two
    entries can serve both, a solution that no rounding keeps. None of them gets away by gradient alone.

    With values fixed to one, the last few of many tuples wander long before they meet the last free entries. Here a
    tuple is misplaced if the rounded weight's squared error falls when it is taken away, inputs having variance 1:
    the gradient at its entry is then above 1, and 2 for each tuple too many. Misplaced ones go to free entries
    where the gradient is below −1. This alone, begun early, is greedy selection; `most` keeps it to the end.

    Attributes:
        idle: a tuple is idle if |value| is below this share of the mean |value|.
        narrow: only tuples with scales up to this many indices are merged or set on their entry.
        straddle: a narrow tuple whose mean is further than this from its entry, in any column, is set on it.
        scale: σ of a tuple that was taken elsewhere; its value starts at 0 if it is learned.
        most: where values are ones, nothing is moved while more than this share of the tuples is misplaced.

    The caller clears the optimizer's state of the tuples that moved (`ash.clear_state`). Source: drop and grow as
    in RigL (arXiv 1911.11134), the growing by exact largest gradients; merging and parting are ours.
    """

    idle: float = 0.2
    narrow: float = 1.0
    straddle: float = 0.25
    scale: float = 1.0
    most: float = 0.02

    def __post_init__(self) -> None:
        positive("idle", self.idle, zero=True)
        positive("narrow", self.narrow)
        positive("straddle", self.straddle)
        positive("scale", self.scale)
        positive("most", self.most, zero=True)

    def __call__(self, wiring: GaussianWiring, score: Score) -> RewireReport:
        """Change the wiring in place; `score` holds the factors of the gradient at the rounded weight."""
        require(wiring.codebook is None, "a rescue needs learned values, or ones; use values='learned'.")
        require(not wiring.template.columns, "a rescue moves all columns; the wiring's template fixes some.")
        ids = ravel(wiring.rounded_indices(), wiring.shape)
        if not wiring.learned_values:
            return RewireReport(moved=self._resettle(wiring, score, ids))
        narrow = (wiring.scales() <= self.narrow).all(-1)
        free = _merge(wiring, ids, narrow)
        merged = int(free.sum())
        size = wiring.values.abs()
        free |= size < self.idle * size.mean()
        parted = self._part(wiring, narrow & ~free)
        grown = self._grow(wiring, score, free.nonzero().squeeze(-1), ids)
        return RewireReport(moved=torch.cat([grown, parted]), merged=merged)

    def _part(self, wiring: GaussianWiring, which: Bool[Tensor, " k"]) -> Int64[Tensor, " parted"]:
        """Set straddling tuples on their entries."""
        entries = wiring.rounded_indices()[:, list(wiring.template.learned)].double()
        away = (wiring.tuples().means - entries).abs().amax(-1) > self.straddle
        parted = (which & away).nonzero().squeeze(-1)
        wiring.means.place(parted, entries[parted])
        return parted

    def _resettle(self, wiring: GaussianWiring, score: Score, ids: Tensor) -> Int64[Tensor, " moved"]:
        """Take misplaced tuples of value one to the free entries that the loss asks for most."""
        misplaced = _misplaced(ids, score.at(wiring.rounded_indices()), wiring.scales().amax(-1))
        which = misplaced.nonzero().squeeze(-1)
        if not 0 < len(which) <= self.most * wiring.k:
            return which[:0]
        kept = ids[~misplaced]
        entries, gradient = score.top(len(which), exclude=kept, admissible=wiring.admissible, by="negative")
        return self._move(wiring, which, entries[gradient < -1])

    def _move(self, wiring: GaussianWiring, which: Tensor, entries: Tensor) -> Int64[Tensor, " moved"]:
        """Put as many of the tuples at entries as there are, at a scale of their own."""
        which = which[: len(entries)]
        wiring.means.place(which, entries[: len(which), list(wiring.template.learned)].double())
        wiring.log_scale[which] = math.log(self.scale)
        return which

    def _grow(self, wiring: GaussianWiring, score: Score, which: Tensor, ids: Tensor) -> Int64[Tensor, " moved"]:
        """Put tuples at the largest gradient entries that no tuple holds."""
        if not len(which):
            return which
        entries, _ = score.top(len(which), exclude=ids, admissible=wiring.admissible)
        which = self._move(wiring, which, entries)
        wiring.values[which] = 0.0
        return which


def _merge(wiring: GaussianWiring, ids: Tensor, narrow: Tensor) -> Bool[Tensor, " k"]:
    """Sum the values of narrow tuples at one entry into the largest of them; True for those left over."""
    order = torch.where(narrow, wiring.values.abs(), -1.0).argsort(descending=True, stable=True)
    places, place = torch.unique(ids, return_inverse=True)
    first = torch.full((len(places),), len(ids), dtype=torch.int64, device=ids.device)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=ids.device))
    first.scatter_reduce_(0, place, rank, "amin")
    keeper = order[first][place]
    left = narrow & narrow[keeper] & (keeper != torch.arange(len(ids), device=ids.device))
    wiring.values.index_add_(0, keeper[left], wiring.values[left])
    return left


def _misplaced(ids: Tensor, gradient: Tensor, scales: Tensor) -> Bool[Tensor, " k"]:
    """Of the tuples at an entry the widest ones, one for every 2 of its gradient (rounded); all have value one."""
    order = scales.argsort(descending=True, stable=True)
    order = order[ids[order].argsort(stable=True)]
    own = ids[order]
    rank = torch.arange(len(ids), device=ids.device) - torch.searchsorted(own, own)
    found = torch.zeros_like(ids, dtype=torch.bool)
    found[order] = rank < (gradient[order] / 2).round()
    return found
