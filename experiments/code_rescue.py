"""`CodeRescue`: moves for tuples that choose among the scalars of a codebook, led by the errors of one batch.

The gradient of a choice is a straight line where the error is a parabola: it knows that a value should grow, not
that the next scalar would be too much. And a scalar that no tuple needs feels no force at all. So what a codebook
needs are the moves of k-means; with those of `Rescue` (merge, part, take elsewhere) they are made here together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from ash import Factors, GaussianWiring, Rescue, RewireReport, Score

SURE = 3.0
"""Logit of a scalar that was chosen by a move; the others start at 0."""


class Sight(NamedTuple):
    """What a batch says of the rounded tuples. Outputs o and inputs i are flattened.

    Attributes:
        row, col: the entry of every tuple. values: its scalar.
        missing: `(o, i)`, what the error of the batch asks for at every entry on top of what is there.
        power: `(i,)`, mean square of every input; 0 for one that never speaks.
        noise: `(o,)`, variance of `missing` at an input of power 1.
        wanted: what the error asks for at the tuple's entry altogether.
        spare: tuples whose entry another one holds better.
    """

    row: Int64[Tensor, " k"]
    col: Int64[Tensor, " k"]
    values: Float[Tensor, " k"]
    missing: Float[Tensor, "o i"]
    power: Float[Tensor, " i"]
    noise: Float[Tensor, " o"]
    wanted: Float[Tensor, " k"]
    spare: Bool[Tensor, " k"]


def look(wiring: GaussianWiring, score: Factors) -> Sight:
    """See `Sight`. `score` holds the inputs and the errors (output − target) / b of a batch."""
    weight, b = wiring.rounded(), len(score.x)
    row, col, values = weight.row_ids, weight.col_ids, weight.values.detach()
    power = score.x.square().mean(0)
    missing = -(score.g.t() @ score.x) / power.clamp(min=1e-6)
    places, place = torch.unique(row * len(power) + col, return_inverse=True)
    total = values.new_zeros(len(places)).index_add(0, place, values)
    wanted = missing[row, col] + total[place]
    best = values.new_full((len(places),), torch.inf).scatter_reduce(0, place, (values - wanted).abs(), "amin")
    first = torch.full((len(places),), len(row), device=row.device)
    best_fit = (values - wanted).abs() <= best[place]
    number = torch.arange(len(row), device=row.device)
    first.scatter_reduce_(0, place[best_fit], number[best_fit], "amin")
    spare = (first[place] != number) & (power[col] > 0)
    return Sight(row, col, values, missing, power, score.g.square().mean(0) * b, wanted, spare)


@dataclass(frozen=True)
class CodeRescue(Rescue):
    """Takes spare and harmful tuples to where the error of their output asks most, parts straddling ones, and makes
    the moves of k-means: tuples take the scalar nearest to what is wanted of them, and a scalar that is hardly
    needed is given to half of the tuples of the scalar that errs most.

    For a template with the same number of tuples for every output. Nothing is moved on what may be noise: every move
    must gain `sure`² variances of what the batch can tell.

    Attributes:
        sure: standard deviations. counts: sums over all calls of `merged`, `moved`, `parted`, `recoded`, `split`.
        recoded: the tuples that got another scalar in the last call.
    """

    sure: float = 4.5
    counts: dict[str, int] = field(default_factory=dict, compare=False)
    recoded: list[Tensor] = field(default_factory=list, compare=False)

    def __call__(self, wiring: GaussianWiring, score: Score) -> RewireReport:
        assert isinstance(score, Factors)
        sight = look(wiring, score)
        moved = self._take_elsewhere(wiring, sight)
        settled = torch.ones_like(sight.spare)
        settled[moved] = False
        parted = self._part(wiring, (wiring.scales() <= self.narrow).all(-1) & settled)
        known = settled & ~sight.spare & (sight.power[sight.col] > 0)
        known &= sight.wanted.square() > self.sure**2 * sight.noise[sight.row]
        recoded = self._recode(wiring, sight, known)
        split = self._split(wiring, sight, known) if len(moved) < wiring.k / 5 else moved[:0]
        self.recoded[:] = [recoded, split]
        new = {"merged": int(sight.spare.sum()), "moved": len(moved), "parted": len(parted)}
        for name, count in (new | {"recoded": len(recoded), "split": int(len(split) > 0)}).items():
            self.counts[name] = self.counts.get(name, 0) + count
        return RewireReport(moved=torch.cat([moved, parted]), merged=new["merged"])

    def _take_elsewhere(self, wiring: GaussianWiring, sight: Sight) -> Int64[Tensor, " moved"]:
        """Within each output, the tuples that are worth least go where the error asks most, if that pays.

        An entry counts for the square of what is wanted of it: what the right scalar would gain there.
        """
        outputs, inputs = sight.missing.shape
        each = wiring.k // outputs
        bar = self.sure**2 * sight.noise
        harm = sight.power[sight.col] * (2 * sight.values * (sight.values - sight.wanted) - sight.values.square())
        worth = sight.power[sight.col] * (sight.wanted.square() - bar[sight.row])
        worth = torch.where(sight.spare, -torch.inf, worth)
        gain = sight.power * (sight.missing.square() - bar[:, None])
        gain = gain.index_put((sight.row, sight.col), gain.new_full((), -torch.inf))
        least, tuples = worth.reshape(outputs, each).sort(1)
        most, entries = gain.topk(each, 1)
        pays = (most > least) & ((most > 0) | (harm.reshape(outputs, each).gather(1, tuples) > 1e-3))
        number = torch.arange(outputs, device=pays.device)[:, None]
        which, col = (tuples + each * number)[pays], entries[pays]
        row = number.expand_as(pays)[pays]
        width = wiring.in_shape[1]
        wiring.means.place(which, torch.stack([col // width, col % width], -1).double())
        wiring.log_scale[which] = math.log(self.scale)
        self._choose(wiring, which, sight.missing[row, col])
        return which

    def _choose(self, wiring: GaussianWiring, which: Tensor, wanted: Tensor) -> None:
        """Set the logits of some tuples on the scalars nearest to what is wanted."""
        scalars = wiring.codebook.scalars  # type: ignore[union-attr]
        nearest = (scalars - wanted[:, None]).abs().argmin(1)
        wiring.codes[which] = SURE * one_hot(nearest, len(scalars)).to(scalars)  # type: ignore[index]

    def _recode(self, wiring: GaussianWiring, sight: Sight, known: Tensor) -> Int64[Tensor, " recoded"]:
        """Tuples whose scalar is surely not the nearest to what is wanted take that one."""
        scalars = wiring.codebook.scalars  # type: ignore[union-attr]
        distance = (scalars - sight.wanted[:, None]).square()
        loss = (sight.values - sight.wanted).square() - distance.amin(1)
        which = (known & (loss > 5 * sight.noise[sight.row])).nonzero().squeeze(-1)
        self._choose(wiring, which, sight.wanted[which])
        return which

    def _split(self, wiring: GaussianWiring, sight: Sight, known: Tensor) -> Int64[Tensor, " changed"]:
        """Give the scalar that is needed least to the upper half of those whose scalar errs most, if that pays."""
        scalars, which = wiring.codebook.scalars, known.nonzero().squeeze(-1)  # type: ignore[union-attr]
        if not len(which) or len(scalars) < 2:
            return which[:0]
        wanted, s = sight.wanted[which], len(scalars)
        error, order = (scalars - wanted[:, None]).square().topk(2, 1, largest=False)
        own = order[:, 0]
        loss, noise = _sums(own, error[:, 1] - error[:, 0], s), _sums(own, sight.noise[sight.row[which]], s)
        upper = 2 * own + (wanted > _means(own, wanted, s)[own])
        middles = _means(upper, wanted, 2 * s)
        gain = _sums(own, error[:, 0] - (wanted - middles[upper]).square(), s) - 1.5 * noise
        least = int(loss.argmin())
        gain[least] = -torch.inf
        most = int(gain.argmax())
        if float(gain[most]) <= 1.5 * float(loss[least]) + 1e-6:
            return which[:0]
        scalars[most], scalars[least] = middles[2 * most], middles[2 * most + 1]
        changed = which[(own == least) | (own == most)]
        self._choose(wiring, changed, sight.wanted[changed])
        return changed


def _sums(group: Tensor, values: Tensor, n: int) -> Float[Tensor, " n"]:
    return values.new_zeros(n).index_add(0, group, values)


def _means(group: Tensor, values: Tensor, n: int) -> Float[Tensor, " n"]:
    return _sums(group, values, n) / _sums(group, torch.ones_like(values), n).clamp(min=1)
