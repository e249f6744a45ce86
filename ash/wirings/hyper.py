"""`HyperWiring`: a hypernetwork looks at each input and emits the index tuples of that input's own weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash.checks import UserError, check_finite, check_positions, choose, require, shape
from ash.codebook import Codebook
from ash.contexts import Context
from ash.emission import Layout, clamp_inward, get_emitted_means
from ash.kernels import Kernel
from ash.sampling import Sampling, generator_from, new_seed
from ash.schedules import Schedule, at
from ash.shares import SMALLEST
from ash.template import Admissible, Template
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.counting import CountsSteps
from ash.wirings.stochastic import StochasticWiring

HypernetworkFactory = Callable[[tuple[int, ...], int, int], nn.Module]

_VALUES = {"emitted": (1, True), "shared": (1, False), "ones": (0, False)}
_SCALES = {"emitted": (1, True), "shared": (1, False), "scheduled": (0, False)}


@dataclass(frozen=True)
class SizeReport:
    """How large a hypernetwork and what it emits are.

    Attributes:
        emitted: numbers emitted for one instance, k · width.
        hypernetwork: learned numbers of the hypernetwork. offset: those of the offset and a codebook.
        dense: numbers of the dense weight tensor, which a dense hypernetwork would emit for every instance.
    """

    emitted: int
    hypernetwork: int
    offset: int
    dense: int

    @property
    def compression(self) -> float:
        """Numbers of the dense weight for each one that is emitted."""
        return self.dense / max(1, self.emitted)

    def __str__(self) -> str:
        return (
            f"{self.emitted:,} numbers emitted per instance, {self.dense:,} in the dense weight "
            f"({self.compression:.3g} to 1); {self.hypernetwork:,} learned in the hypernetwork, "
            f"{self.offset:,} in the offset"
        )


class HyperWiring(StochasticWiring, CountsSteps):
    """A weight tensor for every instance: k index tuples that a hypernetwork emits from what it sees of the input.

    For each tuple the hypernetwork emits `width` raw numbers, in this order: the q means, a log scale
    (`scales="emitted"`), a value (`values="emitted"`) or the logits of a codebook. They are added to `offset`, free
    parameters that carry the initialisation: means spread over the tensor, scales in proportion to it, values by
    the fan-in. So a hypernetwork whose output starts small starts as a free sparse layer and learns to depart from it.

    Args:
        out_shape, in_shape, k, density, kernel, context, sampling, template, admissible, scale, scale_floor,
            scale_ceiling, subset: as in `StochasticWiring`. Guided and kept samples are uniform here.
        hypernetwork: a module x → `(b, k, width)`, or what makes one: `f(condition_shape, k, width)`, as
            `functools.partial(MLPHypernetwork, hidden=(64,))`. Where it has an attribute `groups`, a number of
            sets of consecutive tuples, these share their offset, and a permutation-equivariant one stays so.
        condition_shape: shape of what the hypernetwork sees, where that is not the layer's input.
        values: `"emitted"`, `"shared"` (one for all instances), `"ones"`, or a `Codebook`, whose logits are emitted.
        share_codes: the logits of a codebook are not emitted but shared by all instances.
        scales: `"emitted"`, `"shared"`, or `"scheduled"`: all scales are `scale`, which may be a schedule of the step.
        means: `"sigmoid"`, `"stretched"` (both ends can be reached) or `"direct"` (in units of an index).
        positions: `(k, q)` initial means, or `(k / groups, q)`; by default uniform over the admissible set.
        free: learn the offset; otherwise it stays as it starts.
        generator: for the initial means and values; torch's default one otherwise.

    Attributes:
        offset: `(k / groups, total)`, raw numbers; a parameter, or a buffer unless `free`.
        step: optimizer steps so far.

    Raises `UserError` for options that do not fit, a hypernetwork whose output does not, and emitted numbers or
    gradients that are NaN or infinite.

    Source: `Sparse, Adaptive Hypernetworks` (2017), 'Sparse, adaptive hypernetworks'; arXiv 1810.09184, section 3.
    """

    offset: Tensor
    base: Tensor

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        hypernetwork: nn.Module | HypernetworkFactory,
        condition_shape: int | Sequence[int] | None = None,
        density: float | None = None,
        kernel: str | Kernel = "student_t",
        context: str | Context = "tuple",
        sampling: Sampling | None = None,
        template: Template | None = None,
        admissible: Admissible | None = None,
        values: str | Codebook = "emitted",
        share_codes: bool = False,
        scales: str = "emitted",
        means: str = "sigmoid",
        scale: float | Schedule | None = None,
        scale_floor: float | Schedule = 0.3,
        scale_ceiling: float | Schedule | None = None,
        positions: Tensor | None = None,
        free: bool = True,
        subset: float | None = None,
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
            scale=None if scale is None else at(scale, 0),
            scale_floor=scale_floor,
            scale_ceiling=scale_ceiling,
            subset=subset,
            device=device,
        )
        self.scale = self.scale_init if scale is None else scale
        self.emitted_means = get_emitted_means(means)
        self.layout, self.codebook = self._layout(values, scales, share_codes)
        require(self.layout.width > 0, "a hypernetwork with nothing to emit: all columns are fixed, and neither values "
                                       "nor scales are emitted; let one of them be.")  # fmt: skip
        own = condition_shape is None
        self.condition_shape = self.in_shape if own else shape("condition_shape", condition_shape)
        made = hypernetwork
        if not isinstance(made, nn.Module):
            made = made(self.condition_shape, self.k, self.layout.width)
        require(isinstance(made, nn.Module), f"a hypernetwork of type {type(made).__name__}; expected an nn.Module.")
        self.hypernetwork: nn.Module = made.to(device=device, dtype=dtype)
        self.groups = int(getattr(made, "groups", 1))
        fits = self.groups >= 1 and self.k % self.groups == 0
        require(fits, f"k={self.k} tuples for {self.groups} groups; expected a multiple.")
        self.positions = positions
        shared = self.layout.total != self.layout.width
        require(free or not shared, "free=False, and values or scales that are shared; they are learned in the offset.")
        self._register_offset(free, device, dtype)
        self._register_count()
        self._reset_offset(generator)

    def _layout(self, values: str | Codebook, scales: str, share_codes: bool) -> tuple[Layout, Codebook | None]:
        columns, emit = choose("scale scheme", scales, _SCALES)
        codebook = values if isinstance(values, Codebook) else None
        if isinstance(values, Codebook):
            found = (values.size, not share_codes)
        else:
            found = choose("value scheme", values, _VALUES)
        return Layout(len(self.sizes), columns, found[0], emit, found[1]), codebook

    def _register_offset(self, free: bool, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        each = self.k // self.groups
        offset = torch.zeros(each, self.layout.total, device=device, dtype=dtype)
        self.register_buffer("base", torch.zeros(each, len(self.sizes), device=device, dtype=torch.float64))
        if free:
            self.offset = nn.Parameter(offset)
        else:
            self.register_buffer("offset", offset)
        if self.codebook is not None:
            self.codebook.to(device=device, dtype=dtype)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """New offsets, and a new hypernetwork where its parts have `reset_parameters`."""
        for part in self.hypernetwork.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        self._reset_offset(generator)

    @torch.no_grad()
    def _reset_offset(self, generator: torch.Generator | None) -> None:
        source = generator_from(new_seed(torch.device("cpu"), generator), torch.device("cpu"))
        each, q = self.base.shape
        where = self._draw_positions(source)[:each] if self.positions is None else self.positions.double().cpu()
        if tuple(where.shape) == (self.k, q):
            where = where[:each]
        check_positions(where, (each, q), "(k, q)")
        self.base.copy_(where)
        everywhere = self.base.repeat(self.groups, 1)
        start = IndexTuples.from_means(everywhere, everywhere[:, :1], everywhere.new_ones(self.k))
        self._check_admissible(self._nearest(start, self.fixed))
        scale, values = torch.tensor(float(self.scale_init)), self._initial_values(each, source)
        self._write_offset(scale, values)
        self.step.zero_()
        self._mark()

    def _write_offset(self, scales: Tensor, values: Tensor) -> None:
        """Make the offset give means at `base`, these scales, and values `(k / groups, 1)` or logits."""
        q, columns = len(self.sizes), self.layout
        self.offset[:, :q] = self.emitted_means.offset(self.base, self._column_sizes()).to(self.offset.dtype)
        if columns.scales:
            self.offset[:, q : q + 1] = scales.log().to(self.offset)
        if columns.values:
            self.offset[:, q + columns.scales :] = values.to(self.offset)

    @torch.no_grad()
    def start_from(self, tuples: IndexTuples) -> None:
        """Take pretrained tuples `(k, …)`, such as a `GaussianWiring`'s `tuples()`, as the offset to depart from.

        Raises `UserError` for another number of tuples or columns, and for tuples that share their offset, have
        a scale for each column, or take their values from a codebook.
        """
        expected = (self.k, len(self.sizes))
        fits = tuple(tuples.anchors.shape) == expected and tuples.scales.shape[-1] == 1
        require(
            fits and self.groups == 1 and self.codebook is None,
            f"tuples of shape {tuple(tuples.anchors.shape)}, {self.groups} groups; expected {expected}, one group, "
            "one scale for all columns of a tuple, and no codebook.",
        )
        self.base.copy_(tuples.means)
        self._write_offset(tuples.scales, tuples.values.unsqueeze(-1))
        self._mark()

    def _initial_values(self, each: int, source: torch.Generator) -> Tensor:
        """Values `(each, 1)` by the fan-in, or small logits `(each, s)`."""
        if self.codebook is not None:
            self.codebook.start(self.value_unit)
            return 0.1 * torch.randn(each, self.codebook.size, generator=source)
        return (2 * torch.rand(each, 1, generator=source) - 1) * self.value_unit

    @property
    def value_unit(self) -> float:
        """1/√(mean fan-in), at most 1: what a value is measured in where it is emitted."""
        return min(1.0, math.sqrt(math.prod(self.out_shape) / self.k))

    def _column_sizes(self) -> Tensor:
        return torch.tensor(self.sizes, dtype=torch.float64, device=self.base.device)

    # --- counting steps --------------------------------------------------------------------------------

    def _marker(self) -> Tensor | None:
        """A small parameter whose change tells that an optimizer has stepped; None where none is the module's own."""
        own = self.offset if isinstance(self.offset, nn.Parameter) else None
        if own is None or not own.requires_grad:
            own = min((p for p in self.hypernetwork.parameters() if p.requires_grad), key=Tensor.numel, default=None)
        return own if type(own) is nn.Parameter and not own.is_inference() else None

    # --- from an input to tuples -----------------------------------------------------------------------

    def emit(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k w"]:
        """The raw numbers that the hypernetwork emits for x `(b, *condition_shape)`."""
        lead = 1 + len(self.condition_shape)
        require(
            tuple(x.shape[1:lead]) == self.condition_shape,
            f"a condition of shape {tuple(x.shape)}; expected (b, {', '.join(map(str, self.condition_shape))}).",
        )
        raw: Tensor = self.hypernetwork(x)
        expected = (x.shape[0], self.k, self.layout.width)
        require(
            tuple(raw.shape) == expected,
            f"a hypernetwork that emits {tuple(raw.shape)}; expected (b, k, width) = {expected} for k={self.k} tuples "
            f"in a weight tensor of rank {self.rank}: {self._columns()} each.",
        )
        check_finite(raw, self)
        if raw.requires_grad:
            raw.register_hook(self._check_gradient)
        return raw

    def _columns(self) -> str:
        """The emitted columns in words."""
        parts = [f"{self.layout.q} means"]
        if self.layout.emit_scales and self.layout.scales:
            parts.append("1 log scale")
        if self.layout.emit_values and self.layout.values:
            parts.append("1 value" if self.codebook is None else f"{self.layout.values} logits")
        return ", ".join(parts)

    def _check_gradient(self, grad: Tensor) -> None:
        if grad.is_cuda or torch.isfinite(grad.sum()) or bool(torch.isfinite(grad).all()):
            return
        bad = int((~torch.isfinite(grad)).sum())
        raise UserError(
            f"{bad} of {grad.numel()} gradients of what HyperWiring({self.extra_repr()}) emitted are NaN or infinite "
            f"at step {int(self.step)}; expected finite numbers. Lower the learning rate, clip gradients, or raise "
            "scale_floor."
        )

    def tuples(self, x: Float[Tensor, "b ..."], generator: torch.Generator | None = None) -> IndexTuples:
        """The tuples of each instance, with a leading b; differentiable. A generator draws a codebook's choices."""
        raw = self.emit(x)
        offset, base = self.offset, self.base
        if self.groups > 1:
            offset, base = offset.repeat(self.groups, 1), base.repeat(self.groups, 1)
        unit = self.value_unit if self.codebook is None else 1.0
        means, log_scales, values = self.layout.split(raw, offset, unit)
        anchors, residuals = self.emitted_means(means, base, self._column_sizes())
        return IndexTuples(anchors, residuals, self._scales(raw, log_scales), self._values(raw, values, generator))

    def _scales(self, raw: Tensor, log_scales: Tensor) -> Float[Tensor, "b k 1"]:
        if not self.layout.scales:
            return raw.new_full((), max(at(self.scale, int(self.step)), SMALLEST)).expand(*raw.shape[:-1], 1)
        low, high = self.scale_bounds()
        return clamp_inward(log_scales, math.log(low), math.log(high)).exp()

    def _values(self, raw: Tensor, values: Tensor, generator: torch.Generator | None) -> Float[Tensor, "b k"]:
        if self.codebook is not None:
            chosen: Tensor = self.codebook(values, generator, int(self.step))
            return chosen
        return values.squeeze(-1) if self.layout.values else raw.new_ones(raw.shape[:-1])

    # --- one draw ----------------------------------------------------------------------------------------

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        """A weight for each instance of x `(b, *condition_shape)`: drawn in training, rounded in evaluation."""
        if x is None:
            raise UserError(
                "an adaptive wiring without an input; call wiring(x), or a layer that holds it; with a sparse input "
                "layer(x, condition) where the condition is dense, (b, *condition_shape)."
            )
        self.settle()
        if not self.training:
            return self._round(self.tuples(x))
        generator = generator_from(new_seed(x.device), x.device)
        return self._draw(self.tuples(x, generator), generator)

    def _round(self, tuples: IndexTuples) -> SparseWeight:
        return SparseWeight(self._nearest(tuples, self.fixed), tuples.values, self.out_shape, self.in_shape)

    @torch.no_grad()
    def rounded_indices(self, x: Float[Tensor, "b ..."]) -> Int64[Tensor, "b k r"]:
        """The entry that each tuple of each instance becomes in evaluation."""
        return self._nearest(self.tuples(x), self.fixed)

    def size_report(self) -> SizeReport:
        """How many numbers are emitted and learned, beside those of the dense weight tensor."""
        own = sum(p.numel() for p in self.hypernetwork.parameters())
        free = self.offset.numel() if isinstance(self.offset, nn.Parameter) else 0
        scalars = 0 if self.codebook is None else self.codebook.size
        return SizeReport(self.k * self.layout.width, own, free + scalars, math.prod(self.shape))
