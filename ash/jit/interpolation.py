"""Kernels that interpolate: from points to the nodes of cells, and back; needs numba. See `ash.nodes`.

Arrays are contiguous; positions and cells are of one type, float32 or float64.
"""

# mypy: ignore-errors

import numpy as np

from ash.jit.kernel import kernel


@kernel
def _line(at, middle, half, basis, line):
    """The Lagrange polynomials of one column at a position of a cell, by Chebyshev polynomials."""
    order = len(basis)
    x = (at - middle) / half if half > 0 else at - at
    before, now = x, line.dtype.type(1)
    for a in range(order):
        line[a] = 0
    for n in range(order):
        for a in range(order):
            line[a] += basis[n, a] * now
        before, now = now, (x if n == 0 else 2 * x * now - before)


@kernel
def _product(line, order, out):
    """Products over the columns: out[order^q]."""
    out[0], size = 1, 1
    for j in range(len(line)):
        for e in range(size - 1, -1, -1):
            old = out[e]
            for a in range(order):
                out[e * order + a] = old * line[j, a]
        size *= order


@kernel
def _products(where, p, cell, middle, half, basis, line, out):
    """The polynomials of a cell's nodes (order^q) at a point within it."""
    for j in range(len(line)):
        _line(where[j, p], middle[cell, j], half[cell, j], basis, line[j])
    _product(line, len(basis), out)


@kernel
def _transfers(child, parent, middle, half, knots, basis, maps):
    """The polynomials of a cell at the nodes of one within it, column by column: maps (q, theirs, its)."""
    for j in range(maps.shape[0]):
        for a in range(len(knots)):
            at = middle[child, j] + half[child, j] * knots[a]
            _line(at, middle[parent, j], half[parent, j], basis, maps[j, a])


@kernel
def _turn(maps, back, one, other):
    """one (order^q) by the maps of all columns, each along its own axis; the result stands in one."""
    q, order = maps.shape[0], maps.shape[1]
    rest = len(one) // order
    for j in range(q):
        for e in range(rest):
            for b in range(order):
                other[e * order + b] = 0
            for a in range(order):
                for b in range(order):
                    other[e * order + b] += one[a * rest + e] * (maps[j, b, a] if back else maps[j, a, b])
        one[:] = other


@kernel
def gather_up(where, cells, knots, basis, values, charges):
    """Charges of every cell's nodes (cells, order^q) that stand for the values of its points."""
    first, last, child, middle, half = cells
    q, order = middle.shape[1], len(knots)
    line, product = np.zeros((q, order), where.dtype), np.zeros(charges.shape[1], where.dtype)
    maps, other = np.zeros((q, order, order), where.dtype), np.zeros(charges.shape[1], where.dtype)
    for cell in range(len(first) - 1, -1, -1):
        charges[cell] = 0
        if child[cell] < 0:
            for p in range(first[cell], last[cell]):
                _products(where, p, cell, middle, half, basis, line, product)
                for m in range(len(product)):
                    charges[cell, m] += values[p] * product[m]
        else:
            for own in range(child[cell], child[cell] + 2):
                _transfers(own, cell, middle, half, knots, basis, maps)
                product[:] = charges[own]
                _turn(maps, False, product, other)
                for m in range(len(product)):
                    charges[cell, m] += product[m]


@kernel
def spread_down(where, cells, knots, basis, sums, weights):
    """Add to the points' weights what the nodes of cells (cells, order^q) have received; sums are overwritten."""
    first, last, child, middle, half = cells
    q, order = middle.shape[1], len(knots)
    line, product = np.zeros((q, order), where.dtype), np.zeros(sums.shape[1], where.dtype)
    maps, other = np.zeros((q, order, order), where.dtype), np.zeros(sums.shape[1], where.dtype)
    for cell in range(len(first)):
        if child[cell] < 0:
            for p in range(first[cell], last[cell]):
                _products(where, p, cell, middle, half, basis, line, product)
                total = where.dtype.type(0)
                for m in range(len(product)):
                    total += sums[cell, m] * product[m]
                weights[p] += total
        else:
            for own in range(child[cell], child[cell] + 2):
                _transfers(own, cell, middle, half, knots, basis, maps)
                product[:] = sums[cell]
                _turn(maps, True, product, other)
                for m in range(len(product)):
                    sums[own, m] += product[m]
