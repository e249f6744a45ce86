"""The product of a weight in condensed form: for each output as many inputs, and their values, as two tables.

    y = condensed_linear(x, index, values),    y[b, o] = Σ_f values[o, f] · x[b, index[o, f]]

Shorter rows are filled up with zeros. Where it is exported it is a gather, a product and a sum, which every
exchange format has; for few instances on the CPU it runs as one compiled pass.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ash import jit
from ash.weight import SparseWeight

GATHER_BLOCK = 1 << 22
"""Numbers gathered at a time, but for graphs that are exported or compiled, which hold one gather."""


def condense(weight: SparseWeight) -> tuple[Int[Tensor, "o f"], Float[Tensor, "o f"]]:
    """The tables (outputs × largest number of entries of an output) of a shared weight: inputs, and values."""
    pattern = weight.pattern
    counts = pattern.crow.diff().long()
    place = torch.arange(pattern.nnz, device=counts.device) - pattern.crow[:-1].long().repeat_interleave(counts)
    width = int(counts.max()) if len(counts) else 0
    index, values = pattern.col.new_zeros(len(counts), width), weight.values.new_zeros(len(counts), width)
    where = pattern.row.long(), place
    return index.index_put(where, pattern.col), values.index_put(where, pattern.arrange(weight.values))


def condensed_linear(
    x: Float[Tensor, "b i"], index: Int[Tensor, "o f"], values: Float[Tensor, "o f"]
) -> Float[Tensor, "b o"]:
    """The product; differentiable by x and the values."""
    learns = torch.is_grad_enabled() and (x.requires_grad or values.requires_grad)
    plain = learns or x.dtype not in (torch.float32, torch.float64) or x.dtype != values.dtype
    if torch.compiler.is_compiling():
        return _gathered(x, index, values)
    if plain or not jit.serves(x.shape[0] * index.numel(), x, values):
        step = max(1, GATHER_BLOCK // max(1, x.shape[0] * index.shape[1]))
        parts = zip(index.split(step), values.split(step), strict=True)
        return torch.cat([_gathered(x, *part) for part in parts], dim=1)
    return _compiled(x, index, values)


def _gathered(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    found = x.index_select(1, index.flatten()).unflatten(1, index.shape)
    return (found * values).sum(-1)


def _compiled(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    from ash.jit.condensed import multiply

    y = x.new_empty(x.shape[0], index.shape[0])
    given = jit.arrays(x, index, values, y)
    jit.run(lambda _, begin, end: multiply(*given, begin, end), jit.pieces(index.shape[0], 16, jit.PIECE // 32))
    return y
