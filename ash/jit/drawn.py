"""The product of a weight per instance that is drawn, weighed and used in one compiled pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ash import jit
from ash.jit.tuples import draw_points, quantiles, tuple_weights


@dataclass(frozen=True)
class Plan:
    """What a draw is made of besides the tuples.

    Attributes:
        sizes, widths, counts, seed: as for `ash.jit.tuples.draw_points`.
        strides: (q, 2), what an index of a learned column adds to the flattened row and to the column.
        fixed: (k, 2), row and column of a tuple's fixed indices; no rows where there are none.
        k: tuples of an instance.
        nu: degrees of freedom of Student's t; 0 for a Gaussian.
    """

    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    counts: tuple[int, int, int, int]
    seed: int
    strides: Tensor
    fixed: Tensor
    k: int
    nu: float

    @property
    def points(self) -> int:
        """m, points of a tuple."""
        return (2 ** len(self.sizes) if self.counts[0] else 0) + sum(self.counts[1:])

    def arguments(self, values: Tensor, residuals: Tensor, scales: Tensor, anchors: Tensor, *rest: Tensor) -> list[Any]:
        """The kernels' arguments; `rest` follows the tuples and what is known of them."""
        shapes = (torch.tensor(numbers, dtype=torch.int64) for numbers in (self.sizes, self.widths, self.counts))
        value, *tuples = jit.arrays(values, anchors, residuals, scales)
        number, nu = value.dtype.type, self.nu
        law = number(nu), number(nu + len(self.sizes) if nu else 0)
        plan = (*jit.arrays(*shapes, quantiles()), self.seed)
        return [plan, tuple(tuples), value, *jit.arrays(self.strides, self.fixed), law, self.k, *jit.arrays(*rest)]


class _Product(torch.autograd.Function):
    """(values, residuals, scales, x) → y. Saves what it is given, and the seed."""

    @staticmethod
    def forward(
        values: Tensor, residuals: Tensor, scales: Tensor, x: Tensor, anchors: Tensor, plan: Plan, rows: int
    ) -> Tensor:
        from ash.jit.fused import multiply

        y = x.new_zeros(x.shape[0], rows, x.shape[2])
        given = plan.arguments(values, residuals, scales, anchors, x, y)
        jit.run(lambda _, begin, end: multiply(*given, begin, end), jit.pieces(len(x), 1))
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.plan, ctx.rows = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, residuals, scales, x, anchors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(ctx, grad)
        from ash.jit.fused import multiply_back

        d_x = torch.zeros_like(x) if ctx.needs_input_grad[3] else x.new_empty(0, *x.shape[1:])  # x may be large
        found = torch.empty_like(values), torch.empty_like(residuals), torch.zeros_like(scales), d_x
        given = ctx.plan.arguments(values, residuals, scales, anchors, x, grad)
        into = tuple(jit.arrays(*found))
        jit.run(lambda _, begin, end: multiply_back(*given, into, begin, end), jit.pieces(len(x), 1))
        return (*found[:3], d_x if ctx.needs_input_grad[3] else None, None, None, None)


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients, by way of stored points and weights, so that they have derivatives by values and x."""
    values, residuals, scales, x, anchors = ctx.saved_tensors
    plan: Plan = ctx.plan
    points = draw_points(anchors, residuals.detach(), scales.detach(), plan.sizes, plan.widths, plan.counts, plan.seed)
    weights = tuple_weights(values, residuals, scales, anchors, points, None, plan.nu, max(plan.sizes))
    b, _, e = x.shape
    at = torch.einsum("qtm,qs->stm", points, plan.strides)
    if len(plan.fixed):
        at += plan.fixed.t().repeat(1, b).unsqueeze(-1)
    rows, cols = at.reshape(2, b, -1, 1).expand(-1, -1, -1, e).unbind(0)
    products = weights.reshape(b, -1, 1) * x.gather(1, cols)
    y = x.new_zeros(b, ctx.rows, e).scatter_add(1, rows, products)
    learned = zip((values, residuals, scales, x), ctx.needs_input_grad[:4], strict=True)
    inputs = [tensor for tensor, needed in learned if needed]
    found = iter(torch.autograd.grad(y, inputs, grad, create_graph=True))
    return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:4]), None, None, None)


def product(
    values: Tensor, residuals: Tensor, scales: Tensor, anchors: Tensor, x: Tensor, plan: Plan, rows: int
) -> Tensor:
    """y (b, rows, e) of x (b, columns, e) and tuples (b, k, …); gradients to all but the anchors."""
    wide = torch.promote_types(torch.promote_types(residuals.dtype, x.dtype), torch.float32)
    flat = (values.flatten(), residuals.flatten(0, 1), scales.flatten(0, 1), x)
    tensors = (tensor.to(wide).contiguous() for tensor in flat)
    y: Tensor = _Product.apply(*tensors, anchors.flatten(0, 1).contiguous(), plan, rows)
    return y
