"""`CSRPattern`: the CSR structure of a list of integer entries, and of its transpose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from ash.checks import require

INT32_MAX = 2**31 - 1


def check_ravel(shape: Sequence[int]) -> None:
    """Raise `UserError` if the flattened positions of a tensor of `shape` exceed int64."""
    require(
        math.prod(shape) <= 2**63 - 1,
        f"a weight tensor of shape {tuple(shape)} has {math.prod(shape):.3e} positions; expected at most 2^63 - 1, "
        "so that a position fits an int64. Split the layer, or use smaller dimensions.",
    )


def ravel(indices: Int64[Tensor, "*n r"], shape: Sequence[int]) -> Int64[Tensor, "*n"]:
    """Flattened position (C order) of every index tuple in a tensor of `shape`; of one column, that column."""
    columns = list(indices.unbind(-1))
    if not columns:
        return indices.new_zeros(indices.shape[:-1])
    ids = columns[0]
    for column, size in zip(columns[1:], shape[1:], strict=True):
        ids = torch.add(column, ids, alpha=size)
    return ids


def unravel(ids: Int64[Tensor, "*n"], shape: Sequence[int]) -> Int64[Tensor, "*n r"]:
    """Index tuples of flattened positions; the inverse of `ravel`."""
    columns = []
    for size in reversed(shape):
        columns.append(ids % size)
        ids = ids.div(size, rounding_mode="floor")
    return torch.stack(columns[::-1], dim=-1) if columns else ids.new_zeros((*ids.shape, 0))


def compress(rows: Int[Tensor, " n"], count: int) -> tuple[Tensor, Tensor]:
    """A stable order of the entries by row, and the row pointers `(count + 1,)` of the ordered entries."""
    order = torch.sort(rows, stable=True).indices
    return order, pointers(rows, count)


def pointers(rows: Int[Tensor, " n"], count: int) -> Int[Tensor, " rows"]:
    """Row pointers `(count + 1,)` of entries in any order, by counting."""
    ends = torch.zeros(count + 1, dtype=torch.int64, device=rows.device)
    if rows.numel():
        torch.cumsum(torch.bincount(rows, minlength=count), 0, out=ends[1:])
    return ends.to(rows.dtype)


def _plain() -> torch.inference_mode:
    """A structure that is kept must serve in training, also if an evaluation in inference mode made it."""
    return torch.inference_mode(False)


class CSRPattern:
    """Where the n entries of a (rows × cols) matrix lie, row by row; duplicates stay separate and add up.

    `arrange` puts values into the order of the CSR arrays. Entries that are given row by row stay as they are,
    without a sort or a copy. Index arrays are int32 where positions and counts fit, because CSR products on
    them are up to three times as fast. Everything is made when it is first asked for.
    """

    def __init__(self, rows: Int64[Tensor, " n"], cols: Int64[Tensor, " n"], shape: tuple[int, int]):
        small = max(*shape, rows.numel()) <= INT32_MAX
        dtype = torch.int32 if small else torch.int64
        self.shape = shape
        with _plain():
            self._rows, self._cols = (ids.to(dtype).contiguous() for ids in (rows, cols))  # a column of indices is not

    @cached_property
    def order(self) -> Int64[Tensor, " n"] | None:
        """Numbers of the given entries, row by row; None where they are given so."""
        with _plain():
            if bool((self._rows[1:] >= self._rows[:-1]).all()):
                return None
            return torch.sort(self._rows, stable=True).indices

    @cached_property
    def crow(self) -> Int[Tensor, " ends"]:
        """Row pointers `(rows + 1,)`."""
        with _plain():
            return pointers(self._rows, self.shape[0])

    @cached_property
    def col(self) -> Int[Tensor, " n"]:
        """Column of every entry in CSR order."""
        return self._arranged(self._cols)

    @cached_property
    def row(self) -> Int[Tensor, " n"]:
        """Row of every entry in CSR order."""
        return self._arranged(self._rows)

    def _arranged(self, ids: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        with _plain():
            return ids if self.order is None else ids.index_select(0, self.order)

    @cached_property
    def columns(self) -> tuple[Int[Tensor, " n"], Int64[Tensor, " n"]]:
        """The columns of the given entries in ascending order, and which entry each belongs to.

        Nothing here is as long as the number of rows or columns, so that both may be as many as int64 counts.
        """
        with _plain():
            found = torch.sort(self._cols, stable=True)
            return found.values, found.indices

    def arrange(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Values of the given entries in the order of the CSR arrays; differentiable."""
        return values if self.order is None else values.index_select(0, self.order)

    @property
    def nnz(self) -> int:
        """Stored entries, duplicates included."""
        return self._cols.numel()

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(crow, col, order) of the transpose; `order` points into this pattern's CSR order."""
        with _plain():
            order, crow = compress(self.col, self.shape[1])
            return crow, self.row.index_select(0, order), order
