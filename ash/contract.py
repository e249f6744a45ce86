"""`contract`: y = W · x for tensors of any rank, one call."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from ash.backends import choose_backend, get_backend
from ash.backends.base import plus
from ash.backends.instances import instance_matmul
from ash.checks import UserError, require
from ash.drawn import DrawnWeight
from ash.join import contract_batch
from ash.sparse_batch import SparseBatch
from ash.weight import SparseWeight


@overload
def contract(weight: SparseWeight, x: SparseBatch, backend: str = ..., *, coalesce: bool = ...) -> SparseBatch: ...
@overload
def contract(weight: SparseWeight, x: Tensor, backend: str = ..., *, bias: Tensor | None = ...) -> Tensor: ...
def contract(
    weight: SparseWeight,
    x: Float[Tensor, "..."] | SparseBatch,
    backend: str = "auto",
    *,
    coalesce: bool = True,
    bias: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."] | SparseBatch:
    """Contract the input dimensions of a sparse weight with x.

    Args:
        weight: shared, or one per instance.
        x: `(b, *in_shape, *extra)`; the extra dimensions share the weight. Or b sparse tensors of shape `in_shape`,
            which give sparse ones: time and memory grow with the stored entries that meet, not with the shapes.
        backend: `"auto"`, `"dense"`, `"torch"`, `"torch_sparse"` or `"triton"`; a weight per instance knows `"dense"`
            (the oracle), `"torch"` and, drawn on a GPU, `"triton"`. For dense x.
        coalesce: of sparse x, add up what meets at the same output position.
        bias: `(*out_shape,)`, added to every output of a dense x.

    Returns:
        `(b, *out_shape, *extra)`, or b sparse tensors. Exact gradients reach `weight.values` (or `weight.candidate`,
        where x is dense) and `x` (or `x.values`).

    Raises:
        UserError: shapes that do not fit, a bias with sparse tensors, an unknown or unavailable backend.
    """
    if bias is not None:
        _check_bias(weight, x, bias)
    if isinstance(x, SparseBatch):
        return contract_batch(weight, x, coalesce)
    r = len(weight.in_shape)
    require(
        x.dim() > r and tuple(x.shape[1 : r + 1]) == weight.in_shape,
        f"an input of shape {tuple(x.shape)}; expected (b, {', '.join(map(str, weight.in_shape))}, …): "
        "a batch dimension, then the weight's input dimensions, then any extra ones.",
    )
    if not x.is_floating_point():
        raise UserError(f"an input of {x.dtype}; expected floating-point numbers; call x.float().")
    b, extra = x.shape[0], tuple(x.shape[r + 1 :])
    flat = x.reshape(b, weight.matrix_shape[1], math.prod(extra))
    added = None if bias is None else bias.flatten()
    if weight.per_instance:
        y = plus(_per_instance(weight, flat, backend), added)
    else:
        y = _shared(weight, flat, backend, added)
    return y.reshape(b, *weight.out_shape, *extra)


def _check_bias(weight: SparseWeight, x: Tensor | SparseBatch, bias: Tensor) -> None:
    """Raise `UserError` for a bias that does not fit, or would fill a sparse result."""
    fits = tuple(bias.shape) == weight.out_shape
    require(fits, f"a bias of shape {tuple(bias.shape)}; expected {weight.out_shape}, the weight's output dimensions.")
    require(isinstance(x, Tensor), "a bias with a sparse input; expected none: it would fill every output position.")


def _shared(weight: SparseWeight, x: Tensor, backend: str, bias: Tensor | None) -> Tensor:
    """(b, i, e) -> (b, o, e) for one weight: the batch and the extra dimensions become columns."""
    if isinstance(weight, DrawnWeight) and backend in ("auto", "triton"):
        return plus(weight.multiply(x), bias)
    rows, cols = weight.matrix_shape
    b, _, e = x.shape
    name = choose_backend(rows, cols, weight.entries, b * e) if backend == "auto" else backend
    if e == 1:
        return _multiply(weight, x.reshape(b, cols).t(), name, bias).t().contiguous().unsqueeze(-1)
    y = _multiply(weight, x.transpose(0, 1).reshape(cols, b * e), name, bias)
    return y.reshape(rows, b, e).transpose(0, 1)


def _multiply(weight: SparseWeight, x: Tensor, name: str, bias: Tensor | None) -> Tensor:
    """(i, e) -> (o, e) by a backend; a candidate tensor receives the weight's whole gradient."""
    linear = get_backend(name).linear
    if weight.candidate is None or not weight.candidate.requires_grad:
        return linear(weight, x, bias)
    y = linear(replace(weight, values=weight.values.detach(), candidate=None), x, bias)
    through: Tensor = _Candidate.apply(y, weight.candidate, x)
    return through


class _Candidate(torch.autograd.Function):
    """y = W · x as it is; backward g · xᵀ to the tensor of which W is a selection. What y does to x stays."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, candidate: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.like = candidate
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, ctx.like.dtype)
        whole = (grad.to(wide) @ x.to(wide).t()).reshape(ctx.like.shape).to(ctx.like.dtype)
        return grad, whole, None


def _per_instance(weight: SparseWeight, x: Tensor, backend: str) -> Tensor:
    """(b, i, e) -> (b, o, e) with a weight for each instance."""
    b = weight.tuples.values.shape[0] if isinstance(weight, DrawnWeight) else weight.values.shape[0]
    require(b == x.shape[0], f"{b} weights (one per instance) for a batch of {x.shape[0]}; expected as many.")
    rows, cols = weight.matrix_shape
    if backend == "dense":
        wide = torch.promote_types(x.dtype, torch.promote_types(weight.values.dtype, torch.float32))
        return torch.bmm(weight.to_dense().reshape(b, rows, cols).to(wide), x.to(wide)).to(x.dtype)
    fused = backend == "triton" and isinstance(weight, DrawnWeight) and x.is_cuda
    good = fused or backend in ("auto", "torch")
    require(good, f"backend {backend!r} for a weight per instance; use 'torch' or 'dense' ('triton': drawn on a GPU).")
    if isinstance(weight, DrawnWeight):
        return weight.multiply(x)
    wide = torch.promote_types(x.dtype, torch.promote_types(weight.values.dtype, torch.float32))
    values, source = weight.values.to(wide), x.to(wide)
    return instance_matmul(values, weight.row_ids, weight.col_ids, source, rows).to(x.dtype)
