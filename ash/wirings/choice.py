"""Which entries of a dense tensor have the largest scores: of the whole tensor, in groups, over several tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash import jit
from ash.checks import require
from ash.distributions import share_out
from ash.schedules import Schedule, at
from ash.wirings.base import version

if TYPE_CHECKING:
    from ash.wirings.top_k import TopKWiring

NEAR = 0.97
"""Where the k largest are looked for first: above this share of the smallest score that was chosen the last time."""
ROOM = 64
"""Places that the compiled search has beyond 2k."""


def largest(score: Float[Tensor, " n"], k: int, bar: float | None = None) -> tuple[Int64[Tensor, " k"], float]:
    """Places of the k largest scores, ascending (of equal ones at the border the first), and the smallest of these.

    `bar` is a guess below the k-th largest. It decides nothing, but where it is near, a selection among few replaces
    one among all.
    """
    if bar is not None:
        quick = _compiled(score, k, bar) if jit.serves(len(score), score) else _among(score, k, score > bar)
        if quick is not None:
            return quick
    everything = _among(score, k, torch.ones_like(score, dtype=torch.bool))
    assert everything is not None
    return everything


def _among(score: Tensor, k: int, candidates: Tensor) -> tuple[Tensor, float] | None:
    """The k largest of some candidates; None where there are fewer."""
    found = candidates.nonzero().squeeze(-1)
    if len(found) < k:
        return None
    near = score.index_select(0, found)
    border = near.topk(k, sorted=False).values.min()
    keep = near >= border
    surplus = int(keep.sum()) - k
    if surplus:
        keep[(near == border).nonzero().squeeze(-1)[-surplus:]] = False
    return found[keep], float(border)


def _compiled(score: Tensor, k: int, bar: float) -> tuple[Tensor, float] | None:
    """The same among the scores above the bar, where these are neither fewer than k nor far more."""
    from ash.jit.select import above  # loads numba

    (scores,) = jit.arrays(score)
    found = np.empty(min(len(scores), 2 * k + ROOM), dtype=np.int64)
    count = above(scores, bar, found)
    if not k <= count <= len(found):
        return None
    found = found[:count]
    near = scores[found]
    border = np.partition(near, count - k)[count - k]
    keep = near >= border
    surplus = int(keep.sum()) - k
    if surplus:
        keep[np.flatnonzero(near == border)[-surplus:]] = False
    return torch.from_numpy(found[keep]), float(border)


def largest_per_group(score: Float[Tensor, "g s"], counts: Int64[Tensor, " g"]) -> Int64[Tensor, " k"]:
    """Places (in the flattened tensor, ascending) of each group's largest scores, as many as `counts` says."""
    most = int(counts.max())
    if not most:
        return counts.new_zeros(0)
    places = score.topk(most, dim=1).indices + score.shape[1] * torch.arange(len(score), device=score.device)[:, None]
    return places[torch.arange(most, device=score.device) < counts[:, None]].sort().values


def equal_shares(k: int, most: Int64[Tensor, " g"]) -> Int64[Tensor, " g"]:
    """k divided as evenly as the groups' capacities allow."""
    even = torch.full_like(most, k // len(most))
    even[: k % len(most)] += 1
    if bool((even <= most).all()):
        return even
    return torch.tensor(share_out([1.0] * len(most), most.tolist(), k), device=most.device)


class TopKBudget:
    """One k for several `TopKWiring`s: the largest |w| of all of them exist, wherever they are.

    Args:
        density: share of all admissible entries of all members together, a number or a schedule of the step.

    A wiring joins by `TopKWiring(…, budget=budget)`. The choice is made for all members at once, when one of them
    is asked that has been served already, or when a member's candidates, k or choice have changed since. Between
    the first and the last member of a forward pass it stands.

    Raises `UserError` for a density outside (0, 1].
    """

    def __init__(self, density: float | Schedule):
        self.density = density
        self.members: list[TopKWiring] = []
        self._waiting: dict[int, Tensor] = {}
        self._made_of: list[tuple[int, int]] = []
        self._bar: float | None = None
        self._share(0)

    def _share(self, step: int) -> float:
        density = at(self.density, step)
        require(0 < density <= 1, f"density={density} of a TopKBudget; expected a number above 0 and at most 1.")
        return density

    def join(self, wiring: TopKWiring) -> None:
        """From now on `wiring` shares the budget."""
        same = not self.members or self.members[0].candidate.dtype == wiring.candidate.dtype
        require(same, "candidates of different types in one TopKBudget; expected one type for all members.")
        self.members.append(wiring)
        self._waiting = {}

    @property
    def k(self) -> int:
        """Entries of all members together, at the step of the first one."""
        density = self._share(int(self.members[0].step) if self.members else 0)
        return max(1, round(density * sum(each.admissible.count() for each in self.members)))

    def chosen(self, wiring: TopKWiring) -> Int64[Tensor, " n"]:
        """The flattened positions of `wiring`'s entries, ascending."""
        made_of = [(id(each.candidate), version(each.candidate)) for each in self.members] + [(self.k, 0)]
        if id(wiring) not in self._waiting or made_of != self._made_of:
            self._choose()
            self._made_of = made_of
        return self._waiting.pop(id(wiring))

    def _choose(self) -> None:
        """The choice for every member, from the scores of all of them in a row."""
        parts = [each.scores() for each in self.members]
        whole = torch.cat(parts)
        places, border = largest(whole, self.k, self._bar)
        self._bar = NEAR * border
        ends = torch.tensor([0] + [len(part) for part in parts]).cumsum(0)
        cuts = torch.searchsorted(places, ends.to(places.device)).tolist()
        for i, each in enumerate(self.members):
            self._waiting[id(each)] = places[cuts[i] : cuts[i + 1]] - int(ends[i])

    def __repr__(self) -> str:
        return f"TopKBudget(density={self.density}, members={len(self.members)})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_waiting": {}, "_made_of": []}
