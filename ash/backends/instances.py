"""Products of one sparse matrix per instance, as operators that are closed under differentiation.

    y = instance_matmul(W, x)     dL/dx = instance_matmul(Wᵀ, g)     dL/dW = instance_sddmm(g, x) at W's entries

The derivative of each is made of the two again, and what they save is proportional to the entries, also where
extra dimensions share the weight. There is no loop over the batch and no block-diagonal matrix: entries stay
(b, n). Large CPU products run in compiled kernels, others gather and scatter.
"""

from typing import Any

import torch
from torch import Tensor

from ash import jit
from ash.backends.operator import operator

GATHER_BLOCK = 1 << 22
"""Numbers gathered at a time."""


def _compiled(entries: Tensor, x: Tensor) -> bool:
    kind = x.dtype in (torch.float32, torch.float64)
    return kind and x.shape[2] > 0 and jit.serves(entries.numel() * x.shape[2], x)


def _blocks(n: int, x: Tensor) -> list[slice]:
    step = max(1, GATHER_BLOCK // max(1, x.shape[0] * x.shape[2]))
    return [slice(i, i + step) for i in range(0, n, step)]


def _take(x: Tensor, ids: Tensor) -> Tensor:
    """(b, positions, e) at (b, n) -> (b, n, e)."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[2]))


@operator("instance_matmul(Tensor values, Tensor rows, Tensor cols, Tensor x, int size) -> Tensor")
def instance_matmul(values: Tensor, rows: Tensor, cols: Tensor, x: Tensor, size: int) -> Tensor:
    """Entries (b, n) of a (size × columns) matrix per instance, (b, columns, e) -> (b, size, e)."""
    y = x.new_zeros(x.shape[0], size, x.shape[2])
    if _compiled(values, x):
        from ash.jit.instances import multiply

        given = jit.arrays(values, rows, cols, x, y)
        jit.run(lambda _, begin, end: multiply(*given, begin, end), jit.pieces(len(x), 1))
        return y
    for part in _blocks(values.shape[1], x):
        products = _take(x, cols[:, part]).mul_(values[:, part, None])
        y.scatter_add_(1, rows[:, part, None].expand_as(products), products)
    return y


@operator("instance_sddmm(Tensor g, Tensor x, Tensor rows, Tensor cols) -> Tensor")
def instance_sddmm(g: Tensor, x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """(b, size, e), (b, columns, e) -> the entries (b, n) of g · xᵀ, instance by instance."""
    entries = x.new_empty(rows.shape)
    if _compiled(entries, x):
        from ash.jit.instances import sample

        given = jit.arrays(g, x, rows, cols, entries)
        jit.run(lambda _, begin, end: sample(*given, begin, end), jit.pieces(len(x), 1))
        return entries
    for part in _blocks(rows.shape[1], x):
        products = _take(g, rows[:, part]).mul_(_take(x, cols[:, part]))
        entries[:, part] = products.squeeze(-1) if x.shape[2] == 1 else products.sum(-1)
    return entries


@instance_matmul.register_fake
def _(values, rows, cols, x, size):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], size, x.shape[2])


@instance_sddmm.register_fake
def _(g, x, rows, cols):  # type: ignore[no-untyped-def]
    return x.new_empty(rows.shape)


def _matmul_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, rows, cols, x = ctx.saved_tensors
    d_values = instance_sddmm(grad, x, rows, cols) if ctx.needs_input_grad[0] else None
    d_x = instance_matmul(values, cols, rows, grad, x.shape[1]) if ctx.needs_input_grad[3] else None
    return d_values, None, None, d_x, None


def _sddmm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    g, x, rows, cols = ctx.saved_tensors
    d_g = instance_matmul(grad, rows, cols, x, g.shape[1]) if ctx.needs_input_grad[0] else None
    d_x = instance_matmul(grad, cols, rows, g, x.shape[1]) if ctx.needs_input_grad[1] else None
    return d_g, d_x, None, None


instance_matmul.register_autograd(_matmul_backward, setup_context=_matmul_context)
instance_sddmm.register_autograd(_sddmm_backward, setup_context=_sddmm_context)
