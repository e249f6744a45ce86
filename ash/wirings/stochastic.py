"""`StochasticWiring`: what free and emitted index tuples have in common: points, shares, rounding, subsets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ash.checks import positive, require
from ash.contexts import Context, spread
from ash.drawn import draw_weight
from ash.kernels import Kernel, get_kernel
from ash.sampling import Sampling, corner_points, sample_points
from ash.schedules import Schedule, at
from ash.shares import SMALLEST
from ash.template import Admissible, Template
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.base import Wiring, entries_from


class StochasticWiring(Wiring):
    """A weight tensor of k continuous index tuples; every forward pass draws integer points around them.

    Args:
        out_shape, in_shape, admissible: as in `Wiring`.
        k: number of tuples, or `density`: their share of the admissible entries (default 0.1).
        kernel: `"student_t"` (ν = 1), `"student_t(ν)"` or `"gaussian"`.
        context: `"tuple"`, `"chunk"`, `"all"`, or a `Context`.
        sampling: numbers of points; `Sampling()` is corners + 2 global + 2 local.
        template: fixed columns.
        scale: initial scale σ in units of an index; by default an eighth of the learned columns' geometric
            mean size.
        scale_floor, scale_ceiling: bounds of the scales, numbers or schedules of the step; the default
            ceiling is half of the largest learned column.
        subset: the share of tuples that is sampled and trained in a batch; the others take part rounded.

    Raises `UserError` for options that do not fit.
    """

    fixed: Tensor
    step: Tensor

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None,
        *,
        density: float | None,
        kernel: str | Kernel,
        context: str | Context,
        sampling: Sampling | None,
        template: Template | None,
        admissible: Admissible | None,
        scale: float | None,
        scale_floor: float | Schedule,
        scale_ceiling: float | Schedule | None,
        subset: float | None,
        device: torch.device | str | None,
    ):
        super().__init__(out_shape, in_shape, admissible)
        self.template = Template(self.rank) if template is None else template
        self.template.check(self.shape)
        self.sizes = self.template.sizes(self.shape)
        k = self._count(k, density)
        self.kernel, self.sampling = get_kernel(kernel), Sampling() if sampling is None else sampling
        self.context = context if isinstance(context, Context) else Context(context)
        self.scale_init = self._default_scale() if scale is None else scale
        self.scale_floor = scale_floor
        self.scale_ceiling = max(1.0, max(self.sizes, default=1) / 2) if scale_ceiling is None else scale_ceiling
        self.subset = subset
        self._check_options()
        fixed = self.template.indices if self.template.columns else torch.zeros(k, 0, dtype=torch.int64)
        self.register_buffer("fixed", fixed.to(device))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def _count(self, k: int | None, density: float | None) -> int:
        if k is None and density is None and self.template.k is not None:
            return self.template.k
        k = entries_from(k, density, self.admissible)
        fixed = self.template.k
        require(fixed is None or fixed == k, f"k={k} with a template for {fixed} tuples; expected as many.")
        return k

    def _default_scale(self) -> float:
        if not self.sizes:
            return 1.0
        return max(0.5, math.exp(sum(math.log(s) for s in self.sizes) / len(self.sizes)) / 8)

    def _check_options(self) -> None:
        positive("scale", self.scale_init)
        positive("scale_floor", at(self.scale_floor, 0))
        floor, ceiling = at(self.scale_floor, 0), at(self.scale_ceiling, 0)
        require(floor <= ceiling, f"scale_floor={floor} above scale_ceiling={ceiling}; expected floor <= ceiling.")
        require(
            self.subset is None or 0 < self.subset <= 1, f"subset={self.subset}; expected a share above 0, at most 1."
        )
        self.sampling.check(len(self.sizes))

    @property
    def k(self) -> int:
        """How many tuples there are."""
        return self.fixed.shape[0]

    def stored_entries(self) -> int:
        return self.k

    def scale_bounds(self) -> tuple[float, float]:
        """Floor and ceiling of the scales at the present step, in units of an index; the floor wins."""
        low, high = (max(at(bound, int(self.step)), SMALLEST) for bound in (self.scale_floor, self.scale_ceiling))
        return low, max(low, high)

    def _draw_positions(self, source: torch.Generator) -> Float64[Tensor, "k q"]:
        """Uniform means over the whole tensor, or at random admissible entries."""
        if not self.admissible.everything and not self.template.columns:
            return self.admissible.draw(self.k, source).double()
        top = torch.tensor(self.sizes, dtype=torch.float64) - 1
        return torch.rand(self.k, len(self.sizes), dtype=torch.float64, generator=source) * top

    def _check_admissible(self, entries: Int64[Tensor, "*b k r"]) -> None:
        """Raise `UserError` where the template leaves some tuples no entry that may exist."""
        require(
            bool(self.admissible.contains(entries).all()),
            f"the template's fixed columns leave no entry of {self.admissible!r} to some tuples; change one of them.",
        )

    # --- one draw ------------------------------------------------------------------------------------

    def _sample(
        self, tuples: IndexTuples, which: Int64[Tensor, " j"], generator: torch.Generator
    ) -> Int64[Tensor, "*b j m q"]:
        """Points of some tuples, of which `which` are the numbers."""
        return sample_points(tuples, self.sizes, self.sampling, generator)

    def _draws_freely(self) -> bool:
        """Whether the draw alone decides about the points, so that it need not be looked at."""
        return type(self)._sample is StochasticWiring._sample

    def _watch(self, which: Tensor, points: Tensor, weights: Tensor, tuples: IndexTuples) -> None:
        """Look at what was drawn; default: nothing."""
        return

    def _draw(self, tuples: IndexTuples, generator: torch.Generator) -> SparseWeight:
        """A draw of all tuples, or of a subset of them with the rest rounded."""
        if self.subset is not None and self.subset < 1:
            return self._draw_subset(tuples, generator, max(1, round(self.subset * self.k)))
        return self._draw_some(tuples, torch.arange(self.k, device=self.fixed.device), generator)

    def _draw_some(self, tuples: IndexTuples, which: Tensor, generator: torch.Generator) -> SparseWeight:
        """A draw of some tuples, of which `which` are the numbers; in one compiled pass where there is one."""
        fixed = self.fixed if len(which) == self.k else self.fixed[which]
        if self._draws_freely():
            drawn = draw_weight(
                tuples,
                fixed,
                self.out_shape,
                self.in_shape,
                sampling=self.sampling,
                kernel=self.kernel,
                context=self.context,
                template=self.template,
                admissible=self.admissible,
                generator=generator,
            )
            if drawn is not None:
                return drawn
        points = self._sample(tuples, which, generator)
        if not self.admissible.everything:
            points[..., 0, :] = self._nearest(tuples, fixed)[..., list(self.template.learned)]
        full = self.template.fill(points, fixed)
        weights = self._spread(tuples, points, full, self.context, generator)
        self._watch(which, points, weights, tuples)
        return SparseWeight(full.flatten(-3, -2), weights.flatten(-2), self.out_shape, self.in_shape)

    def _spread(
        self, tuples: IndexTuples, points: Tensor, full: Tensor, context: Context, generator: torch.Generator
    ) -> Float[Tensor, "*b k m"]:
        return spread(
            tuples,
            points,
            full,
            self.shape,
            kernel=self.kernel,
            context=context,
            template=self.template,
            admissible=self.admissible,
            generator=generator,
        )

    def _draw_subset(self, tuples: IndexTuples, generator: torch.Generator, count: int) -> SparseWeight:
        """A random subset drawn and trained; the rest rounded, without gradients."""
        order = torch.randperm(self.k, generator=generator, device=self.fixed.device)
        chosen, rest = order[:count], order[count:]
        drawn = self._draw_some(tuples.take(chosen), chosen, generator)
        others = tuples.take(rest)
        indices, values = self._nearest(others, self.fixed[rest]), others.values.detach()
        return SparseWeight(
            torch.cat([drawn.indices, indices], -2),
            torch.cat([drawn.values, values], -1),
            self.out_shape,
            self.in_shape,
        )

    @torch.no_grad()
    def _nearest(self, tuples: IndexTuples, fixed: Int64[Tensor, "k f"]) -> Int64[Tensor, "*b k r"]:
        """The entry that each tuple becomes in evaluation: the admissible one nearest to its mean."""
        if self.admissible.everything:
            return self.template.fill(tuples.rounded(self.sizes).unsqueeze(-2), fixed).squeeze(-2)
        means = tuples.means.detach()
        where: Float64[Tensor, "*b k r"] = means.new_empty(*means.shape[:-1], self.rank)
        where[..., list(self.template.learned)] = means
        where[..., list(self.template.columns)] = fixed.double()
        return self.admissible.nearest(where, self.template.columns)

    @torch.no_grad()
    def _settled_on_entry(self, tuples: IndexTuples) -> Bool[Tensor, "*b k"]:
        """Tuples whose mean gets no gradient: the nearest corner's share is 1, to float precision."""
        points = corner_points(tuples, self.sizes)
        if not self.admissible.everything:
            points[..., 0, :] = self._nearest(tuples, self.fixed)[..., list(self.template.learned)]
        full = self.template.fill(points, self.fixed)
        shares = self._spread(tuples, points, full, Context("tuple"), torch.Generator())
        return shares[..., 0] == 1

    def extra_repr(self) -> str:
        own = f"kernel={self.kernel!r}, context={self.context.name!r}, points={self.sampling.points(len(self.sizes))}"
        return f"{super().extra_repr()}, {own}"
