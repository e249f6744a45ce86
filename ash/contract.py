"""`contract`: y = W · x for tensors of any rank, one call."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ash.backends import choose_backend, get_backend
from ash.checks import require
from ash.weight import SparseWeight

GATHER_BLOCK = 1 << 22
"""Numbers gathered at a time for a weight per instance."""


def contract(weight: SparseWeight, x: Float[Tensor, "..."], backend: str = "auto") -> Float[Tensor, "..."]:
    """Contract the input dimensions of a sparse weight with x.

    Args:
        weight: shared, or one per instance.
        x: `(b, *in_shape, *extra)`; the extra dimensions share the weight.
        backend: `"auto"`, `"dense"`, `"torch"` or `"torch_sparse"`; a weight per instance knows `"dense"`
            (the oracle) and `"torch"`.

    Returns:
        `(b, *out_shape, *extra)`. Exact gradients reach `weight.values` and `x`.

    Raises:
        UserError: shapes that do not fit, an unknown or unavailable backend.
    """
    r = len(weight.in_shape)
    require(
        x.dim() > r and tuple(x.shape[1 : r + 1]) == weight.in_shape,
        f"an input of shape {tuple(x.shape)}; expected (b, {', '.join(map(str, weight.in_shape))}, …): "
        "a batch dimension, then the weight's input dimensions, then any extra ones.",
    )
    b, extra = x.shape[0], tuple(x.shape[r + 1 :])
    flat = x.reshape(b, weight.matrix_shape[1], math.prod(extra))
    y = _per_instance(weight, flat, backend) if weight.per_instance else _shared(weight, flat, backend)
    return y.reshape(b, *weight.out_shape, *extra)


def _shared(weight: SparseWeight, x: Tensor, backend: str) -> Tensor:
    """(b, i, e) -> (b, o, e) for one weight: the batch and the extra dimensions become columns."""
    rows, cols = weight.matrix_shape
    name = choose_backend(rows, cols, weight.values.numel()) if backend == "auto" else backend
    b, _, e = x.shape
    multiply = get_backend(name).matmul
    if e == 1:
        return multiply(weight, x.reshape(b, cols).t()).t().contiguous().unsqueeze(-1)
    y = multiply(weight, x.transpose(0, 1).reshape(cols, b * e))
    return y.reshape(rows, b, e).transpose(0, 1)


def _per_instance(weight: SparseWeight, x: Tensor, backend: str) -> Tensor:
    """(b, i, e) -> (b, o, e) with a weight for each instance."""
    b = weight.values.shape[0]
    require(b == x.shape[0], f"{b} weights (one per instance) for a batch of {x.shape[0]}; expected as many.")
    rows, cols = weight.matrix_shape
    wide = torch.promote_types(x.dtype, torch.promote_types(weight.values.dtype, torch.float32))
    if backend == "dense":
        return torch.bmm(weight.to_dense().reshape(b, rows, cols).to(wide), x.to(wide)).to(x.dtype)
    require(backend in ("auto", "torch"), f"backend {backend!r} for a weight per instance; use 'torch' or 'dense'.")
    y, source = x.new_zeros(b, rows, x.shape[2], dtype=wide), x.to(wide)
    n = weight.values.shape[1]
    step = max(1, GATHER_BLOCK // max(1, b * x.shape[2]))
    for i in range(0, max(1, n), step):  # once also without entries, for the graph
        part = slice(i, i + step)
        row, col = (ids[:, part, None].expand(-1, -1, x.shape[2]) for ids in (weight.row_ids, weight.col_ids))
        y = y.scatter_add(1, row, weight.values[:, part, None].to(wide) * source.gather(1, col))
    return y.to(x.dtype)
