"""The kernels of the context `"chunk"`: the tuples of a chunk see the union of their points.

A program takes a chunk of at most T tuples at a time. `order` gives the tuples of every chunk, −1 where one is short,
for each instance the same; what else there is stands in `own.py`.
"""

# mypy: ignore-errors

import triton.language as tl

from ash.backends.triton.drawing import columns_of, positions
from ash.backends.triton.kernel import kernel
from ash.backends.triton.moving import add_points, exchange_points, line_of, starts
from ash.backends.triton.shares import inverses_of
from ash.backends.triton.table import bury, column_moments, mean_gain, sums, weigh


@kernel
def place(
    number, which, instance, live, near, rest, spread, fixed, table, bits, lines, dead, outputs, inputs,
    PLACES: tl.constexpr, STRIDES: tl.constexpr, M: tl.constexpr, FIXED: tl.constexpr,
    T: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Draw the points of a chunk into the scratch, and mark those that stand there already."""
    Q: tl.constexpr = len(STRIDES)
    COUNT: tl.constexpr = T * M
    points = positions(number.to(tl.uint64), near, rest, spread, table, bits, PLACES, M)
    row = starts(fixed, which, instance, live, outputs, FIXED, 0)
    col = starts(fixed, which, instance, live, inputs, FIXED, 1)
    for c in tl.static_range(M):
        at = tl.arange(0, T) * M + c
        tl.store(lines + at, tl.where(live, line_of(c, points, row, STRIDES, 0, Q), -1))
        tl.store(lines + COUNT + at, line_of(c, points, col, STRIDES, 1, Q))
        for j in tl.static_range(Q):
            tl.store(lines + (2 + j) * COUNT + at, points[c * Q + j].to(tl.int64))
        if FIXED:
            tl.store(lines + (2 + Q) * COUNT + at, row * inputs + col)
    tl.debug_barrier()
    bury(lines, dead, inputs, COUNT, P)
    tl.debug_barrier()
    return row * inputs + col


@kernel
def settle(lines, dead, weights, COUNT: tl.constexpr, P: tl.constexpr, KEEP: tl.constexpr):
    """Nothing is moved for dead points; nor, unless KEEP, for those without a weight."""
    for point in range(0, COUNT, P):
        at = point + tl.arange(0, P)
        idle = tl.load(dead + at) > 0
        if not KEEP:
            idle = idle | (tl.load(weights + at) == 0)
        tl.store(lines + at, tl.where(idle, -1, tl.load(lines + at)))


@kernel
def multiply(
    values, anchors, residuals, scales, fixed, table, seed, order, x, y, lines, weights,
    chunks, total, t, k, outputs, inputs, width,
    PLACES: tl.constexpr, STRIDES: tl.constexpr, M: tl.constexpr, S: tl.constexpr, NU: tl.constexpr,
    FIXED: tl.constexpr, REPEAT: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """y += W · x; see `ash.backends.triton.product`."""
    Q: tl.constexpr = len(STRIDES)
    COUNT: tl.constexpr = T * M
    lines += tl.program_id(0).to(tl.int64) * ((3 + Q) * COUNT)
    weights += tl.program_id(0).to(tl.int64) * (3 * COUNT)
    dead = weights + 2 * COUNT
    bits = tl.load(seed).to(tl.uint64, bitcast=True)
    chunk = tl.program_id(0).to(tl.int64)
    while chunk < total:
        lane = tl.arange(0, T)
        which = tl.load(order + (chunk % chunks) * t + lane, mask=lane < t, other=-1)
        live, which, instance = which >= 0, tl.maximum(which, 0), chunk // chunks
        number = instance * k + which
        own = which if REPEAT else number
        near, rest = columns_of(anchors, own, live, Q, Q), columns_of(residuals, own, live, Q, Q)
        spread = columns_of(scales, own, live, S, Q)
        inverses = inverses_of(spread, Q)
        group = place(number, which, instance, live, near, rest, spread, fixed, table, bits, lines, dead,
                      outputs, inputs, PLACES, STRIDES, M, FIXED, T, P)  # fmt: skip
        value = tl.load(values + own, mask=live, other=0)
        least, sum_ = sums(lines, dead, near, rest, inverses, group, live, NU, COUNT, M, FIXED, P)
        weigh(lines, dead, weights, value, least, sum_, near, rest, inverses, group, live, NU, COUNT, M, FIXED, P)
        tl.debug_barrier()
        settle(lines, dead, weights, COUNT, P, False)
        tl.debug_barrier()
        add_points(x, y, lines, weights, width, COUNT, SPAN, P, E)
        tl.debug_barrier()
        chunk += tl.num_programs(0).to(tl.int64)


@kernel
def multiply_back(
    values, anchors, residuals, scales, fixed, table, seed, order, x, g, d_values, d_residuals, d_scales, d_x,
    lines, weights, chunks, total, t, k, outputs, inputs, width,
    PLACES: tl.constexpr, STRIDES: tl.constexpr, M: tl.constexpr, S: tl.constexpr, NU: tl.constexpr,
    FIXED: tl.constexpr, REPEAT: tl.constexpr, X: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The gradients of `multiply` from that of y; those of tuples are (tuples of all instances, …)."""
    Q: tl.constexpr = len(STRIDES)
    COUNT: tl.constexpr = T * M
    lines += tl.program_id(0).to(tl.int64) * ((3 + Q) * COUNT)
    weights += tl.program_id(0).to(tl.int64) * (3 * COUNT)
    gains, dead = weights + COUNT, weights + 2 * COUNT
    bits = tl.load(seed).to(tl.uint64, bitcast=True)
    chunk = tl.program_id(0).to(tl.int64)
    while chunk < total:
        lane = tl.arange(0, T)
        which = tl.load(order + (chunk % chunks) * t + lane, mask=lane < t, other=-1)
        live, which, instance = which >= 0, tl.maximum(which, 0), chunk // chunks
        number = instance * k + which
        own = which if REPEAT else number
        near, rest = columns_of(anchors, own, live, Q, Q), columns_of(residuals, own, live, Q, Q)
        spread = columns_of(scales, own, live, S, Q)
        inverses = inverses_of(spread, Q)
        group = place(number, which, instance, live, near, rest, spread, fixed, table, bits, lines, dead,
                      outputs, inputs, PLACES, STRIDES, M, FIXED, T, P)  # fmt: skip
        value = tl.load(values + own, mask=live, other=0)
        least, sum_ = sums(lines, dead, near, rest, inverses, group, live, NU, COUNT, M, FIXED, P)
        weigh(lines, dead, weights, value, least, sum_, near, rest, inverses, group, live, NU, COUNT, M, FIXED, P)
        tl.debug_barrier()
        settle(lines, dead, weights, COUNT, P, True)
        tl.debug_barrier()
        exchange_points(x, g, d_x, lines, weights, gains, width, COUNT, X, SPAN, P, E)
        tl.debug_barrier()
        scale = tl.where(live, 1.0 / sum_, 0.0)
        mean = mean_gain(lines, dead, gains, least, scale, near, rest, inverses, group, live, NU, COUNT, M, FIXED, P)
        tl.store(d_values + number, mean, mask=live)
        joint = mean * 0
        for j in tl.static_range(Q):
            once, twice = column_moments(j, lines, dead, gains, mean, scale, least, near, rest, inverses, group, live,
                                         NU, COUNT, M, FIXED, P)  # fmt: skip
            square = -2 * value * inverses[j] * inverses[j]
            tl.store(d_residuals + number * Q + j, once * square, mask=live)
            joint += twice * square * inverses[j]
            if S > 1:
                tl.store(d_scales + number * S + j, twice * square * inverses[j], mask=live)
        if S == 1:
            tl.store(d_scales + number, joint, mask=live)
        tl.debug_barrier()
        chunk += tl.num_programs(0).to(tl.int64)
