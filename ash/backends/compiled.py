"""CSR product, its transpose and SDDMM for a batch that lies row by row, compiled by numba for the CPU.

    y = rows_matmul(W, x) = x Wᵀ + bias      dL/dx = rows_matmul_back(W, g) = g W      dL/dW = rows_sddmm(g, x)

Each operator's derivative is made of the three. None needs the structure of the transpose; where it is known,
dL/dx = rows_matmul(Wᵀ, g), which reads where `rows_matmul_back` reads and writes. `serves` says where they
beat the library's CSR product; without numba it is False everywhere.
"""

import os
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ash.backends.operator import operator
from ash.jit import Pieces, arrays, blank, pieces, run
from ash.jit import available as has_numba

LEAST_BATCH = 16
"""Below, most lanes of a block would be empty."""
LEAST_WORK = 5_000_000
"""Entries × batch below which a step is so short that loading numba (seconds) is not worth what it saves."""

WIDTHS = (256, 128)
"""Bytes of a row of a block. Wide ones share the reading of an entry among more of the batch."""
WIDE_BLOCK = 1 << 19
"""Bytes of a block, which is read in any order and has to stay in the second-level cache, for the wider rows."""
STRIP = 1 << 16
"""Bytes of the rows or columns that are turned at once; they leave room for the block in the cache."""

enabled = True
"""False keeps the compiled kernels out of use."""


def available() -> bool:
    """Whether numba is there and compiles: what the kernels are made of cannot be run as Python."""
    return has_numba() and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"


@cache
def _lanes() -> ModuleType:
    from ash.backends import lanes

    return lanes


def _blocks(x: Tensor) -> int:
    """Blocks of the batch, the last of which may be part empty, where rows are narrow."""
    return -(-x.shape[0] * x.element_size() // WIDTHS[1])


def serves(nnz: int, x: Tensor) -> bool:
    """Whether the operators serve, and pay, for a batch x `(b, columns)` and a matrix of nnz entries.

    They split the batch alone among threads: with more than two threads for every block of the batch, a
    product that splits rows is ahead.
    """
    if not (enabled and x.is_cpu and x.dtype in (torch.float32, torch.float64) and x.is_contiguous()):
        return False
    if x.shape[0] < LEAST_BATCH or nnz * x.shape[0] < LEAST_WORK or not available():
        return False
    return torch.get_num_threads() <= 2 * _blocks(x)


def _width(x: Tensor, columns: int) -> int:
    """Bytes of a row of a block: wide where the block stays small and every thread has a block all the same."""
    wide, narrow = WIDTHS
    whole = x.shape[0] * x.element_size() >= wide * torch.get_num_threads()
    return wide if whole and columns * wide <= WIDE_BLOCK else narrow


def _spaces(x: Tensor, columns: int) -> tuple[Pieces, list[tuple[Any, ...]]]:
    """The batch in runs of whole blocks, one for each thread, and the kernels' block, strip and width for each."""
    width = _width(x, columns)
    lanes, registers = width // x.element_size(), (0,) * (width // _lanes().REGISTER)
    split = pieces(x.shape[0], lanes)
    rooms = blank(x.dtype, len(split), columns + STRIP // width, lanes).numpy()
    return split, [(room[:columns], room[columns:], registers) for room in rooms]


def _product(kernel: Any, matrix: tuple[Tensor, ...], x: Tensor, size: int, columns: int) -> Tensor:
    y = blank(x.dtype, x.shape[0], size)
    if not y.numel():
        return y
    split, spaces = _spaces(x, columns)
    given = arrays(*matrix, x, y)
    run(lambda i, begin, end: kernel(*given, *spaces[i], begin, end), split)
    return y


@operator(
    "rows_matmul(Tensor values, Tensor crow, Tensor col, "
    "Tensor x, Tensor? t_crow=None, Tensor? t_col=None, Tensor? t_order=None, Tensor? bias=None) -> Tensor"
)
def rows_matmul(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    t_crow: Tensor | None = None,
    t_col: Tensor | None = None,
    t_order: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """(rows × columns in CSR), (b, columns) -> x · Wᵀ + bias, (b, rows). `t_…`: the transpose's structure, if known."""
    start = x.new_empty(0) if bias is None else bias.contiguous()
    return _product(_lanes().multiply, (values, crow, col, start), x, len(crow) - 1, x.shape[1])


@operator("rows_matmul_back(Tensor values, Tensor crow, Tensor col, Tensor g, int columns) -> Tensor")
def rows_matmul_back(values: Tensor, crow: Tensor, col: Tensor, g: Tensor, columns: int) -> Tensor:
    """(rows × columns in CSR), (b, rows) -> g · W, (b, columns)."""
    return _product(_lanes().multiply_back, (values, crow, col), g, columns, columns)


@operator("rows_sddmm(Tensor g, Tensor x, Tensor crow, Tensor col) -> Tensor")
def rows_sddmm(g: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """(b, rows), (b, columns) -> the entries of gᵀ · x at a CSR structure, in its order."""
    if not len(col) or not len(x):
        return x.new_zeros(len(col))
    split, spaces = _spaces(x, x.shape[1])
    parts = blank(x.dtype, len(split), len(col))
    *given, sums = arrays(g, x, crow, col, parts)
    kernel = _lanes().sample
    run(lambda i, begin, end: kernel(*given, sums[i], *spaces[i], begin, end), split)
    return parts.sum(0) if len(split) > 1 else parts.squeeze(0)


@rows_matmul.register_fake
def _(values, crow, col, x, t_crow=None, t_col=None, t_order=None, bias=None):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], crow.shape[0] - 1)


@rows_matmul_back.register_fake
def _(values, crow, col, g, columns):  # type: ignore[no-untyped-def]
    return g.new_empty(g.shape[0], columns)


@rows_sddmm.register_fake
def _(g, x, crow, col):  # type: ignore[no-untyped-def]
    return x.new_empty(col.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, crow, col, x, t_crow, t_col, t_order, _ = ctx.saved_tensors
    d_values = rows_sddmm(grad, x, crow, col) if ctx.needs_input_grad[0] else None
    d_x = None
    if ctx.needs_input_grad[3] and t_crow is not None:
        d_x = rows_matmul(values.index_select(0, t_order), t_crow, t_col, grad)
    elif ctx.needs_input_grad[3]:
        d_x = rows_matmul_back(values, crow, col, grad, x.shape[1])
    d_bias = grad.sum(0) if any(ctx.needs_input_grad[7:]) else None  # arguments that are left out are not counted
    return d_values, None, None, d_x, None, None, None, d_bias


def _back_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, crow, col, g = ctx.saved_tensors
    d_values = rows_sddmm(g, grad, crow, col) if ctx.needs_input_grad[0] else None
    d_g = rows_matmul(values, crow, col, grad) if ctx.needs_input_grad[3] else None
    return d_values, None, None, d_g, None


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    g, x, crow, col = ctx.saved_tensors
    d_g = rows_matmul(grad, crow, col, x) if ctx.needs_input_grad[0] else None
    d_x = rows_matmul_back(grad, crow, col, g, x.shape[1]) if ctx.needs_input_grad[1] else None
    return d_g, d_x, None, None


rows_matmul.register_autograd(_matmul_backward, setup_context=_save_all)
rows_matmul_back.register_autograd(_back_backward, setup_context=_save)
rows_sddmm.register_autograd(_sddmm_backward, setup_context=_save)
