"""The kernels of a CSR product and of SDDMM: a program takes a row."""

# mypy: ignore-errors

import triton.language as tl

from ash.backends.triton.kernel import kernel


@kernel
def multiply(values, crow, col, x, y, width, KIND: tl.constexpr, P: tl.constexpr, E: tl.constexpr):
    """y[row] = Σ values · x[col] over the row's entries, added up in KIND; E columns of x a program."""
    row = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * E + tl.arange(0, E)
    first, last = tl.load(crow + row), tl.load(crow + row + 1)
    total = tl.zeros((E,), KIND)
    while first < last:
        at = first + tl.arange(0, P)
        there = tl.load(col + at, mask=at < last, other=0).to(tl.int64)
        value = tl.load(values + at, mask=at < last, other=0).to(KIND)
        mask = (at < last)[:, None] & (e < width)[None, :]
        part = tl.load(x + (there * width)[:, None] + e[None, :], mask=mask, other=0).to(KIND)
        total += tl.sum(part * value[:, None], 0)
        first += P
    tl.store(y + row * width + e, total.to(y.dtype.element_ty), mask=e < width)


@kernel
def sample(g, x, crow, col, values, width, KIND: tl.constexpr, SPAN: tl.constexpr, P: tl.constexpr, E: tl.constexpr):
    """values = g[row] · x[col] of the entries of a row, added up in KIND."""
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(crow + row), tl.load(crow + row + 1)
    while first < last:
        at = first + tl.arange(0, P)
        there = tl.load(col + at, mask=at < last, other=0).to(tl.int64)
        total = tl.zeros((P,), KIND)
        for start in range(0, SPAN, E):
            e = start + tl.arange(0, E)
            own = tl.load(g + row * width + e, mask=e < width, other=0).to(KIND)
            mask = (at < last)[:, None] & (e < width)[None, :]
            part = tl.load(x + (there * width)[:, None] + e[None, :], mask=mask, other=0).to(KIND)
            total += tl.sum(part * own[None, :], 1)
        tl.store(values + at, total.to(values.dtype.element_ty), mask=at < last)
        first += P
