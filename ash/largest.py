"""The n largest of many scores that come block by block, with a bar that rises as they come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash import jit

SLACK = 1 << 18
"""Scores beyond 2n that are held before the smallest of them are let go."""

COMPILED = 1 << 24
"""Scores of a search from which loading compiled kernels (about two seconds) pays."""


class Largest:
    """The n largest scores of those offered, with what they are called.

    Args:
        n: how many.
        bar: only scores above it count.
        counts: which of some names count; None: all.
        total: how many scores are to come, about.

    Attributes:
        bar: what a score has to pass by now: the n-th of those held, once n are.
    """

    def __init__(self, n: int, bar: float, counts: Callable[[Tensor], Tensor] | None, total: int):
        self.n, self.bar, self._counts = n, bar, counts
        self._scores: list[Tensor] = []
        self._names: list[Tensor] = []
        self._held, self._compiled = 0, total >= COMPILED
        self._room: np.ndarray | None = None

    def offer(self, scores: Float[Tensor, " s"], names: Callable[[Tensor], Tensor]) -> None:
        """Look at some scores; `names` gives the names, int64, of places among them."""
        found = self._above(scores)
        if not len(found):
            return
        called, scores = names(found), scores[found]
        if self._counts is not None:
            keep = self._counts(called)
            called, scores = called[keep], scores[keep]
        self._names.append(called)
        self._scores.append(scores)
        self._held += len(scores)
        if self._held > 2 * self.n + SLACK:
            self._select()

    def _above(self, scores: Tensor) -> Tensor:
        """Places of the scores above the bar."""
        if not (self._compiled and jit.serves(len(scores), scores)):
            return (scores > self.bar).nonzero().squeeze(-1)
        from ash.jit.select import above  # loads numba

        if self._room is None or len(self._room) < len(scores):
            self._room = np.empty(len(scores), dtype=np.int64)
        (given,) = jit.arrays(scores)
        return torch.from_numpy(self._room[: above(given, given.dtype.type(self.bar), self._room)])

    def _select(self) -> None:
        """Keep the n largest, in falling order."""
        scores, names = torch.cat(self._scores), torch.cat(self._names)
        self._scores, self._names = [], []
        values, order = torch.topk(scores, min(self.n, len(scores)))
        self._scores, self._names, self._held = [values], [names[order]], len(order)
        if self._held == self.n:
            self.bar = float(values[-1])

    def names(self) -> Int64[Tensor, " m"]:
        """The names of the n largest, or of as many as there were, the largest first."""
        if not self._names:
            return torch.zeros(0, dtype=torch.int64)
        self._select()
        return self._names[0]

