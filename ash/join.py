"""Sparse weight × sparse input: entries of both that share an input position meet, and nothing else is looked at."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from ash.checks import require
from ash.pattern import check_ravel, ravel
from ash.sparse_batch import SparseBatch
from ash.weight import SparseWeight


def contract_batch(weight: SparseWeight, x: SparseBatch, coalesce: bool = True) -> SparseBatch:
    """Contract the input dimensions of a sparse weight with a batch of sparse tensors.

    The weight's entries are sorted by input position, once for each weight; the input's entries look theirs up. Time
    and memory grow with the stored entries and with the pairs that meet, never with the sizes of the tensors.

    Args:
        weight: shared, or one per instance.
        x: tensors that all have the shape `in_shape`; entries may occur twice, and may have channels.
        coalesce: add up what meets at the same output position; otherwise every pair is an entry of its own.

    Returns:
        Tensors of the shape `out_shape`, as many as x has. Gradients of any order reach `weight.values` and `x.values`.

    Raises:
        UserError: sizes that do not fit, another number of weights than of tensors, a candidate tensor that learns.
    """
    _check(weight, x)
    entry, place = _meet(weight, x)
    wide = torch.promote_types(x.values.dtype, torch.promote_types(weight.values.dtype, torch.float32))
    factors = weight.values.flatten()[place].to(wide)
    values = factors.reshape(-1, *[1] * (x.values.dim() - 1)) * x.values[entry].to(wide)
    out = weight.indices.flatten(0, -2)[:, : len(weight.out_shape)][place]
    sizes = x.sizes.new_tensor(weight.out_shape).expand(len(x), -1)
    y = SparseBatch(x.instance[entry], out, values, sizes)
    return (y.coalesce() if coalesce else y).to(x.values.dtype)


def _meet(weight: SparseWeight, x: SparseBatch) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]:
    """Numbers of the p pairs of an entry of x and an entry of the weight(s) with the same input position."""
    if weight.per_instance:
        check_ravel((len(x), *weight.in_shape))
        first = torch.arange(len(x), device=x.instance.device) * weight.matrix_shape[1]
        columns, order = torch.sort((weight.col_ids + first[:, None]).flatten(), stable=True)
        wanted = x.ids
    else:
        columns, order = weight.pattern.columns
        wanted = ravel(x.indices, weight.in_shape).to(columns.dtype)
    begin = torch.searchsorted(columns, wanted)
    counts = torch.searchsorted(columns, wanted, right=True) - begin
    entry = torch.arange(x.entries, device=counts.device).repeat_interleave(counts)
    pairs_before = counts.cumsum(0) - counts
    place = torch.arange(len(entry), device=counts.device) + (begin - pairs_before)[entry]
    return entry, order[place]


def _check(weight: SparseWeight, x: SparseBatch) -> None:
    """Raise `UserError` where the weight does not fit the batch, or learns what a sparse result cannot tell it."""
    expected = x.sizes.new_tensor(weight.in_shape)
    fits = x.rank == len(weight.in_shape) and bool((x.sizes == expected).all())
    require(fits, f"tensors of shapes {_shapes(x)}; expected {weight.in_shape}, the weight's input dimensions, of all.")
    b = len(weight.values) if weight.per_instance else len(x)
    require(b == len(x), f"{b} weights (one per instance) for a batch of {len(x)} tensors; expected as many.")
    require(
        weight.candidate is None or not (weight.candidate.requires_grad and torch.is_grad_enabled()),
        "a weight whose candidate tensor learns, and a sparse input; the candidates' gradient asks for every output, "
        "and a sparse result has only some; give the layer x.to_dense(), or a wiring without candidates.",
    )


def _shapes(x: SparseBatch) -> str:
    """The first shapes, in words."""
    found = sorted({tuple(sizes) for sizes in x.sizes.tolist()})
    return ", ".join(map(str, found[:3])) + (", …" if len(found) > 3 else "")
