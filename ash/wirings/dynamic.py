"""`DynamicWiring`: stored entries that are dropped and grown between batches. SET and RigL are its variants.

A rewiring drops a fraction of a layer's entries and grows as many where there are none: which ones, the variants
say. `ash.Rewirer` calls it at the right steps, and moves the optimizer's state along.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash.checks import choose, require
from ash.growth import Score, lean_sum
from ash.pattern import ravel, unravel
from ash.sampling import generator_from, new_seed
from ash.template import Admissible
from ash.wirings.base import RewireReport, fan_in_uniform, version
from ash.wirings.drop_grow import DROP_RULES, DROPS_BY_GRADIENT, grow_largest, grow_random, merged_order
from ash.wirings.static import StaticWiring

_STARTS = {"zero": False, "fan_in": True}


class DynamicWiring(StaticWiring):
    """k different entries with learned values, some of which a rewiring drops and grows elsewhere.

    Args:
        out_shape, in_shape, k, density, indices, admissible, generator: as in `StaticWiring`; given `indices` must
            differ.
        drop: which entries are dropped: smallest in `"magnitude"` |w|, `"dead_first"`: those with no gradient at all,
            then the smallest, smallest in `"saliency"` |w · gradient|, or `"random"` ones.
        start: value of grown entries: `"zero"`, or `"fan_in"`, as when the wiring was made.
        capacity: entries that there is room for; by default k, or up to 4k where layers exchange entries.

    Attributes:
        indices: `(capacity, r)` int64 buffer; values: `(capacity,)` parameter; count: int64 buffer, how many of them
            are in use, the first ones. The rest have the value 0.

    Raises `UserError` for a capacity below k, entries that occur twice, and unknown rules.
    """

    count: Tensor
    window: int | None = 1
    """Over how many steps before a rewiring gradients are added up; None: over all steps."""
    decay: float = 1.0
    """Factor to the gradients added up so far when a new one comes."""
    exchanges: bool = False
    """Whether what the layers of a net drop is pooled, and divided among them by `claim`."""
    grows_by_gradient: bool = False
    """Whether `grow` needs a score."""
    _counted = False
    _known_count: tuple[Tensor, int, int] | None = None

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        density: float | None = None,
        indices: Int64[Tensor, "k r"] | None = None,
        admissible: Admissible | None = None,
        drop: str = "magnitude",
        start: str = "zero",
        capacity: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            out_shape,
            in_shape,
            k,
            density=density,
            indices=indices,
            admissible=admissible,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        self.drop_rule, self.starts_filled = choose("drop rule", drop, DROP_RULES), choose("start", start, _STARTS)
        self.drop = drop
        self._make_room(capacity)

    def _make_room(self, capacity: int | None) -> None:
        k, most = len(self.indices), self.admissible.count()
        ids = ravel(self.indices, self.shape)
        twice = 0 if bool((ids[1:] > ids[:-1]).all()) else k - len(ids.unique())
        require(not twice, f"{twice} entries that occur twice among {k} indices; expected different ones.")
        if capacity is None:
            capacity = min(4 * k, most) if self.exchanges else k
        require(k <= capacity <= most, f"capacity={capacity} for k={k} entries; expected {k} to {most}, those that "
                                       "are admissible.")  # fmt: skip
        if capacity > k:
            self._check_memory(capacity, self.indices.device, self.values.dtype)
            self.indices = torch.cat([self.indices, self.indices.new_zeros(capacity - k, self.rank)])
            self.values = nn.Parameter(torch.cat([self.values.detach(), self.values.new_zeros(capacity - k)]))
        self.register_buffer("count", torch.tensor(k, device=self.indices.device))
        self._counted = True

    @property
    def capacity(self) -> int:
        """Entries that there is room for."""
        return len(self.indices)

    @property
    def free(self) -> int:
        """Admissible entries that are not in use."""
        return self.admissible.count() - self.stored_entries()

    def room(self, dropped: Int64[Tensor, " j"]) -> int:
        """How many entries may grow after those were dropped."""
        return min(self.capacity - self.stored_entries() + len(dropped), self.free)

    @property
    def needs_score(self) -> bool:
        """Whether a rewiring needs the gradient of the loss by the weight tensor."""
        return self.grows_by_gradient or self.drop in DROPS_BY_GRADIENT

    def stored_entries(self) -> int:
        if not self._counted:  # not yet, while it is being made
            return len(self.indices)
        known, now = self._known_count, version(self.count)
        if known is None or known[0] is not self.count or known[1] != now:
            self._known_count = known = (self.count, now, int(self.count))  # on a GPU this waits
        return known[2]

    def entries(self) -> Int64[Tensor, "n r"]:
        """The entries in use."""
        return self._in_use(self.indices)

    def entry_values(self) -> Float[Tensor, " n"]:
        """Their values."""
        return self._in_use(self.values)

    def _in_use(self, tensor: Tensor) -> Tensor:
        n = self.stored_entries()
        return tensor if n == len(tensor) else tensor[:n]

    def ids(self) -> Int64[Tensor, " n"]:
        """Flattened positions of the entries in use."""
        return ravel(self.entries(), self.shape)

    # --- one rewiring --------------------------------------------------------------------------------

    @torch.no_grad()
    def rewire(
        self, score: Score | None = None, fraction: float = 0.3, generator: torch.Generator | None = None
    ) -> RewireReport:
        """Drop a fraction of the entries and grow as many elsewhere, never one that was just dropped.

        Args:
            score: the gradient of the loss by the weight tensor; only where `needs_score`.
            fraction: share of the entries to drop; rounded to whole ones, and at most as many as are free.
            generator: of random choices, on the CPU; torch's default one otherwise.

        Returns:
            The numbers of the entries that moved; the others stay where they are.
        """
        cpu = torch.device("cpu")
        source = generator_from(new_seed(cpu), cpu) if generator is None else generator
        dropped = self.to_drop(fraction, score, source)[: self.free]
        return self.exchange(dropped, len(dropped), score, source)

    def to_drop(self, fraction: float, score: Score | None, generator: torch.Generator) -> Int64[Tensor, " j"]:
        """Numbers of the entries to drop, those that go first at the front."""
        require(0 <= fraction <= 1, f"fraction={fraction}; expected a share of the entries, from 0 to 1.")
        require(
            score is not None or not self.needs_score,
            f"{type(self).__name__} without a gradient; pass a score, or let ash.Rewirer collect it in training.",
        )
        j = min(round(fraction * self.stored_entries()), self.stored_entries())
        gradients = score.at(self.entries()) if score is not None and self.drop in DROPS_BY_GRADIENT else None
        return self.drop_rule(self.entry_values(), gradients, j, generator)

    @abstractmethod
    def grow(self, n: int, score: Score | None, generator: torch.Generator) -> Int64[Tensor, " n"]:
        """Required. Flattened positions of n admissible entries that are not in use, all different."""

    @torch.no_grad()
    def exchange(
        self, dropped: Int64[Tensor, " j"], n: int, score: Score | None, generator: torch.Generator
    ) -> RewireReport:
        """Drop the entries with these numbers and grow n; where n is not j, `count` changes.

        Where n is below j, all entries are arranged, and the report's `order` says where they come from.
        """
        self._pattern = None  # of no use any more, and as large as the entries
        before, dropped = self.stored_entries(), dropped.sort().values
        grown = self.grow(n, score, generator) if n else dropped[:0]
        more = torch.arange(before, before + max(0, n - len(dropped)), device=dropped.device)
        moved = torch.cat([dropped, more])[:n]
        self.indices[moved] = unravel(grown, self.shape)
        self.values[moved] = 0.0
        self.count.add_(len(more))
        order = self.arrange(left_out=dropped[n:]) if n < len(dropped) else None
        if order is not None:
            moved = torch.isin(order, moved).nonzero().squeeze(-1)
        if self.starts_filled:
            self._fill(moved, generator)
        return RewireReport(moved=moved, order=order)

    def _fill(self, moved: Tensor, generator: torch.Generator) -> None:
        rows = ravel(self.entries()[:, : len(self.out_shape)], self.out_shape)
        values = fan_in_uniform(rows.cpu(), generator)
        self.values[moved] = values.to(self.values)[moved]

    @torch.no_grad()
    def arrange(
        self, moved: Int64[Tensor, " m"] | None = None, left_out: Int64[Tensor, " l"] | None = None
    ) -> Int64[Tensor, " capacity"] | None:
        """Bring the entries into the order of their positions, which saves a permutation in every step.

        Args:
            moved: numbers of the entries that may be out of order, where the others are in order; else any may.
            left_out: numbers of entries that are not in use any more.

        Returns:
            The number that every entry had before, `(capacity,)`; None where they were in order already.
        """
        keys = self.ids()
        if left_out is None and bool((keys[1:] > keys[:-1]).all()):
            return None
        if left_out is not None:
            keys[left_out] = torch.iinfo(torch.int64).max
            self.values[left_out] = 0.0
            self.count.sub_(len(left_out))
        order = keys.argsort() if moved is None else merged_order(keys, moved)
        if len(order) < self.capacity:
            order = torch.cat([order, torch.arange(len(order), self.capacity, device=order.device)])
        del keys
        for column in (*self.indices.unbind(-1), self.values):  # one by one, to save memory
            column.copy_(column[order])
        return order

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_known_count": None}

    # --- what a net's layers have in common -----------------------------------------------------------

    def remember(self, before: Score | None, fresh: Score) -> Score:
        """The gradients added up so far and a new one."""
        return fresh if before is None else lean_sum(before, fresh, self.decay)

    def claim(self, dropped: Int64[Tensor, " j"], score: Score | None) -> float:
        """How strongly this layer asks for the entries that all layers together have dropped (`exchanges`)."""
        return 0.0

    def after_event(self, dropped: int, wanted: int) -> None:
        """Told how many entries all layers together have dropped, and how many they should have."""
        return


class SETWiring(DynamicWiring):
    """Sparse evolutionary training: the smallest weights are dropped, as many random ones grow.

    Source: Mocanu et al., arXiv 1707.04780. Departure: the smallest |w| go, not the smallest of either sign.
    """

    def grow(self, n: int, score: Score | None, generator: torch.Generator) -> Int64[Tensor, " n"]:
        """Random admissible entries."""
        return grow_random(n, self.ids(), self.admissible, generator)


class RigLWiring(SETWiring):
    """RigL: as SET, but entries grow where the gradient of the loss by the whole weight tensor is largest.

    The largest entries are found exactly, block by block, in memory proportional to their number. Entry (i, j) of the
    gradient is at most |g_i| · |x_j|, so that rows and columns of small norms need no look: of 10^12 entries, 3
    million are found in 12 s on one core where b = 8 (`python -m experiments benchmark --suite scale`). For larger
    batches of dense inputs norms differ less and more entries have to be looked at, up to all;
    then `growth_share` helps.

    Args:
        growth_share: share of the output positions, drawn anew at every rewiring, among whose entries those largest in
            |gradient| are found, exactly; a rewiring takes as much less time. By default all.
        others: as in `DynamicWiring`.

    Source: Evci et al., arXiv 1911.11134. `growth_share` is ours.
    """

    grows_by_gradient = True

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        growth_share: float = 1.0,
        **others: Any,
    ):
        super().__init__(out_shape, in_shape, k, **others)
        require(0 < growth_share <= 1, f"growth_share={growth_share}; expected a share above 0, at most 1.")
        self.growth_share = growth_share

    def grow(self, n: int, score: Score | None, generator: torch.Generator) -> Int64[Tensor, " n"]:
        """The admissible entries largest in |gradient|."""
        assert score is not None  # `to_drop` has made sure
        return grow_largest(n, self.ids(), self.admissible, score, self._rows(generator))

    def _rows(self, generator: torch.Generator) -> Int64[Tensor, " o"] | None:
        """Flattened output positions among whose entries some grow; None: all."""
        height = math.prod(self.out_shape)
        count = math.ceil(self.growth_share * height)
        if count == height:
            return None
        return torch.randperm(height, generator=generator)[:count].to(self.indices.device)
