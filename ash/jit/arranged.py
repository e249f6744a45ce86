"""A shared weight that is drawn, weighed and put row by row in compiled passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ash import jit
from ash.jit.drawn import Plan

INT32_MAX = 2**31 - 1


class _Arranged(torch.autograd.Function):
    """(values, residuals, scales) of tuples → weights of their points row by row; row pointers, columns, places.

    The points are drawn again in the backward pass. `crow` says that the tuples come row by row, else it is empty.
    """

    @staticmethod
    def forward(
        values: Tensor, residuals: Tensor, scales: Tensor, anchors: Tensor, crow: Tensor, plan: Plan,
        shape: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        from ash.jit.rows import draw

        known, parts = len(crow) > 0, _parts(plan)
        rows, cols, weights, counts = _blank(values, plan, shape, len(parts), known)
        given, found = plan.arguments(values, residuals, scales, anchors), jit.arrays(rows, cols, weights)
        counted = counts.numpy()
        jit.run(lambda i, begin, end: draw(*given, *found, counted[i], begin, end), parts)
        if known:
            return weights, crow, cols, rows
        return _put(rows, cols, weights, counts, [(begin * plan.points, end * plan.points) for begin, end in parts])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, ctx.plan, _ = inputs
        ctx.save_for_backward(*tensors, output[3])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros for the integers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        from ash.jit.rows import draw_back

        if grad is None:
            return (None,) * 7
        values, residuals, scales, anchors, where = ctx.saved_tensors
        found = torch.empty_like(values), torch.empty_like(residuals), torch.zeros_like(scales)
        given = ctx.plan.arguments(values, residuals, scales, anchors, where, grad)
        into = tuple(jit.arrays(*found))
        jit.run(lambda _, begin, end: draw_back(*given, into, begin, end), _parts(ctx.plan))
        return (*found, None, None, None, None)


def _blank(values: Tensor, plan: Plan, shape: tuple[int, int], parts: int, known: bool) -> list[Tensor]:
    """Room for rows, columns (int32 where they fit) and weights of all points; zeros to count the rows by."""
    n, kind = plan.k * plan.points, _kind(plan, shape)
    rows, cols = (torch.empty(size, dtype=kind) for size in (0 if known else n, n))
    return [rows, cols, values.new_empty(n), jit.blank(kind, parts, 0 if known else shape[0]).zero_()]


def _kind(plan: Plan, shape: tuple[int, int]) -> torch.dtype:
    return torch.int32 if max(*shape, plan.k * plan.points) <= INT32_MAX else torch.int64


def _parts(plan: Plan) -> jit.Pieces:
    from ash.jit.points import LANES

    return jit.pieces(plan.k, LANES, jit.PIECE // plan.points)


def _put(
    rows: Tensor, cols: Tensor, weights: Tensor, counts: Tensor, parts: jit.Pieces
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights row by row, row pointers, columns, and where every entry now stands (in the memory of `rows`)."""
    from ash.jit.counting import starts
    from ash.jit.rows import arrange

    crow = counts.new_empty(counts.shape[1] + 1)
    col, ordered = (jit.blank(given.dtype, len(given)) for given in (cols, weights))
    places = counts.numpy()
    starts(places, crow.numpy())
    given = jit.arrays(rows, cols, weights)
    found = jit.arrays(col, ordered)
    jit.run(lambda i, begin, end: arrange(*given, places[i], *found, begin, end), parts)
    return ordered, crow, col, rows


def arranged(
    values: Tensor, residuals: Tensor, scales: Tensor, anchors: Tensor, crow: Tensor | None, plan: Plan,
    shape: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """The CSR arrays of a draw of tuples (k, …): weights, row pointers, columns; where every point stands in them.

    Point c of tuple t is entry t · m + c. `crow`: the row pointers where that is the CSR order already; nothing is
    moved then, and the last result is None. Gradients flow from the weights to values, residuals and scales.
    """
    wide = torch.promote_types(residuals.dtype, torch.float32)
    learned = (tensor.to(wide).contiguous() for tensor in (values, residuals, scales))
    known = torch.zeros(0) if crow is None else crow.to(_kind(plan, shape))
    weights, ends, col, where = _Arranged.apply(*learned, anchors.contiguous(), known, plan, shape)
    return weights.to(values.dtype), ends, col, where if crow is None else None
