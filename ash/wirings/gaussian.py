"""`GaussianWiring`: k free continuous index tuples, learned by backpropagation (non-adaptive ASH)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from ash.checks import choose, positive, require
from ash.contexts import Context, spread
from ash.growth import Factors
from ash.kernels import Kernel, get_kernel
from ash.means import get_means
from ash.pattern import CSRPattern, ravel
from ash.sampling import Sampling, corner_points, generator_from, new_seed, sample_points
from ash.schedules import Schedule, at
from ash.shares import SMALLEST
from ash.template import Admissible, Template
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.base import RewireReport, Wiring, entries_from, fan_in_uniform, version
from ash.wirings.rescue import Rescue
from ash.wirings.search import Search

_VALUES = {"learned": True, "ones": False}


class GaussianWiring(Wiring):
    """A sparse weight tensor of k index tuples whose means, scales and values are learned.

    In training, every forward pass samples integer points around the tuples and divides each tuple's value
    over the points of its context. In evaluation the means are rounded, nothing is sampled, and the CSR
    structure is kept until a parameter changes.

    Args:
        out_shape, in_shape, admissible: as in `Wiring`.
        k: number of tuples, or `density`: their share of the admissible entries (default 0.1).
        kernel: `"student_t"` (ν = 1), `"student_t(ν)"` or `"gaussian"`.
        context: `"tuple"`, `"chunk"`, `"all"`, or a `Context`.
        sampling: numbers of points; `Sampling()` is corners + 2 global + 2 local.
        template: fixed columns.
        values: `"learned"`, or `"ones"` (fixed).
        value_std: standard deviation of the initial values; by default they are uniform in ±1/√(fan-in).
        scale: initial scale σ in units of an index; by default an eighth of the learned columns' geometric
            mean size.
        scale_floor, scale_ceiling: bounds of the scales, numbers or schedules of the step; the default
            ceiling is half of the largest learned column.
        scale_decay: what every optimizer step takes off log σ, decoupled from the gradient. Without it a very
            wide tuple costs little and stays wide.
        scale_per_column: a scale for every learned column instead of one per tuple.
        means: parametrisation: `"anchored"`, `"direct"` or `"sigmoid"`.
        positions: `(k, q)` initial means; by default uniform over the admissible set.
        subset: the share of tuples that is sampled and trained in a batch; the others take part rounded.
        per_instance: draw points for every instance of the batch, not once per batch.
        generator: for the initial means; torch's default one otherwise. Draws of a forward pass come from
            the default generator of the device, as dropout's do.

    Raises `UserError` for options that do not fit.

    Source: `Sparse, Adaptive Hypernetworks` (2017), arXiv 1810.09184. Departures: σ is a standard deviation;
    steps of the means are proportional to σ; a fat tail by default; shares in log space, streamed.
    """

    fixed: Tensor
    _settled_offset: Tensor
    _settled_log_scale: Tensor
    step: Tensor
    frozen: Tensor

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        density: float | None = None,
        kernel: str | Kernel = "student_t",
        context: str | Context = "tuple",
        sampling: Sampling | None = None,
        template: Template | None = None,
        admissible: Admissible | None = None,
        values: str = "learned",
        value_std: float | None = None,
        scale: float | None = None,
        scale_floor: float | Schedule = 0.3,
        scale_ceiling: float | Schedule | None = None,
        scale_decay: float = 0.0,
        scale_per_column: bool = False,
        means: str = "anchored",
        positions: Tensor | None = None,
        subset: float | None = None,
        per_instance: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(out_shape, in_shape, admissible)
        self.template = Template(self.rank) if template is None else template
        self.template.check(self.shape)
        self.sizes = self.template.sizes(self.shape)
        k = self._count(k, density)
        self.kernel, self.sampling = get_kernel(kernel), Sampling() if sampling is None else sampling
        self.context = context if isinstance(context, Context) else Context(context)
        self.learned_values = choose("value scheme", values, _VALUES)
        self.value_std, self.scale_init = value_std, self._default_scale() if scale is None else scale
        self.scale_floor, self.scale_decay = scale_floor, scale_decay
        self.scale_ceiling = max(1.0, max(self.sizes, default=1) / 2) if scale_ceiling is None else scale_ceiling
        self.subset, self.per_instance = subset, per_instance
        self._check_options()
        columns = max(1, len(self.sizes)) if scale_per_column else 1
        self.means = get_means(means)(k, self.sizes, device, dtype)
        self.log_scale = nn.Parameter(torch.zeros(k, columns, device=device, dtype=dtype))
        ones = torch.ones(k, device=device, dtype=dtype)
        if self.learned_values:
            self.values = nn.Parameter(ones)
        else:
            self.register_buffer("values", ones)
        self._register_state(k, device)
        self.reset_parameters(generator, positions)

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
        positive("scale_decay", self.scale_decay, zero=True)
        floor, ceiling = at(self.scale_floor, 0), at(self.scale_ceiling, 0)
        require(floor <= ceiling, f"scale_floor={floor} above scale_ceiling={ceiling}; expected floor <= ceiling.")
        require(
            self.subset is None or 0 < self.subset <= 1, f"subset={self.subset}; expected a share above 0, at most 1."
        )
        self.sampling.check(len(self.sizes))

    def _register_state(self, k: int, device: torch.device | str | None) -> None:
        fixed = self.template.indices if self.template.columns else torch.zeros(k, 0, dtype=torch.int64)
        self.register_buffer("fixed", fixed.to(device))
        self.search = Search(0 if self.per_instance else k, self.template, self.shape, self.sampling, device)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))
        self.register_buffer("_settled_offset", None, persistent=False)
        self.register_buffer("_settled_log_scale", None, persistent=False)
        self._cache: tuple[list[tuple[Tensor, int]], Tensor, CSRPattern | None] | None = None
        self.register_state_dict_pre_hook(_before_saving)
        self.register_load_state_dict_post_hook(_after_loading)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None, positions: Tensor | None = None) -> None:
        """New means (uniform over the admissible set, or at `positions` `(k, q)`), scales and values."""
        source = generator_from(new_seed(torch.device("cpu"), generator), torch.device("cpu"))
        where = self._draw_positions(source) if positions is None else positions.double().cpu()
        expected = (self.k, len(self.sizes))
        require(tuple(where.shape) == expected, f"positions {tuple(where.shape)}; expected (k, q) = {expected}.")
        device = self.fixed.device
        self.means.place(torch.arange(self.k, device=device), where.to(device))
        self.log_scale.fill_(math.log(self.scale_init))
        self._clamp_scales()
        self.step.zero_()
        self.search.reset()
        self._mark_settled()
        rounded = self.rounded_indices()
        require(
            bool(self.admissible.contains(rounded).all()),
            f"the template's fixed columns leave no entry of {self.admissible!r} to some tuples; change one of them.",
        )
        self._reset_values(rounded, source)

    def _draw_positions(self, source: torch.Generator) -> Tensor:
        """Uniform means over the whole tensor, or at random admissible entries. float64 (k, q)."""
        if not self.admissible.everything and not self.template.columns:
            return self.admissible.draw(self.k, source).double()
        top = torch.tensor(self.sizes, dtype=torch.float64) - 1
        return torch.rand(self.k, len(self.sizes), dtype=torch.float64, generator=source) * top

    def _reset_values(self, rounded: Tensor, source: torch.Generator) -> None:
        if not self.learned_values:
            self.values.fill_(1.0)
        elif self.value_std is not None:
            self.values.copy_(torch.randn(self.k, generator=source) * self.value_std)
        else:
            rows = ravel(rounded[:, : len(self.out_shape)], self.out_shape)
            self.values.copy_(fan_in_uniform(rows.cpu(), math.prod(self.out_shape), source))

    @property
    def k(self) -> int:
        """How many tuples there are."""
        return self.log_scale.shape[0]

    def stored_entries(self) -> int:
        return self.k

    # --- from parameters to tuples -------------------------------------------------------------------

    def scales(self) -> Float[Tensor, "k s"]:
        """σ of every tuple, in units of an index."""
        return self.log_scale.exp()

    def tuples(self) -> IndexTuples:
        """The tuples as they are, in the learned columns; differentiable."""
        scales = self.scales()
        anchors, residuals = self.means(scales)
        return IndexTuples(anchors, residuals, scales, self.values)

    @torch.no_grad()
    def settle(self) -> None:
        """Take up what an optimizer step has changed: anchors follow, scales decay and keep their bounds.

        Runs by itself, once for each change of the means or scales, before a forward pass or a `state_dict`.
        What counts is their content: fused optimizers write to parameters without raising their version.
        Under `torch.func` transforms, whose parameters are not this module's own, nothing is changed.
        """
        if not self._owns_parameters() or not self._moved():
            return
        self.step += 1
        self.log_scale.sub_(self.scale_decay)
        self._clamp_scales()
        self.means.settle(self.log_scale.exp())
        self.search.settle(self.admissible, "largest" if self.learned_values else "negative")
        self._mark_settled()

    def _owns_parameters(self) -> bool:
        own = (self.means.offset, self.log_scale)
        return all(type(p) is nn.Parameter and not torch.is_inference(p) for p in own)

    def _moved(self) -> bool:
        same = torch.equal(self.means.offset, self._settled_offset)
        return not (same and torch.equal(self.log_scale, self._settled_log_scale))

    @torch.no_grad()
    def _mark_settled(self) -> None:
        with torch.inference_mode(False):
            self._settled_offset = self.means.offset.detach().clone()
            self._settled_log_scale = self.log_scale.detach().clone()

    def _clamp_scales(self) -> None:
        step = int(self.step)
        low, high = (math.log(max(at(bound, step), SMALLEST)) for bound in (self.scale_floor, self.scale_ceiling))
        self.log_scale.clamp_(low, max(low, high))

    # --- one draw ------------------------------------------------------------------------------------

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        """A draw in training (with `per_instance`, one for each row of x); the rounded tuples in evaluation."""
        self.settle()
        if not self.training or bool(self.frozen):
            return self.rounded()
        generator = generator_from(new_seed(self.log_scale.device), self.log_scale.device)
        tuples, fixed = self.tuples(), self.fixed
        if self.subset is not None and self.subset < 1:
            return self._with_rest(tuples, generator, x)
        return self._draw(tuples, torch.arange(self.k, device=fixed.device), generator, x)

    def _draw(self, tuples: IndexTuples, which: Tensor, generator: torch.Generator, x: Tensor | None) -> SparseWeight:
        """A draw of some tuples, of which `which` are the numbers."""
        fixed = self.fixed[which]
        if self.per_instance:
            require(x is not None, "per_instance wiring without an input; call wiring(x), so that b is known.")
            tuples = _expand(tuples, x.shape[0])  # type: ignore[union-attr]
        kept = self.search.kept[which] if self.search.keeps else None
        points = sample_points(tuples, self.sizes, self.sampling, generator, *self.search.guided(fixed), kept)
        if not self.admissible.everything:
            points[..., 0, :] = self._nearest(tuples, fixed)[..., list(self.template.learned)]
        full = self.template.fill(points, fixed)
        weights = spread(
            tuples,
            points,
            full,
            self.shape,
            kernel=self.kernel,
            context=self.context,
            template=self.template,
            admissible=self.admissible,
            generator=generator,
        )
        if self.search.keeps and weights.requires_grad:
            signs = tuples.values.detach().sign().unsqueeze(-1)
            weights.register_hook(lambda g: self.search.keep(which, points, -g * signs))
        return SparseWeight(full.flatten(-3, -2), weights.flatten(-2), self.out_shape, self.in_shape)

    def _with_rest(self, tuples: IndexTuples, generator: torch.Generator, x: Tensor | None) -> SparseWeight:
        """A random subset drawn and trained; the rest rounded, without gradients."""
        device = self.log_scale.device
        order = torch.randperm(self.k, generator=generator, device=device)
        chosen = order[: max(1, round((self.subset or 1) * self.k))]
        rest = order[len(chosen) :]
        drawn = self._draw(tuples.take(chosen), chosen, generator, x)
        indices, values = self.rounded_indices()[rest], self.values.detach()[rest]
        if self.per_instance:
            b = drawn.values.shape[0]
            indices, values = indices.expand(b, -1, -1), values.expand(b, -1)
        return SparseWeight(
            torch.cat([drawn.indices, indices], -2),
            torch.cat([drawn.values, values], -1),
            self.out_shape,
            self.in_shape,
        )

    def _nearest(self, tuples: IndexTuples, fixed: Tensor) -> Int64[Tensor, "*b k r"]:
        """The admissible entry nearest to each mean."""
        if self.admissible.everything:
            return self.template.fill(tuples.rounded(self.sizes).unsqueeze(-2), fixed).squeeze(-2)
        means = tuples.means.detach()
        where: Float64[Tensor, "*b k r"] = means.new_empty(*means.shape[:-1], self.rank)
        where[..., list(self.template.learned)] = means
        where[..., list(self.template.columns)] = fixed.double()
        return self.admissible.nearest(where, self.template.columns)

    # --- evaluation ----------------------------------------------------------------------------------

    def rounded_indices(self) -> Int64[Tensor, "k r"]:
        """The entry that each tuple becomes in evaluation: the admissible one nearest to its mean."""
        with torch.no_grad():
            return self._nearest(self.tuples(), self.fixed)

    def rounded(self) -> SparseWeight:
        """The weight in evaluation; its CSR structure is kept until means or scales change."""
        made_of = (self.means.offset, self.log_scale, self.fixed, *self.means.buffers())
        key = [(tensor, version(tensor)) for tensor in made_of]
        if self._cache is None or not _same(self._cache[0], key):
            self._cache = (key, self.rounded_indices(), None)
        _, indices, pattern = self._cache
        weight = SparseWeight(indices, self.values, self.out_shape, self.in_shape, pattern)
        if pattern is None:
            self._cache = (key, indices, weight.pattern)
        return weight

    @torch.no_grad()
    def frozen_entries(self) -> Bool[Tensor, " k"]:
        """Tuples whose mean gets no gradient: the nearest corner's share is 1, to float precision."""
        if bool(self.frozen) or not self.sizes:
            return torch.ones(self.k, dtype=torch.bool, device=self.fixed.device)
        tuples = dataclasses.replace(self.tuples(), values=torch.ones_like(self.values))
        points = corner_points(tuples, self.sizes)
        if not self.admissible.everything:
            points[..., 0, :] = self._nearest(tuples, self.fixed)[..., list(self.template.learned)]
        shares = spread(
            tuples,
            points,
            self.template.fill(points, self.fixed),
            self.shape,
            kernel=self.kernel,
            context=Context("tuple"),
            template=self.template,
            admissible=self.admissible,
            generator=torch.Generator(),
        )
        return shares[:, 0] == 1

    @torch.no_grad()
    def freeze(self) -> None:
        """Round the means for good: from now on only the values learn, and training runs on cached CSR."""
        self.settle()
        self.frozen.fill_(True)
        self.means.offset.requires_grad_(False)
        self.log_scale.requires_grad_(False)

    # --- guided samples and rescue -------------------------------------------------------------------

    @property
    def wants_factors(self) -> bool:
        return self.training and self.search.guides and not bool(self.frozen)

    def observe(self, factors: Factors) -> None:
        """Where the loss asks for weight, the next step's guided samples will look."""
        self.search.observe(factors)

    @torch.no_grad()
    def rewire(self, score: Factors, rescue: Rescue | None = None) -> RewireReport:
        """Merge tuples that share an entry, and move idle ones to where the gradient is largest (`Rescue`)."""
        self.settle()
        report = (Rescue() if rescue is None else rescue)(self, score)
        self._mark_settled()
        return report

    @torch.no_grad()
    def load_dense(self, weight: Tensor) -> None:
        """Take the values at the rounded tuples from a dense tensor of the same shape."""
        require(self.learned_values, "values='ones' has no values to load; use values='learned'.")
        require(weight.shape == self.shape, f"a weight of shape {tuple(weight.shape)}; expected {self.shape}.")
        self.values.copy_(weight[tuple(self.rounded_indices().to(weight.device).unbind(-1))])

    def extra_repr(self) -> str:
        own = f"kernel={self.kernel!r}, context={self.context.name!r}, points={self.sampling.points(len(self.sizes))}"
        return f"{super().extra_repr()}, {own}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": None}


def _before_saving(wiring: GaussianWiring, *_: object) -> None:
    wiring.settle()


def _after_loading(wiring: GaussianWiring, _: object) -> None:
    wiring._mark_settled()


def _same(one: list[tuple[Tensor, int]], other: list[tuple[Tensor, int]]) -> bool:
    """Whether both hold the same tensors, not written to since."""
    return all(a is b and v == w for (a, v), (b, w) in zip(one, other, strict=True))


def _expand(tuples: IndexTuples, b: int) -> IndexTuples:
    """The same tuples for b instances, without copies."""
    return IndexTuples(
        tuples.anchors.expand(b, -1, -1),
        tuples.residuals.expand(b, -1, -1),
        tuples.scales.expand(b, -1, -1),
        tuples.values.expand(b, -1),
    )
