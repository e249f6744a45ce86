"""A draw of tuples whose entries are put row by row by counting; needs numba.

numba's cache on disk looks at the file of a kernel alone: after a change to `ash.jit.points` or `ash.jit.fused`, touch
this one. Points of a tuple follow each other: entry t · m + c is point c of tuple t. Arrays are contiguous.
"""

# mypy: ignore-errors

import numpy as np

from ash.jit.fused import _collect, _place
from ash.jit.kernel import kernel
from ash.jit.points import LANES, _block, _distances, _flows, _lane, _repeats, _shares, _slopes, _steps


@kernel
def draw(plan, tuples, values, strides, fixed, law, k, rows, cols, weights, counts, begin, end):
    """Row, column and weight of every point of the tuples begin … end; `counts` grows by the points of each row.

    Empty `counts`: the rows are known. The other arguments are those of `ash.jit.fused.multiply`.
    """
    m, q = (1 << len(plan[0])) * plan[2][0] + plan[2][1:].sum(), len(plan[0])
    tile, row, col = _block(strides, m), _block(strides, m), _block(strides, m)
    bits, table = np.zeros((plan[2][1:].sum(), LANES), np.uint64), plan[3]
    steps, anchor, blank = _steps(q * len(bits)), _lane(strides), _lane(strides)
    lane = (steps, anchor, _lane(table), _lane(table), blank, _lane(table), _lane(table))
    d, u, inverse = np.zeros((q, m, LANES), values.dtype), _block(values, m), _block(values, q)
    least, total, some = _lane(values), _lane(values), _lane(values)
    for start in range(begin, end, LANES):
        n = min(LANES, end - start)
        _place(plan, tuples, strides, fixed, start, n, bits, lane, tile, d, row, col)
        _repeats(d, u, some)
        _distances(d, u, tuples[1], tuples[2], start, n, inverse, some)
        _shares(u, law[0], law[1], least, total)
        for i in range(n):
            factor = values[start + i] / total[i]
            for c in range(m):
                weights[(start + i) * m + c] = u[c, i] * factor
                cols[(start + i) * m + c] = col[c, i]
        if len(counts):
            _count(row, start, n, rows, counts)


@kernel
def _count(row, start, n, rows, counts):
    """Write the rows of a block's points, and count them."""
    m = len(row)
    for i in range(n):
        for c in range(m):
            at = row[c, i]
            rows[(start + i) * m + c] = at
            counts[np.uint64(at)] += 1


@kernel
def arrange(rows, cols, weights, places, col, values, begin, end):
    """Put the entries begin … end where `places` says that the next one of their row stands; `rows` becomes where."""
    for p in range(begin, end):
        row = np.uint64(rows[p])
        at = places[row]
        places[row] = at + 1
        col[np.uint64(at)] = cols[p]
        values[np.uint64(at)] = weights[p]
        rows[p] = at


@kernel
def draw_back(plan, tuples, values, strides, fixed, law, k, where, grad, found, begin, end):
    """The gradients of the tuples begin … end from those of their entries, which stand at `where` (empty: in order).

    `found`: those of values, residuals and scales; the last one is zero before.
    """
    m, q = (1 << len(plan[0])) * plan[2][0] + plan[2][1:].sum(), len(plan[0])
    tile, row, col = _block(strides, m), _block(strides, m), _block(strides, m)
    bits, table = np.zeros((plan[2][1:].sum(), LANES), np.uint64), plan[3]
    steps, anchor, blank = _steps(q * len(bits)), _lane(strides), _lane(strides)
    lane = (steps, anchor, _lane(table), _lane(table), blank, _lane(table), _lane(table))
    d, u, inverse = np.zeros((q, m, LANES), values.dtype), _block(values, m), _block(values, q)
    g, slope = _block(values, m), _block(values, m)
    least, total, mean, value, some = _lane(values), _lane(values), _lane(values), _lane(values), _lane(values)
    for start in range(begin, end, LANES):
        n = min(LANES, end - start)
        _fetch(grad, where, start, n, g)
        _place(plan, tuples, strides, fixed, start, n, bits, lane, tile, d, row, col)
        _repeats(d, u, some)
        _distances(d, u, tuples[1], tuples[2], start, n, inverse, some)
        _slopes(u, law[0], law[1], slope)
        _shares(u, law[0], law[1], least, total)
        _flows(u, g, slope, total, mean)
        for i in range(n):
            value[i] = values[start + i]
        _collect(u, d, inverse, value, mean, start, n, least, total, found)


@kernel
def _fetch(grad, where, start, n, g):
    """The gradients of a block's entries, turned: (m, lanes)."""
    m = len(g)
    for i in range(n):
        for c in range(m):
            p = (start + i) * m + c
            g[c, i] = grad[np.uint64(where[p])] if len(where) else grad[p]
