"""`GaussianWiring`: k free continuous index tuples, learned by backpropagation (non-adaptive ASH)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ash.checks import check_positions, choose, positive, require
from ash.codebook import Codebook
from ash.contexts import Context
from ash.growth import Score
from ash.kernels import Kernel
from ash.means import get_means
from ash.memory import at_most, need, numbers
from ash.pattern import CSRPattern, ravel
from ash.sampling import Sampling, capturing, generator_from, new_seed, pass_generator, sample_points
from ash.schedules import Schedule
from ash.template import Admissible, Template
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.base import RewireReport, fan_in_uniform, version
from ash.wirings.rescue import Rescue
from ash.wirings.search import Search
from ash.wirings.stochastic import StochasticWiring

_VALUES = {"learned": True, "ones": False}


class GaussianWiring(StochasticWiring):
    """A sparse weight tensor of k index tuples whose means, scales and values are learned.

    In training, every forward pass samples integer points around the tuples and divides each tuple's value
    over the points of its context. In evaluation the means are rounded, nothing is sampled, and the CSR
    structure is kept until a parameter changes.

    Args:
        out_shape, in_shape, k, density, kernel, context, sampling, template, admissible, scale, scale_floor,
            scale_ceiling, subset: as in `StochasticWiring`.
        values: `"learned"`, `"ones"` (fixed), or a `Codebook` whose scalars the tuples share.
        value_std: standard deviation of the initial values; by default they are uniform in ±1/√(fan-in).
        scale_decay: what every optimizer step takes off log σ, decoupled from the gradient. Without it a very
            wide tuple costs little and stays wide.
        scale_per_column: a scale for every learned column instead of one per tuple.
        means: parametrisation: `"anchored"`, `"direct"` or `"sigmoid"`.
        positions: `(k, q)` initial means; by default uniform over the admissible set.
        per_instance: draw points for every instance of the batch, not once per batch.
        generator: for the initial means; torch's default one otherwise. Draws of a forward pass come from
            the default generator of the device, as dropout's do.

    Raises `UserError` for options that do not fit.

    Source: `Sparse, Adaptive Hypernetworks` (2017), arXiv 1810.09184. Departures: σ is a standard deviation;
    steps of the means are proportional to σ; a fat tail by default; shares in log space, streamed.
    """

    values: Tensor  # None where there is a codebook
    codes: Tensor | None
    _settled_offset: Tensor
    _settled_log_scale: Tensor
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
        values: str | Codebook = "learned",
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
        super().__init__(
            out_shape,
            in_shape,
            k,
            density=density,
            kernel=kernel,
            context=context,
            sampling=sampling,
            template=template,
            admissible=admissible,
            scale=scale,
            scale_floor=scale_floor,
            scale_ceiling=scale_ceiling,
            subset=subset,
            device=device,
        )
        positive("scale_decay", scale_decay, zero=True)
        self.value_std, self.scale_decay, self.per_instance = value_std, scale_decay, per_instance
        self._check_memory(numbers(dtype), device)
        columns = max(1, len(self.sizes)) if scale_per_column else 1
        self.means = get_means(means)(self.k, self.sizes, device, dtype)
        self.log_scale = nn.Parameter(torch.zeros(self.k, columns, device=device, dtype=dtype))
        self._register_values(values, device, dtype)
        self._register_state(device)
        self.reset_parameters(generator, positions)

    def _check_memory(self, number: int, device: torch.device | str | None) -> None:
        """Parameters and buffers, and what drawing the first means takes."""
        q = len(self.sizes)
        each = number * (3 * q + 4) + 8 * (q + len(self.template.columns)) + 8 * (3 * q + 2 * self.rank)
        what = f"GaussianWiring {self.out_shape} x {self.in_shape} with k={self.k:,}"
        need(what, self.k * each, device, lambda free: f"at most k={at_most(free / each)} would fit")

    def _register_values(
        self, values: str | Codebook, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """`values` `(k,)`, learned or not; or `codes` `(k, s)`, the logits of a codebook."""
        self.codebook = values if isinstance(values, Codebook) else None
        self.learned_values = not isinstance(values, Codebook) and choose("value scheme", values, _VALUES)
        ones = torch.ones(self.k, device=device, dtype=dtype)
        if self.learned_values:
            self.values = nn.Parameter(ones)
        else:
            self.register_buffer("values", None if self.codebook is not None else ones)
        codes = None
        if self.codebook is not None:
            codes = nn.Parameter(torch.zeros(self.k, self.codebook.size, device=device, dtype=dtype))
            self.codebook.to(device=device, dtype=dtype)
        self.register_parameter("codes", codes)

    def _register_state(self, device: torch.device | str | None) -> None:
        k = 0 if self.per_instance else self.k
        self.search = Search(k, self.template, self.shape, self.sampling, device)
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))
        self._was_frozen = False
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
        check_positions(where, (self.k, len(self.sizes)), "(k, q)")
        device = self.fixed.device
        self.means.place(torch.arange(self.k, device=device), where.to(device))
        self.log_scale.fill_(math.log(self.scale_init))
        self._clamp_scales()
        self.step.zero_()
        self.search.reset()
        self._mark_settled()
        rounded = self.rounded_indices()
        self._check_admissible(rounded)
        self._reset_values(rounded, source)

    def _reset_values(self, rounded: Tensor, source: torch.Generator) -> None:
        if self.codebook is not None and self.codes is not None:
            self.codebook.start(min(1.0, math.sqrt(math.prod(self.out_shape) / self.k)))
            self.codes.copy_(0.1 * torch.randn(self.codes.shape, generator=source))
        elif not self.learned_values:
            self.current_values().fill_(1.0)
        elif self.value_std is not None:
            self.current_values().copy_(torch.randn(self.k, generator=source) * self.value_std)
        else:
            rows = ravel(rounded[:, : len(self.out_shape)], self.out_shape)
            self.current_values().copy_(fan_in_uniform(rows.cpu(), source))

    # --- from parameters to tuples -------------------------------------------------------------------

    def scales(self) -> Float[Tensor, "k s"]:
        """σ of every tuple, in units of an index."""
        return self.log_scale.exp()

    def current_values(self, generator: torch.Generator | None = None) -> Float[Tensor, " k"]:
        """The values; those of a codebook are drawn where a generator is given, as in training."""
        if self.codebook is not None and self.codes is not None:
            drawn: Tensor = self.codebook(self.codes, generator, int(self.step))
            return drawn
        return self.values

    def tuples(self, generator: torch.Generator | None = None) -> IndexTuples:
        """The tuples as they are, in the learned columns; differentiable."""
        scales = self.scales()
        anchors, residuals = self.means(scales)
        return IndexTuples(anchors, residuals, scales, self.current_values(generator))

    @torch.no_grad()
    def settle(self) -> None:
        """Take up what an optimizer step has changed: anchors follow, scales decay and keep their bounds.

        Runs by itself, once for each change of the means or scales, before a forward pass or a `state_dict`.
        What counts is their content: fused optimizers write to parameters without raising their version.
        Under `torch.func` transforms, whose parameters are not this module's own, nothing is changed; nor in a
        CUDA graph: whoever replays one calls this after every step of the optimizer.
        """
        if capturing(self.log_scale.device) or not self._owns_parameters() or not self._moved():
            return
        self.step += 1
        self.log_scale.sub_(self.scale_decay)
        self._clamp_scales()
        self.means.settle(self.log_scale.exp())
        signed = self.learned_values or self.codebook is not None
        self.search.settle(self.admissible, "largest" if signed else "negative")
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
        low, high = self.scale_bounds()
        self.log_scale.clamp_(math.log(low), math.log(high))

    # --- one draw ------------------------------------------------------------------------------------

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        """A draw in training (with `per_instance`, one for each row of x); the rounded tuples in evaluation."""
        self.settle()
        frozen = self._is_frozen()
        if not self.training or (frozen and self.codebook is None):
            return self.rounded()
        generator = pass_generator(self.log_scale.device)
        if frozen:
            return self._rounded(self.current_values(generator))
        tuples = self.tuples(generator)
        if self.per_instance:
            require(x is not None, "per_instance wiring without an input; call wiring(x), so that b is known.")
            tuples = _expand(tuples, x.shape[0])  # type: ignore[union-attr]
        return self._draw(tuples, generator)

    def _is_frozen(self) -> bool:
        """Whether means are rounded for good; in a CUDA graph, whether they were in the pass before."""
        if not capturing(self.frozen.device):
            self._was_frozen = bool(self.frozen)
        return self._was_frozen

    def _sample(self, tuples: IndexTuples, which: Tensor, generator: torch.Generator) -> Tensor:
        kept = self.search.kept[which] if self.search.keeps else None
        guided = self.search.guided(self.fixed[which])
        return sample_points(tuples, self.sizes, self.sampling, generator, *guided, kept)

    def _draws_freely(self) -> bool:
        return type(self)._sample is GaussianWiring._sample and not (self.search.keeps or self.search.guides)

    def _watch(self, which: Tensor, points: Tensor, weights: Tensor, tuples: IndexTuples) -> None:
        if self.search.keeps and weights.requires_grad:
            signs = tuples.values.detach().sign().unsqueeze(-1)
            weights.register_hook(lambda g: self.search.keep(which, points, -g * signs))

    # --- evaluation ----------------------------------------------------------------------------------

    def rounded_indices(self) -> Int64[Tensor, "k r"]:
        """The entry that each tuple becomes in evaluation: the admissible one nearest to its mean."""
        with torch.no_grad():
            return self._nearest(self.tuples(), self.fixed)

    def rounded(self) -> SparseWeight:
        """The weight in evaluation; its CSR structure is kept until means or scales change."""
        return self._rounded(self.current_values())

    def _rounded(self, values: Tensor) -> SparseWeight:
        made_of = (self.means.offset, self.log_scale, self.fixed, *self.means.buffers())
        key = [(tensor, version(tensor)) for tensor in made_of]
        if self._cache is None or not _same(self._cache[0], key):
            self._cache = (key, self.rounded_indices(), None)
        _, indices, pattern = self._cache
        weight = SparseWeight(indices, values, self.out_shape, self.in_shape, pattern)
        if pattern is None:
            self._cache = (key, indices, weight.pattern)
        return weight

    @torch.no_grad()
    def frozen_entries(self) -> Bool[Tensor, " k"]:
        """Tuples whose mean gets no gradient: the nearest corner's share is 1, to float precision."""
        if bool(self.frozen) or not self.sizes:
            return torch.ones(self.k, dtype=torch.bool, device=self.fixed.device)
        tuples = self.tuples()
        return self._settled_on_entry(dataclasses.replace(tuples, values=torch.ones_like(tuples.values)))

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
        return super().wants_factors or (self.training and self.search.guides and not bool(self.frozen))

    def observe(self, score: Score) -> None:
        """Where the loss asks for weight, the next step's guided samples will look."""
        super().observe(score)
        if self.search.guides:
            self.search.observe(score)

    @torch.no_grad()
    def rewire(self, score: Score, rescue: Rescue | None = None) -> RewireReport:
        """Merge tuples that share an entry, and move idle ones to where the gradient is largest (`Rescue`)."""
        self.settle()
        report = (Rescue() if rescue is None else rescue)(self, score)
        self._mark_settled()
        return report

    @torch.no_grad()
    def load_dense(self, weight: Tensor) -> None:
        """Take the values at the rounded tuples from a dense tensor of the same shape."""
        require(self.learned_values, "ones, or the scalars of a codebook, are no values to load; use values='learned'.")
        require(weight.shape == self.shape, f"a weight of shape {tuple(weight.shape)}; expected {self.shape}.")
        self.values.copy_(weight[tuple(self.rounded_indices().to(weight.device).unbind(-1))])

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
