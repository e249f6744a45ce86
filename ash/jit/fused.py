"""Product of a weight per instance that is drawn on the way and never stored; needs numba.

numba's cache on disk looks at the file of a kernel alone: after a change to `ash.jit.points`, touch this one.

The points of a block of tuples, their weights and what they multiply stay in the cache: nothing of the size
instances × tuples × points is written to memory. The backward pass draws the same points again from the seed.
Indices are cast to unsigned ones, which numba need not check for a count from the end.
Arrays are contiguous: anchors, residuals, scales (b·k, …), values (b·k,), x (b, columns, e), y (b, rows, e).
"""

# mypy: ignore-errors

import numpy as np

from ash.jit.kernel import kernel
from ash.jit.points import (
    LANES,
    _block,
    _column,
    _distances,
    _flows,
    _lane,
    _repeats,
    _shares,
    _slopes,
    _steps,
    _sums,
)


@kernel
def _place(plan, tuples, strides, fixed, start, n, bits, lane, tile, d, rows, cols):
    """Draw the points of a block: d (q, m, lanes), p − anchor; flattened rows and columns (m, lanes)."""
    sizes, widths, counts, table, seed = plan
    anchors, residuals, scales = tuples
    steps, anchor, residual, scale, blank, one, other = lane
    _begin(fixed, start, n, anchor, rows, 0)
    _begin(fixed, start, n, anchor, cols, 1)
    for j in range(len(sizes)):
        for i in range(n):
            anchor[i], residual[i] = anchors[start + i, j], residuals[start + i, j]
            scale[i] = scales[start + i, j if scales.shape[1] > 1 else 0]
        own = (start, steps, anchor, residual, scale, blank, one, other)
        _column(j, len(sizes), sizes, widths, counts, table, own, bits, np.uint64(seed), tile)
        into, stride = (rows, strides[j, 0]) if strides[j, 0] else (cols, strides[j, 1])
        for c in range(len(rows)):
            for i in range(LANES):
                d[j, c, i] = tile[c, i] - anchor[i]
                into[c, i] += stride * tile[c, i]


@kernel
def _begin(fixed, start, n, lane, places, side):
    """Flattened rows (side 0) or columns (side 1) of the tuples' fixed indices; 0 where `fixed` has no rows."""
    if len(fixed) == 0:
        for c in range(len(places)):
            for i in range(LANES):
                places[c, i] = 0
        return
    where = start % len(fixed)
    for i in range(n):
        lane[i] = fixed[where, side]
        where = where + 1 if where + 1 < len(fixed) else 0
    for c in range(len(places)):
        for i in range(LANES):
            places[c, i] = lane[i]


@kernel
def multiply(plan, tuples, values, strides, fixed, law, k, x, y, begin, end):
    """y[i] += W · x[i] for the instances begin … end, whose tuples are drawn, weighed and forgotten.

    Args:
        plan: sizes, widths, counts, table, seed, as for `ash.jit.points.draw`.
        tuples: anchors, residuals, scales.
        strides: (q, 2), what an index of a learned column adds to the flattened row or to the column.
        fixed: (k, 2), row and column of a tuple's fixed indices; no rows where there are none.
        law: degrees of freedom (0 for a Gaussian), and that plus q. k: tuples of an instance.
    """
    m, q = (1 << len(plan[0])) * plan[2][0] + plan[2][1:].sum(), len(plan[0])
    tile, rows, cols = _block(strides, m), _block(strides, m), _block(strides, m)
    bits, table = np.zeros((plan[2][1:].sum(), LANES), np.uint64), plan[3]
    steps, anchor, blank = _steps(q * len(bits)), _lane(strides), _lane(strides)
    lane = (steps, anchor, _lane(table), _lane(table), blank, _lane(table), _lane(table))
    d, u, inverse = np.zeros((q, m, LANES), values.dtype), _block(values, m), _block(values, q)
    least, total, some = _lane(values), _lane(values), _lane(values)
    for start in range(begin * k, end * k, LANES):
        n = min(LANES, end * k - start)
        _place(plan, tuples, strides, fixed, start, n, bits, lane, tile, d, rows, cols)
        _repeats(d, u, some)
        _distances(d, u, tuples[1], tuples[2], start, n, inverse, some)
        _shares(u, law[0], law[1], least, total)
        for i in range(n):
            some[i] = values[start + i]
        for i in range(LANES):
            total[i] = some[i] / total[i]
        for c in range(m):
            for i in range(LANES):
                u[c, i] *= total[i]
        _add(u, rows, cols, start, n, k, x, y)


@kernel
def _add(u, rows, cols, start, n, k, x, y):
    """y[row] += weight · x[col] for the points of a block, instance by instance."""
    low = 0
    while low < n:
        b = (start + low) // k
        high = min(n, (b + 1) * k - start)
        source, target = x[b], y[b]
        for c in range(len(u)):
            if x.shape[2] == 1:
                for i in range(low, high):
                    target[np.uint64(rows[c, i]), 0] += u[c, i] * source[np.uint64(cols[c, i]), 0]
            else:
                for i in range(low, high):
                    weight, given, found = u[c, i], source[np.uint64(cols[c, i])], target[np.uint64(rows[c, i])]
                    for e in range(x.shape[2]):
                        found[e] += weight * given[e]
        low = high


@kernel
def _exchange(u, gain, rows, cols, start, n, k, x, grad, d_x):
    """For the points of a block: gain = Σ over e of grad[row] · x[col], and d_x[col] += weight · grad[row].

    An empty d_x is left alone: x wants no gradient.
    """
    low = 0
    while low < n:
        b = (start + low) // k
        high = min(n, (b + 1) * k - start)
        source, target = x[b], grad[b]
        into = d_x[b] if len(d_x) else source
        for c in range(len(gain)):
            if not len(d_x):
                for i in range(low, high):
                    _gain_one(gain[c], i, target[np.uint64(rows[c, i])], source[np.uint64(cols[c, i])])
            elif x.shape[2] == 1:
                for i in range(low, high):
                    col, g = np.uint64(cols[c, i]), target[np.uint64(rows[c, i]), 0]
                    gain[c, i] = g * source[col, 0]
                    into[col, 0] += u[c, i] * g
            else:
                for i in range(low, high):
                    _exchange_one(
                        u[c, i], gain[c], i, target[np.uint64(rows[c, i])], source[np.uint64(cols[c, i])],
                        into[np.uint64(cols[c, i])],
                    )  # fmt: skip
        low = high


@kernel
def _gain_one(gain, i, g, x):
    """Σ over e of g · x for one point: all there is to do where x wants no gradient."""
    product = gain.dtype.type(0)
    for e in range(len(g)):
        product += g[e] * x[e]
    gain[i] = product


@kernel
def _exchange_one(weight, gain, i, g, x, into):
    """The same for one point and all extra dimensions."""
    product = gain.dtype.type(0)
    for e in range(len(g)):
        product += g[e] * x[e]
        into[e] += weight * g[e]
    gain[i] = product


@kernel
def multiply_back(plan, tuples, values, strides, fixed, law, k, x, grad, found, begin, end):
    """The gradients of `multiply` from that of y, for the instances begin … end.

    `found`: those of values, residuals, scales and x; the last two are zero before, or that of x is empty: not wanted.
    """
    m, q = (1 << len(plan[0])) * plan[2][0] + plan[2][1:].sum(), len(plan[0])
    tile, rows, cols = _block(strides, m), _block(strides, m), _block(strides, m)
    bits, table = np.zeros((plan[2][1:].sum(), LANES), np.uint64), plan[3]
    steps, anchor, blank = _steps(q * len(bits)), _lane(strides), _lane(strides)
    lane = (steps, anchor, _lane(table), _lane(table), blank, _lane(table), _lane(table))
    d, u, inverse = np.zeros((q, m, LANES), values.dtype), _block(values, m), _block(values, q)
    g, slope, weights = _block(values, m), _block(values, m), _block(values, m)
    least, total, mean, value, some = _lane(values), _lane(values), _lane(values), _lane(values), _lane(values)
    for start in range(begin * k, end * k, LANES):
        n = min(LANES, end * k - start)
        _place(plan, tuples, strides, fixed, start, n, bits, lane, tile, d, rows, cols)
        _repeats(d, u, some)
        _distances(d, u, tuples[1], tuples[2], start, n, inverse, some)
        _slopes(u, law[0], law[1], slope)
        _shares(u, law[0], law[1], least, total)
        for i in range(n):
            value[i] = values[start + i]
        for i in range(LANES):
            some[i] = value[i] / total[i]
        for c in range(m):
            for i in range(LANES):
                weights[c, i] = u[c, i] * some[i]
        _exchange(weights, g, rows, cols, start, n, k, x, grad, found[3])
        _flows(u, g, slope, total, mean)
        _collect(u, d, inverse, value, mean, start, n, least, total, found)


@kernel
def _collect(u, d, inverse, value, mean, start, n, first, second, found):
    """The gradients of the tuples of a block, from the flows u."""
    d_values, d_residuals, d_scales = found[0], found[1], found[2]
    minus = u.dtype.type(-2)
    for i in range(n):
        d_values[start + i] = mean[i]
    for j in range(len(d)):
        s = j if d_scales.shape[1] > 1 else 0
        _sums(u, d[j], first, second)
        for i in range(LANES):
            factor = minus * value[i] * inverse[j, i] * inverse[j, i]
            first[i] *= factor
            second[i] *= factor * inverse[j, i]
        for i in range(n):
            d_residuals[start + i, j] = first[i]
            d_scales[start + i, s] += second[i]
