"""Weights of tuples whose points are made only if somebody asks for them: `DrawnWeight`, `DrawnMatrix`."""

from __future__ import annotations

import importlib
import math
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash import jit
from ash.contexts import Context
from ash.jit.arranged import arranged
from ash.jit.drawn import Plan, product
from ash.jit.tuples import EXACT, MOST, draw_points, tuple_weights
from ash.kernels import Gaussian, Kernel, StudentT
from ash.pattern import ArrangedPattern, CSRPattern, pointers
from ash.sampling import Sampling, counts, new_seed, widths
from ash.template import Admissible, Template
from ash.tuples import IndexTuples
from ash.weight import SparseWeight


class _Drawn(SparseWeight):
    """A draw of tuples (*b, k, …), context `"tuple"`. `indices` and `values` are made when they are first asked for."""

    def __init__(
        self,
        tuples: IndexTuples,
        fixed: Tensor,
        template: Template,
        out_shape: tuple[int, ...],
        in_shape: tuple[int, ...],
        plan: Plan,
    ):
        given = {"tuples": tuples, "template": template, "fixed": fixed, "plan": plan}
        absent = {"cached_pattern": None, "candidate": None}
        for name, value in {**given, **absent, "out_shape": out_shape, "in_shape": in_shape}.items():
            object.__setattr__(self, name, value)

    tuples: IndexTuples
    template: Template
    fixed: Tensor
    plan: Plan

    @property
    def per_instance(self) -> bool:
        return self.tuples.values.dim() == 2

    @property
    def entries(self) -> int:
        return self.plan.k * self.plan.points

    @cached_property
    def _points(self) -> Int64[Tensor, "q t m"]:
        own, plan = self.tuples, self.plan
        anchors, residuals, scales = (t.detach().flatten(0, -2) for t in (own.anchors, own.residuals, own.scales))
        return draw_points(anchors, residuals, scales, plan.sizes, plan.widths, plan.counts, plan.seed)

    @cached_property
    def indices(self) -> Int64[Tensor, "*b n r"]:
        points = self._points.unflatten(1, self.tuples.values.shape).movedim(0, -1)
        return self.template.fill(points, self.fixed).flatten(-3, -2)

    @cached_property
    def values(self) -> Float[Tensor, "*b n"]:
        own = self.tuples
        residuals, scales, anchors = (t.flatten(0, -2) for t in (own.residuals, own.scales, own.anchors))
        nu, extent = self.plan.nu, max(self.plan.sizes)
        weights = tuple_weights(own.values.flatten(), residuals, scales, anchors, self._points, None, nu, extent)
        return weights.unflatten(0, own.values.shape).flatten(-2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.out_shape} x {self.in_shape}, tuples={tuple(self.tuples.values.shape)})"


class DrawnWeight(_Drawn):
    """What a draw of tuples (b, k, …) gives: a weight per instance.

    `multiply` draws, weighs and contracts block by block, and stores nothing of the size b · k · m.
    """

    def multiply(self, x: Float[Tensor, "b i e"]) -> Float[Tensor, "b o e"]:
        """W · x, instance by instance."""
        own = self.tuples
        y = product(own.values, own.residuals, own.scales, own.anchors, x, self.plan, self.matrix_shape[0])
        return y.to(x.dtype)


class DrawnMatrix(_Drawn):
    """What a draw of tuples (k, …) gives: a shared weight, drawn and weighed into its CSR arrays."""

    @cached_property
    def _arrays(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        own, fixed = self.tuples, self.plan.fixed
        rows = fixed[:, 0] if len(fixed) and not self.plan.strides[:, 0].any() else None
        crow = None
        if rows is not None and bool((rows[1:] >= rows[:-1]).all()):
            crow = pointers(rows, self.matrix_shape[0]) * self.plan.points
        return arranged(own.values, own.residuals, own.scales, own.anchors, crow, self.plan, self.matrix_shape)

    @cached_property
    def pattern(self) -> CSRPattern:
        _, crow, col, where = self._arrays
        return ArrangedPattern(crow, col, where, self.matrix_shape)

    def arranged(self) -> Float[Tensor, " n"]:
        return self._arrays[0]


def draw_weight(
    tuples: IndexTuples,
    fixed: Int64[Tensor, "k f"],
    out_shape: tuple[int, ...],
    in_shape: tuple[int, ...],
    *,
    sampling: Sampling,
    kernel: Kernel,
    context: Context,
    template: Template,
    admissible: Admissible,
    generator: torch.Generator,
) -> DrawnWeight | DrawnMatrix | None:
    """A draw of tuples (k, …), or for each instance of (b, k, …); None where it is not to be had.

    For the context `"tuple"` without an admissible set, a Gaussian or Student's t, and work on the CPU that is
    large enough for compiled kernels. Guided and kept samples are uniform.
    """
    if tuples.values.is_cuda:
        fuse = importlib.import_module("ash.backends.triton.weight").fuse  # above this file, and for GPUs alone
        given = {"sampling": sampling, "kernel": kernel, "context": context, "template": template}
        drawn: DrawnWeight | None = fuse(
            tuples, fixed, out_shape, in_shape, **given, admissible=admissible, generator=generator
        )
        return drawn
    sizes = template.sizes((*out_shape, *in_shape))
    m = sampling.points(len(sizes))
    fits = context.name == "tuple" and admissible.everything and bool(sizes) and tuples.values.numel() > 0
    known = type(kernel) in (Gaussian, StudentT) and m <= MOST and max(sizes, default=0) <= EXACT
    if not (fits and known and jit.serves(tuples.values.numel() * m, tuples.residuals, tuples.scales, tuples.values)):
        return None
    strides, offsets = _flattening(template, fixed, out_shape, in_shape)
    plan = Plan(
        sizes=sizes,
        widths=widths(sampling, sizes),
        counts=counts(sampling),
        seed=new_seed(tuples.values.device, generator),
        strides=strides,
        fixed=offsets,
        k=tuples.k,
        nu=kernel.nu if isinstance(kernel, StudentT) else 0.0,
    )
    kind = DrawnWeight if tuples.values.dim() == 2 else DrawnMatrix
    return kind(tuples, fixed, template, out_shape, in_shape, plan)


def _flattening(
    template: Template, fixed: Tensor, out_shape: tuple[int, ...], in_shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """What an index of each learned column adds to (row, column) of the matrix; the fixed columns' part."""
    r = len(out_shape)
    steps = [(math.prod(out_shape[j + 1 :]), 0) for j in range(r)]
    steps += [(0, math.prod(in_shape[j + 1 :])) for j in range(len(in_shape))]
    strides = torch.tensor([steps[j] for j in template.learned], dtype=torch.int64)
    if not template.columns:
        return strides, torch.zeros(0, 2, dtype=torch.int64)
    return strides, fixed @ torch.tensor([steps[j] for j in template.columns], dtype=torch.int64)
