"""CSR product and SDDMM from torch, as custom operators that are closed under differentiation.

    y = csr_matmul(W, x)          dL/dx = csr_matmul(Wᵀ, g)      dL/dW = csr_sddmm(g, x) at W's entries

The derivative of each is made of the two again, so second derivatives work. Without MKL (ARM, macOS) the
same operators gather and add. A batch that lies row by row goes to `ash.backends.compiled` where that serves.
"""

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

from ash.backends import compiled
from ash.backends.base import Backend, plus
from ash.backends.operator import operator
from ash.weight import SparseWeight

GATHER_BLOCK = 1 << 22
"""Numbers gathered at a time where there is no CSR product."""

with warnings.catch_warnings():  # said once a process, and not by us to our users
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))

native = torch.backends.mkl.is_available()
"""Whether torch's own CSR product and SDDMM serve on the CPU; False switches to gathering."""


def _runs_natively(x: Tensor) -> bool:
    return (native or x.is_cuda) and x.dtype in (torch.float32, torch.float64)


def _own(name: str, x: Tensor) -> Any:
    """The library's own kernel for GPUs where it is the one to take, else None."""
    if not x.is_cuda:
        return None
    own = importlib.import_module("ash.backends.triton.csr")
    return getattr(own, name) if own.wanted(name, x) else None


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def _row_of(crow: Tensor, count: int) -> Tensor:
    rows = torch.arange(len(crow) - 1, device=crow.device)
    return rows.repeat_interleave(crow.diff().long(), output_size=count)


@operator(
    "csr_matmul(Tensor values, Tensor crow, Tensor col, "
    "Tensor x, Tensor? t_crow, Tensor? t_col, Tensor? t_order) -> Tensor"
)
def csr_matmul(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    t_crow: Tensor | None,
    t_col: Tensor | None,
    t_order: Tensor | None,
) -> Tensor:
    """(rows × cols in CSR) · (cols, e) -> (rows, e). `t_…` is the transpose's structure, if it is known."""
    rows = len(crow) - 1
    if not len(values) or not x.numel():
        return x.new_zeros(rows, x.shape[1])
    own = _own("matmul", x)
    if own is not None:
        return own(values, crow, col, x)
    if _runs_natively(x):
        return _native_matmul(_csr(crow, col, values, (rows, x.shape[0])), x)
    return _gather_matmul(values, crow, col, x)


def _native_matmul(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix · x, written once: `matrix @ x` fills its result with zeros and copies it besides."""
    y = x.new_empty(matrix.shape[0], x.shape[1])
    return torch.addmm(y, matrix, x.contiguous(), beta=0.0, out=y)


def _gather_matmul(values: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    y = x.new_zeros(len(crow) - 1, x.shape[1], dtype=wide)
    row, step = _row_of(crow, len(values)), max(1, GATHER_BLOCK // x.shape[1])
    for i in range(0, len(values), step):
        part = slice(i, i + step)
        y.index_add_(0, row[part], values[part, None].to(wide) * x[col[part]].to(wide))
    return y.to(x.dtype)


@csr_matmul.register_fake
def _(values, crow, col, x, t_crow, t_col, t_order):  # type: ignore[no-untyped-def]
    return x.new_empty(crow.shape[0] - 1, x.shape[1])


@operator("csr_sddmm(Tensor g, Tensor x, Tensor crow, Tensor col) -> Tensor")
def csr_sddmm(g: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """(rows, e), (cols, e) -> the entries of g · xᵀ at a CSR structure, in its order."""
    if not len(col) or not x.numel():
        return x.new_zeros(len(col))
    if len(col) > g.shape[0] * x.shape[0]:  # sampled_addmm refuses more entries than positions
        return (g @ x.t()).flatten()[_row_of(crow, len(col)) * x.shape[0] + col]
    own = _own("sddmm", x)
    if own is not None:
        return own(g, x, crow, col)
    if _runs_natively(x):
        blank = _csr(crow, col, x.new_zeros(len(col)), (g.shape[0], x.shape[0]))
        torch.sparse.sampled_addmm(blank, g.contiguous(), x.contiguous().t(), beta=0.0, out=blank)
        return blank.values()
    return _gather_sddmm(g, x, crow, col)


def _gather_sddmm(g: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    row, step = _row_of(crow, len(col)), max(1, GATHER_BLOCK // x.shape[1])
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    parts = [
        (g[row[i : i + step]].to(wide) * x[col[i : i + step]].to(wide)).sum(-1) for i in range(0, len(col), step)
    ]
    return torch.cat(parts).to(x.dtype)


@csr_sddmm.register_fake
def _(g, x, crow, col):  # type: ignore[no-untyped-def]
    return x.new_empty(col.shape[0])


def _transpose(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, order) of the transpose. Of sizes that a tracer knows, unlike `CSRPattern.transposed`."""
    found = torch.sort(col, stable=True)
    starts = torch.arange(cols + 1, dtype=col.dtype, device=col.device)
    t_crow = torch.searchsorted(found.values, starts, out_int32=col.dtype == torch.int32)
    return t_crow, _row_of(crow, col.shape[0]).to(col.dtype).index_select(0, found.indices), found.indices


def _matmul_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, crow, col, x, t_crow, t_col, t_order = ctx.saved_tensors
    grad = grad.contiguous()
    d_values = csr_sddmm(grad, x, crow, col) if ctx.needs_input_grad[0] else None
    d_x = None
    if ctx.needs_input_grad[3]:
        if t_crow is None:
            t_crow, t_col, t_order = _transpose(crow, col, x.shape[0])
        d_x = csr_matmul(values.index_select(0, t_order), t_crow, t_col, grad, None, None, None)
    return d_values, None, None, d_x, None, None, None


def _sddmm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    g, x, crow, col = ctx.saved_tensors
    d_g = csr_matmul(grad, crow, col, x, None, None, None) if ctx.needs_input_grad[0] else None
    d_x = None
    if ctx.needs_input_grad[1]:
        t_crow, t_col, order = _transpose(crow, col, x.shape[0])
        d_x = csr_matmul(grad.index_select(0, order), t_crow, t_col, g, None, None, None)
    return d_g, d_x, None, None


@operator("csr_linear(Tensor x, Tensor values, Tensor crow, Tensor col) -> Tensor")
def csr_linear(x: Tensor, values: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """(b, columns), (rows × columns in CSR) -> x · Wᵀ, (b, rows): a single operator, for graphs that are exported."""
    if compiled.serves(len(values), x):
        return compiled.rows_matmul(values, crow, col, x)
    return csr_matmul(values, crow, col, x.t(), None, None, None).t().contiguous()


@csr_linear.register_fake
def _(x, values, crow, col):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], crow.shape[0] - 1)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, crow, col = ctx.saved_tensors
    d_x = d_values = None
    if ctx.needs_input_grad[0]:
        t_crow, t_col, order = _transpose(crow, col, x.shape[1])
        d_x = csr_linear(grad.contiguous(), values.index_select(0, order), t_crow, t_col)
    if ctx.needs_input_grad[1]:
        d_values = csr_sddmm(grad.t(), x.t(), crow, col)
    return d_x, d_values, None, None


csr_matmul.register_autograd(_matmul_backward, setup_context=_matmul_context)
csr_linear.register_autograd(_linear_backward, setup_context=_sddmm_context)
csr_sddmm.register_autograd(_sddmm_backward, setup_context=_sddmm_context)


class Torch(Backend):
    """CSR product and SDDMM: compiled kernels or MKL on the CPU, cuSPARSE on a GPU."""

    name = "torch"

    def matmul(self, weight: SparseWeight, x: Tensor) -> Tensor:
        return self.linear(weight, x, None)

    def linear(self, weight: SparseWeight, x: Tensor, bias: Tensor | None) -> Tensor:
        pattern = weight.pattern
        wide = x.is_cpu and x.dtype in (torch.float16, torch.bfloat16)
        source = x.float() if wide else x
        values = weight.arranged().to(source.dtype)
        learns = x.requires_grad and torch.is_grad_enabled()
        if compiled.serves(pattern.nnz, rows := source.t()):
            turned = pattern.transposed_if_kept() if learns else (None, None, None)
            added = None if bias is None else bias.to(source.dtype)
            return compiled.rows_matmul(values, pattern.crow, pattern.col, rows, *turned, added).t().to(x.dtype)
        known = pattern.transposed if learns else (None, None, None)
        y = csr_matmul(values, pattern.crow, pattern.col, source.contiguous(), *known)
        return plus(y.to(x.dtype), bias)


BACKEND = Torch()
