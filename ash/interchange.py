"""`as_sparse_batch`: sparse tensors as other packages hold them, as one `SparseBatch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ash.checks import require
from ash.edge_index import EdgeIndex
from ash.sparse_batch import SparseBatch

SparseInput: TypeAlias = Any
"""What `as_sparse_batch` takes."""

RANK = 2
"""Of what does not say its rank itself: a matrix, such as a graph."""

WELCOME = (
    "a SparseBatch, a torch tensor (COO, CSR, CSC or dense), a scipy.sparse matrix or array, a "
    "torch_sparse.SparseTensor, an object with edge_index and num_nodes, or a list of these"
)


def as_sparse_batch(
    x: SparseInput, rank: int | None = None, *, duplicates: str = "sum", dtype: torch.dtype | None = None
) -> SparseBatch:
    """One batch of what is given.

    Args:
        x: a `SparseBatch`; a torch tensor, COO, CSR (also batched), CSC or dense (its entries that are not 0);
            a scipy.sparse matrix or array; a `torch_sparse.SparseTensor`; an object with `edge_index` and `num_nodes`,
            and perhaps `edge_weight` or `edge_attr` and `batch`, such as `torch_geometric.data.Data`; or a list of
            any of these, one after the other, also of different sizes.
        rank: r, of every tensor, which tells whether the first dimension is a batch: with r dimensions x is one tensor,
            with r + 1 it is a batch of them. 2, for matrices, by default. Dense dimensions of a COO or CSR tensor are
            channels of its entries and do not count.
        duplicates: `"sum"` accepts entries at the same position, which add up; `"refuse"` does not.
        dtype: of the values; by default they keep theirs, and whole numbers become torch's default dtype.

    Values keep their gradients.

    Raises:
        UserError: an input of another kind, tensors of another rank or of different ranks, indices outside the declared
            size or negative, duplicates where they are refused, values that are NaN or infinite.
    """
    require(rank is None or rank >= 1, f"rank={rank}; expected at least 1.")
    batch = _read(x, rank, duplicates).check(duplicates)
    return batch if dtype is None else batch.to(dtype)


def _read(x: Any, rank: int | None, duplicates: str) -> SparseBatch:
    for serves, read in _READERS:
        if serves(x):
            batch = read(x, rank, duplicates)
            fits = rank in (None, batch.rank)
            require(fits, f"a {type(x).__name__} of rank {batch.rank}; expected rank {rank}, as was asked for.")
            return batch
    require(False, f"a {type(x).__name__}; expected {WELCOME}.")
    raise AssertionError


def _positions(indices: Tensor, values: Tensor, shape: Sequence[int], rank: int | None) -> SparseBatch:
    """From indices `(d, n)` in a tensor of `shape` (d,), with or without a batch dimension in front."""
    r = RANK if rank is None else rank
    require(
        len(shape) in (r, r + 1),
        f"a tensor of shape {tuple(shape)} for rank {r}; expected {r} dimensions, or {r + 1} with a batch in front; "
        "for tensors of another rank say rank=.",
    )
    indices = indices.long()
    if len(shape) == r:
        shape, indices = (1, *shape), torch.cat([torch.zeros_like(indices[:1]), indices])
    if not bool((indices[0, 1:] >= indices[0, :-1]).all()):
        order = indices[0].argsort(stable=True)
        indices, values = indices[:, order], values[order]
    sizes = torch.tensor(shape[1:], device=indices.device).expand(shape[0], -1)
    return SparseBatch(indices[0], indices[1:].t(), _floating(values), sizes)


def _floating(values: Tensor) -> Float[Tensor, "..."]:
    require(not values.is_complex(), f"values of {values.dtype}; expected real numbers.")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def _from_batch(x: SparseBatch, rank: int | None, duplicates: str) -> SparseBatch:
    return x


def _from_torch(x: Tensor, rank: int | None, duplicates: str) -> SparseBatch:
    if x.layout == torch.strided:
        indices = x.detach().nonzero().t()
        return _positions(indices, x[tuple(indices)], x.shape, rank)
    if x.layout == torch.sparse_coo:
        return _from_coo(x, rank, duplicates)
    known = x.layout in (torch.sparse_csr, torch.sparse_csc)
    require(known, f"a tensor of layout {x.layout}; expected strided, COO, CSR or CSC; call x.to_sparse_coo().")
    return _from_compressed(x, rank)


def _from_coo(x: Tensor, rank: int | None, duplicates: str) -> SparseBatch:
    shape = x.shape[: x.sparse_dim()]
    batch = _positions(x._indices(), x._values(), shape, rank)
    if not x.requires_grad:
        return batch
    batch.check(duplicates)
    whole = x.coalesce()  # the values of an uncoalesced tensor carry no gradient
    return _positions(whole.indices(), whole.values(), shape, rank)


def _from_compressed(x: Tensor, rank: int | None) -> SparseBatch:
    """CSR and CSC, `(rows, columns)` or `(b, rows, columns)`, both with channels perhaps."""
    by_row = x.layout == torch.sparse_csr
    ends, other = (x.crow_indices(), x.col_indices()) if by_row else (x.ccol_indices(), x.row_indices())
    lead = ends.dim() - 1
    require(lead <= 1, f"a CSR tensor of shape {tuple(x.shape)}; expected at most one batch dimension.")
    shape = x.shape[: lead + 2]
    one = _expand_pointers(ends.reshape(-1, ends.shape[-1]).long(), other.shape[-1])
    places = [one, other.flatten()] if by_row else [other.flatten(), one]
    if lead:
        places.insert(0, torch.arange(shape[0], device=one.device).repeat_interleave(other.shape[-1]))
    return _positions(torch.stack([place.long() for place in places]), x.values().flatten(0, lead), shape, rank)


def _expand_pointers(ends: Int[Tensor, "b ends"], n: int) -> Int[Tensor, " entries"]:
    """The row of every entry, from the row pointers of each matrix."""
    counts = ends.diff()
    good = bool((counts >= 0).all()) and bool((ends[:, 0] == 0).all()) and bool((ends[:, -1] == n).all())
    require(good, f"row pointers that do not rise from 0 to the number of entries, {n}; expected those of CSR.")
    rows = torch.arange(counts.shape[1], device=ends.device).expand_as(counts)
    return rows.flatten().repeat_interleave(counts.flatten())


def _from_scipy(x: Any, rank: int | None, duplicates: str) -> SparseBatch:
    coo = x.tocoo()
    coords = coo.coords if hasattr(coo, "coords") else (coo.row, coo.col)  # scipy below 1.13
    columns = [torch.as_tensor(column, dtype=torch.int64) for column in coords]
    return _positions(torch.stack(columns), torch.as_tensor(coo.data), coo.shape, rank)


def _from_torch_sparse(x: Any, rank: int | None, duplicates: str) -> SparseBatch:
    row, col, values = x.coo()
    values = torch.ones(len(row), device=row.device) if values is None else values
    return _positions(torch.stack([row, col]), values, x.sparse_sizes(), rank)


def _from_data(x: Any, rank: int | None, duplicates: str) -> SparseBatch:
    found = (getattr(x, name, None) for name in ("edge_weight", "edge_attr"))
    values = next((own for own in found if own is not None), None)
    nodes = getattr(x, "num_nodes", None) or 0
    require(nodes > 0, f"a {type(x).__name__} without num_nodes; expected the number of nodes beside edge_index.")
    values = None if values is None else _floating(values)
    return SparseBatch.from_edge_index(x.edge_index, nodes, values, getattr(x, "batch", None))


def _from_edge_index(x: EdgeIndex, rank: int | None, duplicates: str) -> SparseBatch:
    return SparseBatch.from_edge_index(*x)


def _from_list(x: Sequence[Any], rank: int | None, duplicates: str) -> SparseBatch:
    return SparseBatch.cat([_read(part, rank, duplicates) for part in x])


_READERS: list[tuple[Callable[[Any], bool], Callable[[Any, int | None, str], SparseBatch]]] = [
    (lambda x: isinstance(x, SparseBatch), _from_batch),
    (lambda x: isinstance(x, Tensor), _from_torch),
    (lambda x: isinstance(x, EdgeIndex), _from_edge_index),
    (lambda x: isinstance(x, list | tuple), _from_list),
    (lambda x: hasattr(x, "tocoo"), _from_scipy),
    (lambda x: hasattr(x, "coo") and hasattr(x, "sparse_sizes"), _from_torch_sparse),
    (lambda x: hasattr(x, "edge_index"), _from_data),
]
"""What a kind of input is known by, and what reads it; the packages themselves are not imported."""
