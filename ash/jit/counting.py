"""Sorting by counting: places of entries row by row; needs numba. Arrays are contiguous."""

# mypy: ignore-errors

import numpy as np

from ash.jit.kernel import kernel


@kernel
def count(rows, counts):
    """`counts` grows by the entries of each row."""
    for p in range(len(rows)):
        counts[np.uint64(rows[p])] += 1


@kernel
def starts(counts, crow):
    """Counts (parts, rows) become the places where every part's entries of a row begin; `crow`, where each row does."""
    total = 0
    for row in range(counts.shape[1]):
        crow[row] = total
        for part in range(len(counts)):
            own = counts[part, row]
            counts[part, row] = total
            total += own
    crow[counts.shape[1]] = total


@kernel
def number(rows, places, order):
    """Write the entries' numbers row by row, those of a row in their order; `places` says where each row begins."""
    for p in range(len(rows)):
        row = np.uint64(rows[p])
        at = places[row]
        places[row] = at + 1
        order[np.uint64(at)] = p
