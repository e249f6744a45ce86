"""`FusedWeight`: a weight that exists only while Triton's kernels multiply with it."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.backends.triton.plan import CHUNK, Ordered, Plan
from ash.backends.triton.points import LARGEST, Places
from ash.backends.triton.product import product
from ash.backends.triton.serving import serves
from ash.contexts import Context
from ash.drawn import DrawnWeight
from ash.kernels import Gaussian, Kernel, StudentT
from ash.sampling import Sampling, counts, widths
from ash.template import Admissible, Template
from ash.tuples import IndexTuples

COLUMNS, MOST = 4, 32
"""Learned columns, and points of a tuple, that fit the registers of a thread."""


class FusedWeight(DrawnWeight):
    """What a draw of tuples gives, shared (k, …) or per instance (b, k, …).

    `multiply` draws, weighs and multiplies in one pass and stores nothing of the size k · m; its backward pass draws
    the same points again from the seed, which stays on the device. `indices` and `values` are the same draw, made
    in plain torch when they are first asked for.
    """

    def __init__(self, tuples: IndexTuples, plan: Plan):
        given = {"tuples": tuples, "plan": plan, "template": plan.template, "fixed": plan.fixed}
        absent = {"cached_pattern": None, "candidate": None}
        shapes = {"out_shape": plan.out_shape, "in_shape": plan.in_shape}
        for name, value in {**given, **absent, **shapes}.items():
            object.__setattr__(self, name, value)

    plan: Plan  # type: ignore[assignment]

    @property
    def per_instance(self) -> bool:
        return self.tuples.values.dim() == 2

    @property
    def entries(self) -> int:
        return self.tuples.k * self.plan.places.m

    @cached_property
    def _points(self) -> Int64[Tensor, "*b k m q"]:
        return self.plan.points(self.tuples)

    @cached_property
    def indices(self) -> Int64[Tensor, "*b n r"]:
        return self.plan.template.fill(self._points, self.plan.fixed).flatten(-3, -2)

    @cached_property
    def values(self) -> Float[Tensor, "*b n"]:
        return self.plan.weights(self.tuples, self._points).flatten(-2)

    def multiply(self, x: Float[Tensor, "b i e"]) -> Float[Tensor, "b o e"]:
        """W · x. For a shared weight the batch and the last dimension become columns of one matrix."""
        if self.per_instance:
            return product(self.tuples, x, self.plan).to(x.dtype)
        own, (b, i, e) = self.tuples, x.shape
        parts = (part.unsqueeze(0) for part in (own.anchors, own.residuals, own.scales, own.values))
        columns = x.permute(1, 0, 2).reshape(1, i, b * e)
        y = product(IndexTuples(*parts), columns, self.plan).to(x.dtype)
        return y.reshape(self.matrix_shape[0], b, e).transpose(0, 1).contiguous()

    def __repr__(self) -> str:
        return f"FusedWeight({self.out_shape} x {self.in_shape}, tuples={tuple(self.tuples.values.shape)})"


def fuse(
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
) -> FusedWeight | None:
    """A draw on a GPU that is never stored; None where it is not to be had.

    For the contexts `"tuple"` and `"chunk"` (up to 128 tuples), all entries admissible, a Gaussian or Student's t,
    up to four learned columns of at most 2^31 indices and 32 points. Guided and kept samples are uniform.
    """
    sizes = template.sizes((*out_shape, *in_shape))
    fits = 0 < len(sizes) <= COLUMNS and max(sizes) <= LARGEST and sampling.points(len(sizes)) <= MOST
    fits = fits and admissible.everything and type(kernel) in (Gaussian, StudentT)
    if not (fits and context.size(tuples.k) <= CHUNK and serves(tuples.residuals, tuples.values)):
        return None
    places, device = Places(sizes, widths(sampling, sizes), counts(sampling)), tuples.values.device
    order = context.order(tuples.k, generator, device)
    ordered = Ordered(context.name, context.chunk_size, context.shuffle, given=order)
    seed = torch.randint(0, 2**63 - 1, (1,), device=device, generator=generator)
    return FusedWeight(tuples, Plan(places, template, fixed, out_shape, in_shape, ordered, kernel, seed))
