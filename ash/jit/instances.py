"""Products of a sparse matrix per instance, as loops over its entries; needs numba.

Indices are cast to unsigned ones, which numba need not check for a count from the end. Arrays are contiguous:
values, rows, cols (b, n), x (b, columns, e), y (b, rows, e).
"""

# mypy: ignore-errors

import numpy as np

from ash.jit.kernel import kernel


@kernel
def multiply(values, rows, cols, x, y, begin, end):
    """y[i, row] += value · x[i, col] for every entry of the instances begin … end."""
    if x.shape[2] == 1:
        for i in range(begin, end):
            for p in range(values.shape[1]):
                y[i, np.uint64(rows[i, p]), 0] += values[i, p] * x[i, np.uint64(cols[i, p]), 0]
        return
    for i in range(begin, end):
        for p in range(values.shape[1]):
            value, source, target = values[i, p], x[i, np.uint64(cols[i, p])], y[i, np.uint64(rows[i, p])]
            for e in range(x.shape[2]):
                target[e] += value * source[e]


@kernel
def sample(g, x, rows, cols, entries, begin, end):
    """entries[i, p] = Σ over e of g[i, row] · x[i, col] for every entry of the instances begin … end."""
    if x.shape[2] == 1:
        for i in range(begin, end):
            for p in range(entries.shape[1]):
                entries[i, p] = g[i, np.uint64(rows[i, p]), 0] * x[i, np.uint64(cols[i, p]), 0]
        return
    for i in range(begin, end):
        for p in range(entries.shape[1]):
            one, other = g[i, np.uint64(rows[i, p])], x[i, np.uint64(cols[i, p])]
            total = one[0] * other[0]
            for e in range(1, x.shape[2]):
                total += one[e] * other[e]
            entries[i, p] = total
