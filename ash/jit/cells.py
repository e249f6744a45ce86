"""Kernels that weigh points by the cells of a tree; needs numba. What they compute stands in `ash.cells`.

Every tuple walks the tree once. The differences to all sources that it sees, points and nodes of cells, are laid
side by side in a buffer that stays in the cache; the loops over it run in vector registers.
Arrays are contiguous; positions, cells and learned numbers are of one type, float32 or float64.
"""

# mypy: ignore-errors

import numpy as np

from ash.jit.kernel import FAST, kernel

DEPTH = 128
"""Room for the cells that wait to be looked at: two at each level of a tree, which has a level for every bit."""

LANES = 16
"""Numbers that are compared together."""


# --- the walk -----------------------------------------------------------------------------------------------------


@kernel
def _near(cell, own, middle, half):
    """Squared distance in units of the scale from a mean to a cell; the cell's own half diagonal, squared.

    own: anchor, residual and inverse scale of every column.
    """
    u = alpha = own[0, 0] * 0
    for j in range(own.shape[1]):
        wide = half[cell, j]
        away = abs((middle[cell, j] - own[0, j]) - own[1, j]) - wide
        away, wide = max(away, 0 * away) * own[2, j], wide * own[2, j]
        u, alpha = u + away * away, alpha + wide * wide
    return u, alpha


@kernel
def _home(root, child, own, middle, half):
    """The leaf that is reached from the root by always going to the nearer cell."""
    cell = np.uint64(root)
    while child[cell] >= 0:
        left = np.uint64(child[cell])
        right = left + np.uint64(1)
        cell = right if _near(right, own, middle, half)[0] < _near(left, own, middle, half)[0] else left
    return cell


@kernel
def _lay(begin, count, own, where, away, n):
    """Differences to points."""
    for j in range(own.shape[1]):
        anchor, residual = own[0, j], own[1, j]
        room, points = away[j, n : n + count], where[j, begin : begin + count]
        for m in range(len(room)):
            room[m] = (points[m] - anchor) - residual


@kernel
def _lay_nodes(cell, begin, count, own, grid, middle, half, away, n):
    """Differences to nodes of a cell."""
    for j in range(own.shape[1]):
        base, wide = (middle[cell, j] - own[0, j]) - own[1, j], half[cell, j]
        room, nodes = away[j, n : n + count], grid[j, begin : begin + count]
        for m in range(len(room)):
            room[m] = base + wide * nodes[m]


@kernel(fastmath=FAST)
def _square(away, inverse, n, u):
    """u = Σ (away / σ)²."""
    u = u[:n]
    for j in range(len(away)):
        d, scale = away[j, :n], inverse[j] * inverse[j]
        if j:
            for m in range(len(u)):
                u[m] += d[m] * d[m] * scale
        else:
            for m in range(len(u)):
                u[m] = d[m] * d[m] * scale


@kernel
def _least(u, n, lane):
    """The smallest of n ≥ 1 numbers; lane by lane, so that it runs in vector registers."""
    size = len(lane)
    lane[:] = u[0]
    for start in range(0, n - size + 1, size):
        own = u[start : start + size]
        for m in range(len(lane)):
            lane[m] = own[m] if own[m] < lane[m] else lane[m]
    for m in range(n - n % size, n):
        lane[0] = min(lane[0], u[m])
    return lane.min()


@kernel
def _relative(u, least, nu, power):
    """A density relative to that at `least`. nu = 0 is a Gaussian."""
    if nu == 0:
        return np.exp((least - u) / 2)
    base = (nu + least) / (nu + u)
    return base * np.sqrt(base) if power == 3 else base ** (power / 2)


@kernel(fastmath=FAST)
def _half_power(w, power):
    """w to the power / 2, for 2 … 5 by roots and products."""
    if power == 3:
        for m in range(len(w)):
            w[m] *= np.sqrt(w[m])
    elif power == 4:
        for m in range(len(w)):
            w[m] *= w[m]
    elif power == 5:
        for m in range(len(w)):
            w[m] *= w[m] * np.sqrt(w[m])
    elif power != 2:
        for m in range(len(w)):
            w[m] **= power * w.dtype.type(0.5)


@kernel(fastmath=FAST)
def _densities(u, least, nu, power, w):
    """w = densities relative to that at `least`. nu = 0 is a Gaussian."""
    if nu == 0:
        half = u.dtype.type(0.5)
        for m in range(len(u)):
            w[m] = np.exp((least - u[m]) * half)
    else:
        top = nu + least
        for m in range(len(u)):
            w[m] = top / (nu + u[m])
        _half_power(w, power)


@kernel(fastmath=FAST)
def _sum(w):
    total = w.dtype.type(0)
    for m in range(len(w)):
        total += w[m]
    return total


@kernel
def _order(alpha, u, nu, share, limits):
    """The lowest order that is exact enough for a cell, by its number; −1 where none is."""
    orders, _, bounds, widest, _ = limits
    apart = np.sqrt(alpha / (nu + u))
    if apart <= widest:
        for r in range(len(orders)):
            if bounds[r] * share * apart ** orders[r] <= 1:
                return r
    return -1


@kernel
def _own(i, tuples, own):
    """Anchor, residual and inverse scale of one tuple in every column."""
    anchors, residuals, inverse = tuples
    for j in range(own.shape[1]):
        own[0, j], own[1, j] = anchors[i, j], residuals[i, j]
        own[2, j] = inverse[i, j if inverse.shape[1] > 1 else 0]


@kernel
def _at_home(root, own, where, cells, nu, power, away, u, lane):
    """u of the nearest point of the leaf around the mean; the leaf's density relative to that point's."""
    first, last, child, middle, half = cells
    home = _home(root, child, own, middle, half)
    n = last[home] - first[home]
    _lay(first[home], n, own, where, away, 0)
    _square(away, own[2], n, u)
    least = _least(u, n, lane)
    _densities(u[:n], least, nu, power, u[:n])
    return least, _sum(u[:n])


@kernel
def _walk(root, own, where, cells, grid, limits, kernel, stack, runs, away, u, lane):
    """Lay the differences to all sources of a tuple side by side.

    runs: of each run of sources its cell, or −1 for points; where it begins among points or nodes; its length.
    Returns the numbers of sources and of runs.
    """
    first, last, child, middle, half = cells
    _, starts, _, _, reach = limits
    nu, power = kernel
    if last[root] == first[root]:
        return 0, 0
    least, total = _at_home(root, own, where, cells, nu, power, away, u, lane)
    n, count, top, stack[0] = 0, 0, np.uint64(1), root
    while top:
        top -= np.uint64(1)
        cell = np.uint64(stack[top])
        near, alpha = _near(cell, own, middle, half)
        begin, order = first[cell], -1
        size = last[cell] - begin
        if nu > 0:
            share = reach / total * size * _relative(near, least, nu, power)
            order = _order(alpha, near, nu, min(1.0, share), limits)
        elif near - least > reach:
            continue
        if order >= 0 and starts[order + 1] - starts[order] < size:
            begin, size = starts[order], starts[order + 1] - starts[order]
            _lay_nodes(cell, begin, size, own, grid, middle, half, away, n)
            runs[count, 0], runs[count, 1], runs[count, 2] = cell, begin, size
        elif order >= 0 or child[cell] < 0:
            _lay(begin, size, own, where, away, n)
            runs[count, 0], runs[count, 1], runs[count, 2] = -1, begin, size
        else:
            stack[top], stack[top + np.uint64(1)] = child[cell], child[cell] + 1
            top += np.uint64(2)
            continue
        n, count = n + size, count + 1
    return n, count


# --- weights and gradients ----------------------------------------------------------------------------------------


@kernel(fastmath=FAST)
def _dot(w, charges):
    total = w.dtype.type(0)
    for m in range(len(w)):
        total += w[m] * charges[m]
    return total


@kernel
def _pull(w, runs, count, charges):
    """Σ w · charge over all sources; points have charge 1."""
    total, n = w.dtype.type(0), 0
    for run in range(count):
        cell, begin, size = runs[run, 0], runs[run, 1], runs[run, 2]
        own = w[n : n + size]
        total += _dot(own, charges[cell, begin : begin + size]) if cell >= 0 else _sum(own)
        n += size
    return total


@kernel
def _push(w, runs, count, factor, weights, sums):
    """Give every source w · factor."""
    n = 0
    for run in range(count):
        cell, begin, size = runs[run, 0], runs[run, 1], runs[run, 2]
        given = w[n : n + size]
        to = sums[cell, begin : begin + size] if cell >= 0 else weights[begin : begin + size]
        for m in range(len(given)):
            to[m] += given[m] * factor
        n += size


@kernel
def _rooms(where, room):
    """What a walk writes to: cells that wait, runs, differences, u, lanes, the tuple's own numbers."""
    q, kind = len(where), where.dtype
    return (
        np.zeros(DEPTH, np.int64),
        np.zeros((room, 3), np.int64),
        np.zeros((q, room), kind),
        np.zeros(room, kind),
        np.zeros(LANES, kind),
        np.zeros((3, q), kind),
    )


@kernel
def weigh(where, cells, grid, limits, kernel, charges, tuples, values, roots, room, weights, sums, begin, end):
    """Add the weights that the tuples begin … end give to points, and to nodes of cells.

    Args:
        cells: begin, end, left half, middle and half width of each.
        limits: orders of nodes, where their nodes begin, bounds of their errors, the largest α/D, the reach.
        kernel: ν, 0 for a Gaussian, and ν + q.
        charges: of the nodes, where every point has charge 1.
        tuples: anchors, residuals and 1/σ.
        room: the largest number of points of a context.
    """
    stack, runs, away, u, lane, own = _rooms(where, room)
    for i in range(begin, end):
        _own(i, tuples, own)
        n, count = _walk(roots[i], own, where, cells, grid, limits, kernel, stack, runs, away, u, lane)
        if n:
            _square(away, own[2], n, u)
            _densities(u[:n], _least(u, n, lane), kernel[0], kernel[1], u[:n])
            _push(u, runs, count, values[i] / _pull(u, runs, count, charges), weights, sums)


@kernel
def _charge(runs, count, points, charges, flows, ones, g):
    """Charges of all sources side by side, and what flows back to them."""
    n = 0
    for run in range(count):
        cell, begin, size = runs[run, 0], runs[run, 1], runs[run, 2]
        one, flow = ones[n : n + size], g[n : n + size]
        if cell >= 0:
            one[:], flow[:] = charges[cell, begin : begin + size], flows[cell, begin : begin + size]
        else:
            one[:], flow[:] = 1, points[begin : begin + size]
        n += size


@kernel(fastmath=FAST)
def _flows(u, w, ones, g, nu, power):
    """g becomes share · (g − its mean) · slope; the mean. u, w are squared distances and densities."""
    total = mean = w.dtype.type(0)
    for m in range(len(g)):
        total += w[m] * ones[m]
        mean += w[m] * g[m]
    mean /= total
    scale = w.dtype.type(-0.5) / total
    for m in range(len(g)):
        g[m] = w[m] * (g[m] - mean * ones[m]) * scale
    if nu > 0:
        for m in range(len(g)):
            g[m] *= power / (nu + u[m])
    return mean


@kernel(fastmath=FAST)
def _moments(g, d):
    """Σ g d and Σ g d²."""
    first = second = g.dtype.type(0)
    for m in range(len(g)):
        flow = g[m] * d[m]
        first += flow
        second += flow * d[m]
    return first, second


@kernel
def weigh_back(
    where, cells, grid, limits, kernel, charges, tuples, values, roots, room,
    grad, flows, d_values, d_residuals, d_scales, begin, end,
):  # fmt: skip
    """Gradients of the tuples begin … end, from those of the points' weights and their charges of nodes."""
    stack, runs, away, u, lane, own = _rooms(where, room)
    w, ones, g = np.zeros(room, where.dtype), np.zeros(room, where.dtype), np.zeros(room, where.dtype)
    for i in range(begin, end):
        _own(i, tuples, own)
        n, count = _walk(roots[i], own, where, cells, grid, limits, kernel, stack, runs, away, u, lane)
        if not n:
            continue
        _square(away, own[2], n, u)
        _densities(u[:n], _least(u, n, lane), kernel[0], kernel[1], w[:n])
        _charge(runs, count, grad, charges, flows, ones, g)
        d_values[i] = _flows(u[:n], w[:n], ones[:n], g[:n], kernel[0], kernel[1])
        for j in range(len(away)):
            first, second = _moments(g[:n], away[j, :n])
            factor = -2 * values[i] * own[2, j] * own[2, j]
            d_residuals[i, j] = first * factor
            d_scales[i, j if d_scales.shape[1] > 1 else 0] += second * factor * own[2, j]


@kernel
def count_sources(where, cells, grid, limits, kernel, charges, tuples, values, roots, room, some):
    """How many sources some tuples have together."""
    stack, runs, away, u, lane, own = _rooms(where, room)
    total = 0
    for i in some:
        _own(i, tuples, own)
        total += _walk(roots[i], own, where, cells, grid, limits, kernel, stack, runs, away, u, lane)[0]
    return total
