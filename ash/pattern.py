"""`CSRPattern`: the CSR structure of a list of integer entries, and of its transpose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from ash import jit
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


def compress(rows: Int[Tensor, " n"], count: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " ends"]]:
    """A stable order of the entries by row, and the row pointers `(count + 1,)` of the ordered entries."""
    if jit.serves(rows.numel(), rows):
        return _compiled_order(rows, count)
    order = torch.sort(rows, stable=True).indices
    return order, pointers(rows, count)


def _compiled_order(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same by counting, of the type of the rows, which counts the entries too."""
    from ash.jit import counting

    order, crow = jit.blank(rows.dtype, rows.numel()), rows.new_empty(count + 1)
    places = jit.blank(rows.dtype, 1, count).zero_()
    given, counts, found, ends = jit.arrays(rows, places, order, crow)
    counting.count(given, counts[0])
    counting.starts(counts, ends)
    counting.number(given, counts[0], found)
    return order, crow


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

    Attributes:
        nnz: n, stored entries, duplicates included.
    """

    def __init__(self, rows: Int[Tensor, " n"], cols: Int[Tensor, " n"], shape: tuple[int, int]):
        small = max(*shape, rows.numel()) <= INT32_MAX
        dtype = torch.int32 if small else torch.int64
        self.shape, self._asked = shape, 0
        with _plain():
            # a column of indices is not contiguous
            self._given: tuple[Tensor, Tensor] | None = (rows.to(dtype).contiguous(), cols.to(dtype).contiguous())
            self.nnz = rows.numel()

    @cached_property
    def _csr(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """(order, crow, col); what was given is not needed after that, and not kept."""
        assert self._given is not None
        rows, cols = self._given
        with _plain():
            order = None
            if bool((rows[1:] >= rows[:-1]).all()):
                crow = pointers(rows, self.shape[0])
            else:
                order, crow = compress(rows, self.shape[0])
                cols = cols.index_select(0, order)
        self._given = None
        return order, crow, cols

    @property
    def order(self) -> Int[Tensor, " n"] | None:
        """Numbers of the given entries, row by row; None where they are given so."""
        return self._csr[0]

    @property
    def crow(self) -> Int[Tensor, " ends"]:
        """Row pointers `(rows + 1,)`."""
        return self._csr[1]

    @property
    def col(self) -> Int[Tensor, " n"]:
        """Column of every entry in CSR order."""
        return self._csr[2]

    @cached_property
    def columns(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """The columns of the given entries in ascending order, and which entry each belongs to.

        Nothing here is as long as the number of rows or columns, so that both may be as many as int64 counts.
        """
        with _plain():
            found = torch.sort(self.col if self._given is None else self._given[1], stable=True)
            entries = found.indices if self._given is not None or self.order is None else self.order[found.indices]
            return found.values, entries

    def arrange(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Values of the given entries in the order of the CSR arrays; differentiable."""
        return values if self.order is None else values.index_select(0, self.order)

    @cached_property
    def row(self) -> Int[Tensor, " n"]:
        """Row of every entry in CSR order."""
        return self._rows()

    def _rows(self) -> Int[Tensor, " n"]:
        with _plain():
            counts = self.crow.diff().long()
            rows = torch.arange(self.shape[0], dtype=self.crow.dtype, device=self.crow.device)
            return rows.repeat_interleave(counts, output_size=self.nnz)

    @cached_property
    def transposed(self) -> tuple[Int[Tensor, " ends"], Int[Tensor, " n"], Int[Tensor, " n"]]:
        """(crow, col, order) of the transpose; `order` points into this pattern's CSR order."""
        with _plain():
            order, crow = compress(self.col, self.shape[1])
            return crow, self._rows().index_select(0, order), order.to(crow.dtype)

    def transposed_if_kept(self) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
        """`transposed` from the second time on that it is asked for: a structure that serves once is not sorted."""
        self._asked += 1
        return self.transposed if self._asked > 1 or "transposed" in vars(self) else (None, None, None)


class ArrangedPattern(CSRPattern):
    """The structure of entries whose CSR arrays are known already.

    Args:
        crow, col, shape: the arrays, and (rows, columns).
        where: place of every given entry in them; None where they are given row by row.
    """

    def __init__(self, crow: Tensor, col: Tensor, where: Int[Tensor, " n"] | None, shape: tuple[int, int]):
        super().__init__(col[:0], col[:0], shape)
        self.nnz, self._given = len(col), None
        self._pointers, self._col, self._where = crow, col, where

    @cached_property
    def order(self) -> Int[Tensor, " n"] | None:
        if self._where is None:
            return None
        with _plain():
            numbers = torch.arange(self.nnz, dtype=self._where.dtype, device=self._where.device)
            return torch.empty_like(numbers).scatter_(0, self._where.long(), numbers)

    @property
    def crow(self) -> Int[Tensor, " ends"]:
        return self._pointers

    @property
    def col(self) -> Int[Tensor, " n"]:
        return self._col
