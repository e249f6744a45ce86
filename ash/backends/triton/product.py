"""The product of a weight that is drawn, weighed and used in one pass, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.backends.triton.launch import Launch, Tuples
from ash.backends.triton.plan import Plan, flattened
from ash.tuples import IndexTuples


def _kernels(plan: Plan) -> Any:
    if plan.context.name == "tuple":
        from ash.backends.triton import own

        return own
    from ash.backends.triton import chunks

    return chunks


class _Product(torch.autograd.Function):
    """(values, residuals, scales, x) → y. Saves what it is given, and the seed."""

    @staticmethod
    def forward(values: Tensor, residuals: Tensor, scales: Tensor, x: Tensor, anchors: Tensor, plan: Plan) -> Tensor:
        b, k = values.shape
        y = values.new_zeros(b, math.prod(plan.out_shape), x.shape[2])
        if y.numel() and x.numel() and k:
            tuples = Tuples.of(values, residuals, scales, anchors)
            Launch(plan, tuples, b, k, x.shape[2]).run(_kernels(plan).multiply, [x.contiguous(), y])
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.plan = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, residuals, scales, x, anchors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(ctx, grad)
        wanted = ctx.needs_input_grad[3]
        (b, k), q, s = values.shape, residuals.shape[-1], scales.shape[-1]
        found = [values.new_zeros(shape) for shape in ((b, k), (b, k, q), (b, k, s))]
        d_x = values.new_zeros(x.shape if wanted else (1,))
        if grad.numel() and x.numel() and k:
            given = [x.contiguous(), grad.contiguous(), *found, d_x]
            launch = Launch(ctx.plan, Tuples.of(values, residuals, scales, anchors), b, k, x.shape[2])
            launch.run(_kernels(ctx.plan).multiply_back, given, X=wanted)
        return (*found, d_x.to(x.dtype) if wanted else None, None, None)


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients, by way of stored points and weights, so that they have derivatives by values and x."""
    values, residuals, scales, x, anchors = ctx.saved_tensors
    plan: Plan = ctx.plan
    tuples = IndexTuples(anchors, residuals, scales, values)
    points = plan.points(tuples)
    weights = plan.weights(tuples, points).flatten(1, 2).unsqueeze(-1)
    rows, cols = _lines(plan, points)
    e = x.shape[2]
    products = weights * x.to(weights.dtype).gather(1, cols.unsqueeze(-1).expand(-1, -1, e))
    y = products.new_zeros(len(x), math.prod(plan.out_shape), e)
    y = y.scatter_add(1, rows.unsqueeze(-1).expand(-1, -1, e), products)
    learned = zip((values, residuals, scales, x), ctx.needs_input_grad[:4], strict=True)
    found = iter(torch.autograd.grad(y, [tensor for tensor, needed in learned if needed], grad, create_graph=True))
    return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:4]), None, None)


def _lines(plan: Plan, points: Int64[Tensor, "b k m q"]) -> tuple[Tensor, Tensor]:
    """Rows and columns (b, k·m) of the matrix where points lie."""
    lines = flattened(points, plan.steps(plan.template.learned))
    starts = plan.starts()
    if starts is not None:
        lines = lines + starts[:, None]
    rows, cols = lines.flatten(1, 2).unbind(-1)
    return rows, cols


def product(tuples: IndexTuples, x: Float[Tensor, "b i e"], plan: Plan) -> Float[Tensor, "b o e"]:
    """y of x and tuples (b, k, …), one weight for each of the b; gradients to all but the anchors.

    Computed, and added up, in float32 (float64 where the tuples or x are); x may be narrower.
    """
    wide = torch.promote_types(torch.promote_types(tuples.residuals.dtype, x.dtype), torch.float32)
    learned = (tensor.to(wide) for tensor in (tuples.values, tuples.residuals, tuples.scales))
    y: Tensor = _Product.apply(*learned, x, tuples.anchors, plan)
    return y
