"""Sorting: an adaptive wiring that is a permutation, and differentiable quicksort from half-permutations.

Both put keys in ascending order. A place is an integer from 0 to n - 1; ties keep the order in which they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash.checks import check_finite, choose, positive, require
from ash.contract import contract
from ash.sampling import generator_from, new_seed
from ash.schedules import Schedule, at
from ash.template import Template
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.hyper import HypernetworkFactory, HyperWiring

TEMPLATES = {"inputs": 1, "outputs": 0, "none": None}  # the column that each fixes


def places(keys: Float[Tensor, "*b n"]) -> Int64[Tensor, "*b n"]:
    """The place of every element in ascending order; ties keep their order. The inverse of a stable `argsort`."""
    return keys.argsort(dim=-1, stable=True).argsort(-1)


def standardised(keys: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """The keys of a batch less their mean, over their deviation, so that a scale means the same all through training.

    Without it a network makes keys as large as suits the scale. The order stays.
    """
    centred = keys - keys.mean()
    return centred / centred.square().mean().sqrt().clamp(min=1e-4)


def _log_cauchy(x: Tensor) -> Tensor:
    return torch.atan2(torch.ones_like(x), -x).div(math.pi).log()


_LOG_MASS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": torch.special.log_ndtr,
    "student_t": _log_cauchy,
    "logistic": nn.functional.logsigmoid,
}


def log_mass(kernel: str, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Logarithm of the mass that a kernel with mean 0 and scale 1 has below x; exact far out on both sides.

    `"student_t"` is the one of ν = 1, whose tail keeps a gradient however wrong a key is. Raises `UserError` for a
    name other than gaussian, logistic and student_t.
    """
    return choose("kernel of keys", kernel, _LOG_MASS)(x)


# --- a permutation in one layer ----------------------------------------------------------------------------------


class RankHypernetwork(nn.Module):
    """Emits where each element goes: how many lie below it, every comparison soft.

    Two keys are compared by their difference, two elements of f features by what a small network makes of them:
    g(first, second) - g(second, first), which changes its sign when they change places.

    Args:
        in_shape: `(n,)`, a key for each element, or `(n, f)`, features. k, width: n tuples of one number each.
        kernel: whose mass below a comparison is the share of 'above'; see `log_mass`.
        scale: of the comparisons, in units of a key; a number or a schedule of `step`.
        hidden: size of the hidden layer of g.

    Attributes:
        groups: n; exchanging two elements exchanges their tuples.
        step: the number of optimizer steps, which the training loop sets for a schedule.

    Shapes: `(b, *in_shape)` -> `(b, n, 1)`, from -(n - 1)/2 to (n - 1)/2: 0 where nothing is known.

    Raises `UserError` for other shapes, an unknown kernel, and a scale that is not above 0.
    """

    step: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        k: int,
        width: int,
        *,
        kernel: str = "student_t",
        scale: float | Schedule = 1.0,
        hidden: int = 32,
    ):
        super().__init__()
        self.in_shape = tuple(in_shape)
        require(
            len(self.in_shape) in (1, 2) and self.in_shape[0] == k and width == 1,
            f"elements of shape {self.in_shape} for k={k} tuples of {width} numbers; expected (k,) or (k, f), and one "
            "number each (a template that fixes one column, scales and values that are not emitted).",
        )
        positive("scale", at(scale, 0))
        choose("kernel of keys", kernel, _LOG_MASS)
        self.groups, self.kernel, self.scale = k, kernel, scale
        self.look: nn.Module | None = None
        if len(self.in_shape) == 2:
            self.look = nn.Sequential(nn.Linear(2 * self.in_shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b n 1"]:
        shape = (x.shape[0], self.groups, self.groups, *x.shape[2:])
        first, second = x.unsqueeze(2).expand(shape), x.unsqueeze(1).expand(shape)
        above = self._log_above(first, second).exp() - 0.5
        return above.sum(2).unsqueeze(-1)

    def _log_above(self, first: Tensor, second: Tensor) -> Tensor:
        """Logarithm of the share of 'the first one is above the second one', `(b, *)` of `(b, *)` or `(b, *, f)`."""
        if self.look is None:
            difference = first - second
        else:
            both = self.look(torch.cat([first, second], -1)) - self.look(torch.cat([second, first], -1))
            difference = both.squeeze(-1)
        return log_mass(self.kernel, difference / at(self.scale, int(self.step)))

    def log_shares(
        self,
        x: Float[Tensor, "b ..."],
        target: Int64[Tensor, "*t"],
        samples: int = 0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n"]:
        """Logarithm of the share that each element of x has of its `target` place, 0 … n - 1, against other places.

        The other places are the corners, one below and one above the target, and `samples` uniform ones. Against
        each the share is what the comparison with the element that belongs there gives; the result is the mean over
        the places inside the list. `-log_shares(…).mean()` is the loss by which a network learns to sort from an
        order alone.

        The share that a tuple around the emitted mean has of the target teaches more slowly: that mean adds up n - 1
        soft comparisons, of which two decide.
        """
        n = self.groups
        good = tuple(x.shape[1:]) == self.in_shape and tuple(target.shape) == (x.shape[0], n)
        require(good, f"elements {tuple(x.shape)} and targets {tuple(target.shape)}; expected (b, "
                      f"{', '.join(map(str, self.in_shape))}) and (b, {n}).")  # fmt: skip
        check_finite(x, self)
        by_place = target.argsort(-1)
        near = torch.stack([target - 1, target + 1], -1)
        if samples:
            source = generator_from(new_seed(x.device, generator), x.device)
            drawn = torch.randint(0, n, (*target.shape, samples), device=x.device, generator=source)
            near = torch.cat([near, drawn], -1)
        above = target.unsqueeze(-1) > near
        inside = (near >= 0) & (near < n) & (near != target.unsqueeze(-1))
        holders = by_place.gather(1, near.clamp(0, n - 1).flatten(1))
        instance = torch.arange(len(x), device=x.device).unsqueeze(-1)
        others = x[instance, holders].unflatten(1, near.shape[1:])
        own = x.unsqueeze(2).expand_as(others)
        which = above if x.dim() == 2 else above.unsqueeze(-1)
        logs = self._log_above(torch.where(which, own, others), torch.where(which, others, own))
        return (logs * inside).sum(-1) / inside.sum(-1).clamp(min=1)


class PermutationWiring(HyperWiring):
    """An adaptive wiring of n tuples that is a permutation matrix: exactly in evaluation, on average in training.

    Each learned column holds, in evaluation, the places of the tuples' means, so that two of them never coincide. In
    training every tuple, of value 1, spreads over the places that are drawn around its mean.

    Args:
        n: elements. template: the column that is fixed. `"inputs"`: each input learns its output, the place it goes
            to; `"outputs"`: each output learns which input it takes; `"none"`: both are learned.
        hypernetwork: a module x `(b, *condition_shape)` → `(b, n, q)`, or what makes one: `f(condition_shape, n, q)`
            with q = 1, or 2 for `"none"`; by default a `RankHypernetwork`, which needs `"inputs"`.
        condition_shape: shape of what the hypernetwork sees, where that is not n keys.
        means, scale, others: as in `HyperWiring`; scales are not emitted. Means are `"direct"` and start in the
            middle (for `"none"` spread along the diagonal).

    Raises `UserError` for an unknown template and options that do not fit.

    Source: arXiv 1810.09184, sorting; the exact permutation in evaluation is ours.
    """

    def __init__(
        self,
        n: int,
        *,
        hypernetwork: nn.Module | HypernetworkFactory | None = None,
        template: str = "inputs",
        means: str = "direct",
        scale: float | Schedule = 1.0,
        positions: Tensor | None = None,
        free: bool = False,
        **others: Any,
    ):
        column = choose("template of a permutation", template, TEMPLATES)
        require(n >= 1, f"n={n}; expected at least 1 element.")
        require(
            hypernetwork is not None or template == "inputs",
            f"template={template!r} without a hypernetwork; the default one says where inputs go: give another.",
        )
        fixed = None if column is None else Template(2, (column,), torch.arange(n).unsqueeze(-1))
        if positions is None:
            middle = torch.full((n, 1), (n - 1) / 2, dtype=torch.float64)
            positions = middle if fixed is not None else torch.arange(n).double().unsqueeze(-1).expand(n, 2)
        super().__init__(
            n,
            n,
            n,
            hypernetwork=RankHypernetwork if hypernetwork is None else hypernetwork,
            template=fixed,
            values="ones",
            scales="scheduled",
            means=means,
            scale=scale,
            positions=positions,
            free=free,
            **others,
        )

    def _round(self, tuples: IndexTuples) -> SparseWeight:
        return SparseWeight(self.exact(tuples), tuples.values, self.out_shape, self.in_shape)

    @torch.no_grad()
    def exact(self, tuples: IndexTuples) -> Int64[Tensor, "b n 2"]:
        """The permutation (output, input) of each instance: the means of every learned column by their order."""
        order = places(tuples.means.transpose(-1, -2)).transpose(-1, -2)
        return self.template.fill(order.unsqueeze(-2), self.fixed).squeeze(-2)

    @torch.no_grad()
    def rounded_indices(self, x: Float[Tensor, "b ..."]) -> Int64[Tensor, "b n 2"]:
        """The entry that each tuple of each instance becomes in evaluation."""
        return self.exact(self.tuples(x))


# --- quicksort -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HalfPermutations:
    """A permutation as a product of splits, the first one first; each n × n and one for every instance.

    Every input of a split has as many entries as the others, next to each other: one (hard) or two (soft).
    """

    splits: tuple[SparseWeight, ...]

    def __call__(self, x: Float[Tensor, "b n ..."]) -> Float[Tensor, "b n ..."]:
        """x `(b, n, *f)` after all splits; gradients reach x and the shares."""
        for split in self.splits:
            x = contract(split, x)
        return x

    def product(self) -> SparseWeight:
        """One sparse weight that does the same; n entries per instance, or n² where the splits are soft."""
        first = self.splits[0]
        b, n = first.values.shape[0], first.in_shape[0]
        source = torch.arange(n, device=first.values.device).expand(b, n).unsqueeze(-1)
        where, values = source, torch.ones_like(source, dtype=first.values.dtype)
        for split in self.splits:
            outputs, shares = (each.unflatten(1, (n, -1)) for each in (split.indices[..., 0], split.values))
            flat = where.flatten(1).unsqueeze(-1).expand(-1, -1, outputs.shape[-1])
            values = (values.flatten(1).unsqueeze(-1) * shares.gather(1, flat)).flatten(1).unflatten(1, (n, -1))
            where = outputs.gather(1, flat).flatten(1).unflatten(1, (n, -1))
        indices = torch.stack([where, source.expand_as(where)], -1)
        return SparseWeight(indices.flatten(1, 2), values.flatten(1), first.out_shape, first.in_shape)


class Quicksort(nn.Module):
    """Differentiable quicksort: log2 n splits around the medians of ever smaller buckets.

    In each split every element of a bucket goes to the bucket's lower or upper half. In training it is spread over
    two places, one sampled from each half: its share of the upper half is the mass of a kernel around its key that
    lies above the pivot, half way between the two keys in the middle. Both places are drawn so that every place of
    the next bucket gets one element of either half. In evaluation an element goes to its half alone, and the
    product of the splits is the stable sort, exactly.

    Args:
        n: elements, a power of two, at least 2.
        kernel: `"student_t"`, `"gaussian"` or `"logistic"`; see `log_mass`.
        scale: of the kernel, in units of a key; a number or a schedule of `step`.

    Attributes: step: the number of optimizer steps, which the training loop sets for a schedule.

    Raises `UserError` for a size that is no power of two, keys of another shape, and keys that are NaN or infinite.

    Source: arXiv 1810.09184 (sorting by half-permutations); the shares and the sampled pairs are ours.
    """

    step: Tensor

    def __init__(self, n: int, *, kernel: str = "student_t", scale: float | Schedule = 1.0):
        super().__init__()
        good = n >= 2 and n & (n - 1) == 0
        require(good, f"quicksort of {n} elements; expected a power of two (2, 4, 8, 16, …): every split halves.")
        positive("scale", at(scale, 0))
        choose("kernel of keys", kernel, _LOG_MASS)
        self.n, self.kernel, self.scale = n, kernel, scale
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def depth(self) -> int:
        """log2 n, the number of splits."""
        return self.n.bit_length() - 1

    def forward(self, keys: Float[Tensor, "b n"], generator: torch.Generator | None = None) -> HalfPermutations:
        """The splits that sort each instance's keys; the generator draws the places in training."""
        self._check(keys)
        source = generator_from(new_seed(keys.device, generator), keys.device) if self.training else None
        splits = []
        for level in range(self.depth):
            buckets = keys.unflatten(1, (2**level, -1))
            lower = self._lower(buckets)
            hard = _partition(lower)
            splits.append(self._split(buckets, lower, hard, source))
            keys = torch.empty_like(keys).scatter(1, hard, keys)
        return HalfPermutations(tuple(splits))

    def sort(
        self, keys: Float[Tensor, "b n"], payload: Float[Tensor, "b n ..."] | None = None
    ) -> Float[Tensor, "b n ..."]:
        """The payload `(b, n, *f)` (the keys themselves by default) in the order of the keys."""
        return self(keys)(keys if payload is None else payload)

    def log_shares(self, keys: Float[Tensor, "b n"], target: Int64[Tensor, "*t"]) -> Float[Tensor, "b n"]:
        """Logarithm of the share that each element has of its `target` place, 0 … n - 1.

        The sampled places are here those on the way to the target: its bits say which half it is in at every split,
        and the share is the product over the splits of the share of that half. Their sum is a likelihood of the
        target, and `-log_shares(…).mean()` the loss by which a network learns keys from an order alone.
        """
        self._check(keys)
        require(target.shape == keys.shape, f"targets {tuple(target.shape)} for keys {tuple(keys.shape)}; expected one "
                                            "place for each key.")  # fmt: skip
        ordered = torch.zeros_like(keys).scatter(1, target, keys)
        total = torch.zeros_like(keys)
        for level in range(self.depth):
            buckets = ordered.unflatten(1, (2**level, -1))
            total = total + self._log_upper(buckets, _sides(buckets)).reshape(keys.shape)
        return total.gather(1, target)

    def _check(self, keys: Tensor) -> None:
        require(keys.dim() == 2 and keys.shape[1] == self.n, f"keys of shape {tuple(keys.shape)}; expected (b, "
                                                            f"{self.n}).")  # fmt: skip
        check_finite(keys, self)

    def _log_upper(self, buckets: Tensor, sign: Tensor) -> Tensor:
        """Log share of the upper half (sign 1) or the lower one (−1) of each element `(b, buckets, size)`."""
        half = buckets.shape[-1] // 2
        pivot = buckets.sort(-1).values[..., half - 1 : half + 1].mean(-1, keepdim=True)
        return log_mass(self.kernel, sign * (buckets - pivot) / at(self.scale, int(self.step)))

    def _lower(self, buckets: Tensor) -> Tensor:
        """Which elements belong to the lower half of their bucket; of equal ones the first."""
        return places(buckets.detach()) < buckets.shape[-1] // 2

    def _split(self, buckets: Tensor, lower: Tensor, hard: Tensor, source: torch.Generator | None) -> SparseWeight:
        b, n = len(buckets), self.n
        own = torch.arange(n, device=buckets.device).expand(b, n)
        if source is None:
            return SparseWeight(torch.stack([hard, own], -1), torch.ones_like(buckets).reshape(b, n), (n,), (n,))
        other = _partners(lower, hard, source)
        sign = torch.where(lower, -1.0, 1.0).to(buckets.dtype)
        shares = [self._log_upper(buckets, s).exp().reshape(b, n) for s in (sign, -sign)]
        outputs = torch.stack([hard, other], -1)
        indices = torch.stack([outputs, own.unsqueeze(-1).expand_as(outputs)], -1)
        return SparseWeight(indices.reshape(b, 2 * n, 2), torch.stack(shares, -1).reshape(b, 2 * n), (n,), (n,))

    def extra_repr(self) -> str:
        return f"{self.n}, kernel={self.kernel!r}, scale={self.scale!r}"


def _sides(buckets: Tensor) -> Tensor:
    """−1 for the first half of the places of a bucket, 1 for the second."""
    half = buckets.shape[-1] // 2
    place = torch.arange(2 * half, device=buckets.device)
    return torch.where(place < half, -1.0, 1.0).to(buckets.dtype).expand_as(buckets)


def _partition(lower: Tensor) -> Int64[Tensor, "b n"]:
    """Places `(b, n)` that put the lower elements of each bucket `(b, buckets, size)` first; otherwise in order."""
    size = lower.shape[-1]
    within = torch.where(lower, lower.cumsum(-1) - 1, size // 2 + (~lower).cumsum(-1) - 1)
    start = torch.arange(lower.shape[1], device=lower.device).unsqueeze(-1) * size
    return (within + start).flatten(1)


def _partners(lower: Tensor, hard: Tensor, source: torch.Generator) -> Int64[Tensor, "b n"]:
    """For every element a place in the half that it is not in, drawn so that each place is drawn once."""
    b, count, size = lower.shape
    half = size // 2
    drawn = torch.rand(b, count, half, device=lower.device, generator=source).argsort(-1)
    start = torch.arange(count, device=lower.device).unsqueeze(-1) * size
    # What is at place i of the lower half may go to place drawn[i] of the upper one, and the other way round.
    swap = torch.cat([drawn + half, drawn.argsort(-1)], -1) + start
    return swap.flatten(1).gather(1, hard)
