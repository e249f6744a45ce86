"""Which stored entries are dropped, where new ones grow, and how the layers of a net share them: pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.growth import Score
from ash.ids import among, ascending
from ash.pattern import ravel, unravel
from ash.template import Admissible

DropRule = Callable[[Tensor, Tensor | None, int, torch.Generator], Tensor]
"""(values (n,), gradients at the entries (n,) or None, j, generator) -> numbers (j,) of the entries to drop."""

ENUMERABLE = 1 << 26
"""Weight tensors up to this size may be enumerated to find the few entries that are free."""


def drop_smallest(
    values: Float[Tensor, " n"], gradients: Tensor | None, j: int, generator: torch.Generator
) -> Int64[Tensor, " j"]:
    """The j entries smallest in |w|."""
    return values.detach().abs().topk(j, largest=False).indices


def drop_least_salient(
    values: Float[Tensor, " n"], gradients: Float[Tensor, " n"] | None, j: int, generator: torch.Generator
) -> Int64[Tensor, " j"]:
    """The j entries smallest in |w · gradient|, which the loss would miss least to first order."""
    assert gradients is not None  # the wiring has made sure
    return (values.detach() * gradients).abs().topk(j, largest=False).indices


def drop_dead_first(
    values: Float[Tensor, " n"], gradients: Float[Tensor, " n"] | None, j: int, generator: torch.Generator
) -> Int64[Tensor, " j"]:
    """Entries whose gradient is exactly 0, then those smallest in |w|.

    Such an entry leads from an input that is always 0, or to a unit that leads nowhere or is never active: it does
    nothing, and no gradient will change it.
    """
    assert gradients is not None  # the wiring has made sure
    return torch.where(gradients != 0, values.detach().abs(), -1.0).topk(j, largest=False).indices


def drop_random(
    values: Float[Tensor, " n"], gradients: Tensor | None, j: int, generator: torch.Generator
) -> Int64[Tensor, " j"]:
    """Any j entries."""
    return torch.randperm(len(values), generator=generator)[:j].to(values.device)


DROPS_BY_GRADIENT = ("dead_first", "saliency")
DROP_RULES: dict[str, DropRule] = {
    "magnitude": drop_smallest,
    "dead_first": drop_dead_first,
    "saliency": drop_least_salient,
    "random": drop_random,
}


def grow_largest(
    n: int, exclude: Int64[Tensor, " e"], admissible: Admissible, score: Score, rows: Int64[Tensor, " o"] | None = None
) -> Int64[Tensor, " n"]:
    """Flattened positions of the n entries largest in |gradient|, exact, in memory proportional to n.

    With `rows`, flattened output positions, those among them; what they have too few of comes from everywhere.
    """
    found = score.places(n, exclude, admissible, rows=rows)
    if rows is None or len(found) == n:
        return found
    rest = score.places(n - len(found), torch.cat([exclude, found]), admissible)
    return torch.cat([found, rest])


def grow_random(
    n: int, exclude: Int64[Tensor, " e"], admissible: Admissible, generator: torch.Generator
) -> Int64[Tensor, " n"]:
    """Flattened positions of n admissible entries, uniform over those not excluded, in memory proportional to n.

    `exclude` holds different admissible positions, of which enough others must be left.
    """
    total, gone = admissible.count(), ascending(exclude.cpu())
    free = total - len(gone)
    if 4 * (n + len(gone)) > 3 * total and math.prod(admissible.shape) <= ENUMERABLE:
        found = _everywhere(admissible)
        found = found[~among(found, gone)]
    else:
        found = gone.new_zeros(0)
        while len(found) < n:
            missing = n - len(found)
            more = admissible.draw(missing * total // free + 16, generator)
            more = ravel(more, admissible.shape)
            found = torch.cat([found, more[~among(more, gone)]]).unique()
    keep = torch.randperm(len(found), generator=generator)[:n]
    return found[keep].to(exclude.device)


def _everywhere(admissible: Admissible) -> Tensor:
    ids = torch.arange(math.prod(admissible.shape))
    return ids if admissible.everything else ids[admissible.contains(unravel(ids, admissible.shape))]


def merged_order(keys: Int64[Tensor, " n"], moved: Int64[Tensor, " m"]) -> Int64[Tensor, " n"]:
    """The numbers of different keys in rising order, where all keys but those `moved` rise already."""
    stays = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    stays[moved] = False
    rising, by_key = keys[moved].sort()
    places = torch.searchsorted(keys[stays], rising).add_(torch.arange(len(moved), device=keys.device))
    order = torch.empty_like(keys)
    order[places] = moved[by_key]
    free = torch.ones_like(stays)
    free[places] = False
    order[free] = stays.nonzero().squeeze(-1)
    return order


def distribute(total: int, claims: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to the claims, none above its limit, that add up to `total` where limits allow.

    What a limit keeps from one is divided among the others by their claims; fractions go to the largest remainders.
    """
    given = [0] * len(claims)
    weights = [max(0.0, float(c)) for c in claims]
    while (rest := min(total, sum(limits)) - sum(given)) > 0:
        some = [i for i, limit in enumerate(limits) if given[i] < limit]
        pot = sum(weights[i] for i in some)
        parts = {i: rest * (weights[i] / pot if pot > 0 else 1 / len(some)) for i in some}
        whole = {i: math.floor(part) for i, part in parts.items()}
        by_remainder = sorted(some, key=lambda i: (whole[i] - parts[i], i))
        for i in by_remainder[: rest - sum(whole.values())]:
            whole[i] += 1
        for i in some:
            given[i] += min(whole[i], limits[i] - given[i])
    return given
