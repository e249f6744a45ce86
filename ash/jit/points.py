"""Points of index tuples, and their weights where every tuple is a context of its own; needs numba.

The kernels work on blocks of `LANES` tuples, turned so that one operation treats a run of tuples: LLVM makes
vector instructions of the innermost loops, which are all of that form. `points` are (q, tuples, m), so that
every index column lies by itself; tuples are (tuples, …), as torch has them. All arrays are contiguous; the
kernels check nothing.
"""

# mypy: ignore-errors

import numpy as np

from ash.jit.kernel import kernel
from ash.jit.tuples import CELLS

LANES = 128
"""Tuples of a block: long enough that loops are not unrolled to scalars, and a block fits the first cache."""

NARROW = 1 << 16
"""Columns up to this size take 32 random bits a point: a position's chance is off by 2^-16 of itself at most.
Beyond, 63 bits."""

ROUND = 6755399441055744.0  # 1.5 · 2^52: adding and taking it away rounds a float64 to even
SMALLEST = 1e-8  # of ash.shares
FAR = 1e15  # further out no float64 has a fraction
STEP, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
HALF, ONE, LOW = np.uint64(32), np.uint64(1), np.uint64(0xFFFFFFFF)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
CELL, WIDE_CELL = np.uint64(32 - CELLS), np.uint64(64 - CELLS)
REST, WIDE_REST = np.uint64((1 << (32 - CELLS)) - 1), np.uint64((1 << (64 - CELLS)) - 1)
UNIT, WIDE_UNIT = 2.0 ** (CELLS - 32), 2.0 ** (CELLS - 64)


@kernel
def _block(like, count):
    """Room for `count` numbers a lane, of the type of an array."""
    return np.zeros((count, LANES), like.dtype)


@kernel
def _lane(like):
    """Room for a number a lane. Not a part of a larger array, which would cost the loops their vectors."""
    return np.zeros(LANES, like.dtype)


@kernel
def _steps(each):
    """How far the counter of every lane is from the first one's, for so many numbers a tuple."""
    return np.arange(LANES).astype(np.uint64) * (np.uint64(each) * STEP)


@kernel
def _random(bits, counter, steps):
    """64 random bits a lane, by counters at a distance: splitmix64 (Steele, Lea and Flood, 2014)."""
    for i in range(LANES):
        z = counter + steps[i]
        z = (z ^ (z >> SHIFTS[0])) * FIRST
        z = (z ^ (z >> SHIFTS[1])) * SECOND
        bits[i] = z ^ (z >> SHIFTS[2])


@kernel
def _uniform(bits, wide, size, low, tile):
    """low + a number below size."""
    if wide:
        for i in range(LANES):
            tile[i] = low[i] + np.int64((bits[i] >> ONE) % np.uint64(size))
    else:
        for i in range(LANES):
            tile[i] = low[i] + np.int64(((bits[i] & LOW) * np.uint64(size)) >> HALF)


@kernel
def _normal(bits, wide, table, rest, drop):
    """A normal number a lane into `rest`: linear within the cells of the table of quantiles."""
    for i in range(LANES):
        cell = np.int64(bits[i] >> WIDE_CELL) if wide else np.int64((bits[i] & LOW) >> CELL)
        rest[i] = table[cell]
        drop[i] = table[cell + 1]
    if wide:
        for i in range(LANES):
            rest[i] += np.float64(np.int64(bits[i] & WIDE_REST)) * WIDE_UNIT * (drop[i] - rest[i])
    else:
        for i in range(LANES):
            rest[i] += np.float64(np.int64(bits[i] & REST)) * UNIT * (drop[i] - rest[i])


@kernel
def _rounded(numbers, anchor, top, tile):
    """anchor + the nearest integer, within 0 … top."""
    for i in range(LANES):
        number = min(max(numbers[i], -FAR), FAR)
        tile[i] = min(max(anchor[i] + np.int64((number + ROUND) - ROUND), 0), top)


@kernel
def _corners(anchor, residual, j, q, top, tile):
    """Column j of the 2^q corners, the nearest first."""
    near, far = tile[0], tile[(1 << q) - 1]
    _rounded(residual, anchor, top, near)
    for i in range(LANES):
        step = 1 if residual[i] - (near[i] - anchor[i]) >= 0 else -1
        far[i] = min(max(near[i] + step, 0), top)
    for c in range(1, (1 << q) - 1):
        chosen = far if (c >> (q - 1 - j)) & 1 else near
        for i in range(LANES):
            tile[c, i] = chosen[i]


@kernel
def _column(j, q, sizes, widths, plan, table, lane, bits, seed, tile):
    """Column j of all points of a block: corners, uniform, local and again uniform ones, as `plan` counts them.

    The random bits of a point are a function of the seed, the tuple and the point alone.
    """
    start, steps, anchor, residual, scale, blank, one, other = lane
    size, width, wide = sizes[j], widths[j], sizes.max() > NARROW
    drawn, c = plan[1] + plan[2] + plan[3], 0
    if plan[0]:
        _corners(anchor, residual, j, q, size - 1, tile)
        c = 1 << q
    for d in range(drawn):
        if wide or j % 2 == 0:
            _random(bits[d], seed + np.uint64(start * drawn * q + d * q + j) * STEP, steps)
        else:
            for i in range(LANES):
                bits[d, i] = bits[d, i] >> HALF  # the half that the column before has left
        if d < plan[1] or d >= plan[1] + plan[2]:
            _uniform(bits[d], wide, size, blank, tile[c])
        elif width:
            for i in range(LANES):
                one[i] = residual[i] - 0.5 * (width - 1)
            _rounded(one, anchor, size - width, tile[c])
            _uniform(bits[d], wide, width, tile[c], tile[c])
        else:
            _normal(bits[d], wide, table, one, other)
            for i in range(LANES):
                one[i] = residual[i] + one[i] * scale[i]
            _rounded(one, anchor, size - 1, tile[c])
        c += 1


@kernel
def draw(anchors, residuals, scales, sizes, widths, plan, table, seed, points, begin, end):
    """The points (q, tuples, m) of the tuples begin … end.

    Args:
        widths: of the window of local points in every column; 0 for normal ones.
        plan: whether there are corners, then numbers of uniform, local and further uniform points.
        table: quantiles of the normal distribution at the ends of its 2^CELLS cells.
    """
    q, _, m = points.shape
    tile, bits = _block(points, m), np.zeros((plan[1:].sum(), LANES), np.uint64)
    steps, anchor, blank = _steps(q * len(bits)), _lane(points), _lane(points)
    residual, scale, one, other = _lane(table), _lane(table), _lane(table), _lane(table)
    for start in range(begin, end, LANES):
        n = min(LANES, end - start)
        for j in range(q):
            for i in range(n):
                anchor[i], residual[i] = anchors[start + i, j], residuals[start + i, j]
                scale[i] = scales[start + i, j if scales.shape[1] > 1 else 0]
            lane = (start, steps, anchor, residual, scale, blank, one, other)
            _column(j, q, sizes, widths, plan, table, lane, bits, np.uint64(seed), tile)
            for i in range(n):
                for c in range(m):
                    points[j, start + i, c] = tile[c, i]


@kernel
def _turn(points, anchors, start, n, d):
    """p − anchor of the points of a block, turned: (q, m, lanes)."""
    for j in range(points.shape[0]):
        for i in range(n):
            anchor = anchors[start + i, j]
            for c in range(points.shape[2]):
                d[j, c, i] = points[j, start + i, c] - anchor


@kernel
def _turn_rows(rows, start, n, tile):
    """Numbers (tuples, m) of a block, turned: (m, lanes)."""
    for i in range(n):
        for c in range(rows.shape[1]):
            tile[c, i] = rows[start + i, c]


@kernel
def _repeats_one(d, u, b, c, same):
    """u[c], infinite where points b and c are the same in all columns."""
    zero, infinity = u.dtype.type(0), u.dtype.type(np.inf)
    for i in range(LANES):
        same[i] = infinity
    for j in range(d.shape[0]):
        for i in range(LANES):
            same[i] = same[i] if d[j, b, i] == d[j, c, i] else zero
    for i in range(LANES):
        u[c, i] += same[i]


@kernel
def _repeats(d, u, same):
    """u, infinite at points that stand earlier in their tuple already, and 0 elsewhere."""
    q, zero, infinity = d.shape[0], u.dtype.type(0), u.dtype.type(np.inf)
    for c in range(d.shape[1]):
        for i in range(LANES):
            u[c, i] = zero
        for b in range(c):
            if q == 1:
                for i in range(LANES):
                    u[c, i] = infinity if d[0, b, i] == d[0, c, i] else u[c, i]
            elif q == 2:
                for i in range(LANES):
                    u[c, i] = infinity if (d[0, b, i] == d[0, c, i]) & (d[1, b, i] == d[1, c, i]) else u[c, i]
            else:
                _repeats_one(d, u, b, c, same)


@kernel
def _bury(dead, u, start, n):
    """u becomes infinite at dead points; `dead` has no rows where there are none."""
    if len(dead):
        for i in range(n):
            for c in range(u.shape[0]):
                if dead[start + i, c]:
                    u[c, i] = np.inf


@kernel
def _distances(d, u, residuals, scales, start, n, inverse, residual):
    """d becomes p − μ, and u grows by (p − μ)² / σ²."""
    q, m, _ = d.shape
    one, smallest = u.dtype.type(1), u.dtype.type(SMALLEST)
    for j in range(q):
        for i in range(n):
            scale = scales[start + i, j if scales.shape[1] > 1 else 0]
            inverse[j, i] = one / (smallest if scale < smallest else scale)
            residual[i] = residuals[start + i, j]
        for c in range(m):
            for i in range(LANES):
                away = d[j, c, i] - residual[i]
                d[j, c, i] = away
                away *= inverse[j, i]
                u[c, i] += away * away


@kernel
def _shares(u, nu, power, least, total):
    """u becomes the density relative to the nearest point's; `total`, its sum. nu = 0 is a Gaussian."""
    zero, half = u.dtype.type(0), u.dtype.type(0.5)
    for i in range(LANES):
        least[i], total[i] = u[0, i], zero
    for c in range(1, u.shape[0]):
        for i in range(LANES):
            least[i] = u[c, i] if u[c, i] < least[i] else least[i]
    for c in range(u.shape[0]):
        if nu == 0:
            for i in range(LANES):
                u[c, i] = np.exp((least[i] - u[c, i]) * half)
        else:
            for i in range(LANES):
                u[c, i] = (nu + least[i]) / (nu + u[c, i])
            _half_power(u[c], power)
        for i in range(LANES):
            total[i] += u[c, i]


@kernel
def _half_power(base, power):
    """base to the power / 2, for 2, 3, 4 and 5 by roots and products."""
    if power == 3:
        for i in range(LANES):
            base[i] *= np.sqrt(base[i])
    elif power == 4:
        for i in range(LANES):
            base[i] *= base[i]
    elif power == 5:
        for i in range(LANES):
            base[i] *= base[i] * np.sqrt(base[i])
    elif power != 2:
        for i in range(LANES):
            base[i] **= power * base.dtype.type(0.5)


@kernel
def weigh(points, dead, anchors, residuals, scales, values, nu, power, weights, begin, end):
    """The weights (tuples, m) of the tuples begin … end: value × share.

    Args:
        dead: (tuples, m), or no rows.
        nu: degrees of freedom, 0 for a Gaussian. power: nu + q. Both of the type of the weights.
    """
    q, _, m = points.shape
    d, u, inverse = np.zeros((q, m, LANES), weights.dtype), _block(weights, m), _block(weights, q)
    least, total, some = _lane(weights), _lane(weights), _lane(weights)
    for start in range(begin, end, LANES):
        n = min(LANES, end - start)
        _turn(points, anchors, start, n, d)
        _repeats(d, u, some)
        _bury(dead, u, start, n)
        _distances(d, u, residuals, scales, start, n, inverse, some)
        _shares(u, nu, power, least, total)
        for i in range(n):
            factor = values[start + i] / total[i]
            for c in range(m):
                weights[start + i, c] = u[c, i] * factor


@kernel
def _slopes(u, nu, power, slope):
    """d log density / du."""
    half = -u.dtype.type(0.5)
    for c in range(u.shape[0]):
        if nu == 0:
            for i in range(LANES):
                slope[c, i] = half
        else:
            for i in range(LANES):
                slope[c, i] = half * power / (nu + u[c, i])


@kernel
def _flows(u, g, slope, total, mean):
    """u, the relative densities, becomes share · (g − mean of g over the shares) · slope."""
    zero, one = u.dtype.type(0), u.dtype.type(1)
    for i in range(LANES):
        mean[i], total[i] = zero, one / total[i]
    for c in range(u.shape[0]):
        for i in range(LANES):
            u[c, i] *= total[i]
            mean[i] += u[c, i] * g[c, i]
    for c in range(u.shape[0]):
        for i in range(LANES):
            u[c, i] *= (g[c, i] - mean[i]) * slope[c, i]


@kernel
def _sums(u, d, first, second):
    """Σ u d and Σ u d² over the points."""
    zero = u.dtype.type(0)
    for i in range(LANES):
        first[i], second[i] = zero, zero
    for c in range(u.shape[0]):
        for i in range(LANES):
            flow = u[c, i] * d[c, i]
            first[i] += flow
            second[i] += flow * d[c, i]


@kernel
def weigh_back(
    points, dead, anchors, residuals, scales, values, nu, power, grad, d_values, d_residuals, d_scales, begin, end
):
    """Gradients of the tuples begin … end, from those of their weights (tuples, m); see `ash.shares`."""
    q, _, m = points.shape
    d, u, g, slope = np.zeros((q, m, LANES), grad.dtype), _block(grad, m), _block(grad, m), _block(grad, m)
    inverse, least, total, mean = _block(grad, q), _lane(grad), _lane(grad), _lane(grad)
    first, second = _lane(grad), _lane(grad)
    minus = grad.dtype.type(-2)
    for start in range(begin, end, LANES):
        n = min(LANES, end - start)
        _turn(points, anchors, start, n, d)
        _turn_rows(grad, start, n, g)
        _repeats(d, u, first)
        _bury(dead, u, start, n)
        _distances(d, u, residuals, scales, start, n, inverse, first)
        _slopes(u, nu, power, slope)
        _shares(u, nu, power, least, total)
        _flows(u, g, slope, total, mean)
        for i in range(n):
            d_values[start + i] = mean[i]
        for j in range(q):
            s = j if scales.shape[1] > 1 else 0
            _sums(u, d[j], first, second)
            for i in range(LANES):
                factor = minus * inverse[j, i] * inverse[j, i]
                first[i] *= factor
                second[i] *= factor * inverse[j, i]
            for i in range(n):
                value = values[start + i]
                d_residuals[start + i, j] = first[i] * value
                d_scales[start + i, s] += second[i] * value
