"""Points of index tuples and their weights by compiled kernels, where every tuple is a context of its own."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ash import jit

CELLS = 10
"""log2 of the number of cells of the table of normal quantiles."""

LARGEST = 1 << 50
"""Sizes of index columns up to here fit the kernels' float64 and leave room to round."""

MOST = 32
"""Points of a tuple up to which comparing all pairs finds duplicates fastest."""

EXACT = 1 << 24
"""Up to this distance a float32 holds every integer."""


@cache
def quantiles() -> Tensor:
    """Where the cells of the normal distribution that the kernels draw from begin and end, float64.

    All cells are as likely, and a number is uniform within its cell. The two ends, at ±3.6, make its variance 1;
    nothing is drawn beyond them.
    """
    count = 1 << CELLS
    knots = torch.special.ndtri(torch.arange(count + 1, dtype=torch.float64) / count)
    inner, last = knots[1:-1], float(knots[-2])
    inside = float((inner[1:] ** 2 + inner[1:] * inner[:-1] + inner[:-1] ** 2).sum() / 3)
    outside = 3 * (count - inside) / 2 - last**2  # = last · end + end²
    knots[-1] = (-last + (last**2 + 4 * outside) ** 0.5) / 2
    knots[0] = -knots[-1]
    return knots


def draw_points(
    anchors: Tensor, residuals: Tensor, scales: Tensor, sizes: tuple[int, ...], widths: tuple[int, ...],
    plan: tuple[int, int, int, int], seed: int,
) -> Tensor:  # fmt: skip
    """Points (q, tuples, m), int64, of tuples (tuples, q); a function of the seed, for any number of threads.

    `plan`: whether there are corners, numbers of uniform, local and again uniform points. `widths`: of the window
    of local points in every column, 0 for normal ones. At sizes up to 2^16 the chance of a uniform position is off
    by 2^-16 of itself at most; beyond, by size / 2^63.
    """
    from ash.jit.points import LANES, draw

    q, m = len(sizes), (2 ** len(sizes) if plan[0] else 0) + sum(plan[1:])
    points = torch.empty(q, len(anchors), m, dtype=torch.int64)
    shapes = (torch.tensor(numbers, dtype=torch.int64) for numbers in (sizes, widths, plan))
    wide = torch.promote_types(residuals.dtype, torch.float32)
    given = jit.arrays(anchors, residuals.to(wide), scales.to(wide), *shapes, quantiles())
    (found,) = jit.arrays(points)
    parts = jit.pieces(len(anchors), LANES, jit.PIECE // max(1, m))
    jit.run(lambda _, begin, end: draw(*given, seed, found, begin, end), parts)
    return points


class _TupleWeights(torch.autograd.Function):
    """(values, residuals, scales) of tuples → weights of their points (tuples, m)."""

    @staticmethod
    def forward(
        values: Tensor, residuals: Tensor, scales: Tensor, anchors: Tensor, points: Tensor, dead: Tensor, nu: float
    ) -> Tensor:
        from ash.jit.points import weigh

        weights = values.new_empty(points.shape[1:])
        given = _arrays(values, residuals, scales, anchors, points, dead, nu)
        _run(weigh, given, jit.arrays(weights), points)
        return weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.nu = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from ash.jit.points import weigh_back

        values, residuals, scales, anchors, points, dead = ctx.saved_tensors
        found = torch.empty_like(values), torch.empty_like(residuals), torch.zeros_like(scales)
        given = _arrays(values, residuals, scales, anchors, points, dead, ctx.nu)
        _run(weigh_back, given, jit.arrays(grad, *found), points)
        return (*found, None, None, None, None)


def _arrays(
    values: Tensor, residuals: Tensor, scales: Tensor, anchors: Tensor, points: Tensor, dead: Tensor, nu: float
) -> list[Any]:
    """The kernels' first arguments."""
    given = jit.arrays(points, dead, anchors, residuals, scales, values)
    number = given[-1].dtype.type
    return [*given, number(nu), number(nu + len(points) if nu else 0)]


def _run(kernel: Any, given: list[Any], found: list[Any], points: Tensor) -> None:
    from ash.jit.points import LANES

    parts = jit.pieces(points.shape[1], LANES, jit.PIECE // max(1, points.shape[2]))
    jit.run(lambda _, begin, end: kernel(*given, *found, begin, end), parts)


def tuple_weights(
    values: Tensor, residuals: Tensor, scales: Tensor, anchors: Tensor, points: Tensor, dead: Tensor | None,
    nu: float, extent: int,
) -> Tensor:  # fmt: skip
    """Weights (tuples, m): each tuple's value divided over its own points (q, tuples, m), duplicates once.

    Args:
        values, residuals, scales, anchors: (tuples,), (tuples, q), (tuples, 1 or q), (tuples, q).
        dead: (tuples, m), points that get nothing; None where there are none.
        nu: degrees of freedom of Student's t; 0 for a Gaussian.
        extent: the largest size of an index column, at most `LARGEST`.

    Gradients flow to values, residuals and scales.
    """
    wide = torch.float64 if extent > EXACT else torch.promote_types(residuals.dtype, torch.float32)
    learned = (tensor.to(wide).contiguous() for tensor in (values, residuals, scales))
    dead = torch.zeros(0, points.shape[2], dtype=torch.bool) if dead is None else dead
    weights: Tensor = _TupleWeights.apply(*learned, anchors.contiguous(), points.contiguous(), dead, nu)
    return weights.to(values.dtype)
