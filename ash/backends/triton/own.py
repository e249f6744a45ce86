"""The kernels of the context `"tuple"`: every tuple spreads its value over its own points.

A program takes T tuples at a time, and as many such blocks as there are. x is (inputs of all instances, width), y
(outputs of all instances, width); tuples are (tuples of all instances, …), or (tuples of one, …) where REPEAT says
that all instances have the same.
"""

# mypy: ignore-errors

import triton.language as tl

from ash.backends.triton.drawing import columns_of, positions
from ash.backends.triton.kernel import kernel
from ash.backends.triton.moving import (
    add_one,
    add_points,
    exchange_one,
    exchange_points,
    keep,
    line_of,
    starts,
)
from ash.backends.triton.shares import away, inverses_of, own_distances, own_shares, slope


@kernel
def multiply(
    values, anchors, residuals, scales, fixed, table, seed, x, y, lines, weights, total, k, outputs, inputs, width,
    PLACES: tl.constexpr, STRIDES: tl.constexpr, M: tl.constexpr, S: tl.constexpr, NU: tl.constexpr,
    FIXED: tl.constexpr, REPEAT: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """y += W · x; see `ash.backends.triton.product`."""
    Q: tl.constexpr = len(STRIDES)
    COUNT: tl.constexpr = T * M
    lines += tl.program_id(0).to(tl.int64) * (2 * COUNT)
    weights += tl.program_id(0).to(tl.int64) * (2 * COUNT)
    bits = tl.load(seed).to(tl.uint64, bitcast=True)
    first = tl.program_id(0).to(tl.int64) * T
    while first < total:
        number = first + tl.arange(0, T)
        live, instance, which = number < total, number // k, number % k
        own = which if REPEAT else number
        near, rest = columns_of(anchors, own, live, Q, Q), columns_of(residuals, own, live, Q, Q)
        spread = columns_of(scales, own, live, S, Q)
        points = positions(number.to(tl.uint64), near, rest, spread, table, bits, PLACES, M)
        shares = own_shares(own_distances(points, near, rest, inverses_of(spread, Q), M, Q), M, Q, NU)
        value = tl.load(values + own, mask=live, other=0)
        row = starts(fixed, which, instance, live, outputs, FIXED, 0)
        col = starts(fixed, which, instance, live, inputs, FIXED, 1)
        for c in tl.static_range(M):
            rows, cols = line_of(c, points, row, STRIDES, 0, Q), line_of(c, points, col, STRIDES, 1, Q)
            weight = value * shares[c]
            if SPAN == 1:
                add_one(x, y, rows, cols, weight, live & (weight != 0))
            else:
                at = c * T + tl.arange(0, T)
                keep(lines, weights, at, rows, cols, weight, live & (weight != 0), COUNT)
        if SPAN > 1:
            tl.debug_barrier()
            add_points(x, y, lines, weights, width, COUNT, SPAN, P, E)
            tl.debug_barrier()
        first += tl.num_programs(0).to(tl.int64) * T


@kernel
def multiply_back(
    values, anchors, residuals, scales, fixed, table, seed, x, g, d_values, d_residuals, d_scales, d_x,
    lines, weights, total, k, outputs, inputs, width,
    PLACES: tl.constexpr, STRIDES: tl.constexpr, M: tl.constexpr, S: tl.constexpr, NU: tl.constexpr,
    FIXED: tl.constexpr, REPEAT: tl.constexpr, X: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The gradients of `multiply` from that of y; those of tuples are (tuples of all instances, …)."""
    Q: tl.constexpr = len(STRIDES)
    COUNT: tl.constexpr = T * M
    lines += tl.program_id(0).to(tl.int64) * (2 * COUNT)
    weights += tl.program_id(0).to(tl.int64) * (2 * COUNT)
    bits = tl.load(seed).to(tl.uint64, bitcast=True)
    first = tl.program_id(0).to(tl.int64) * T
    while first < total:
        number = first + tl.arange(0, T)
        live, instance, which = number < total, number // k, number % k
        own = which if REPEAT else number
        near, rest = columns_of(anchors, own, live, Q, Q), columns_of(residuals, own, live, Q, Q)
        spread = columns_of(scales, own, live, S, Q)
        points = positions(number.to(tl.uint64), near, rest, spread, table, bits, PLACES, M)
        inverses = inverses_of(spread, Q)
        us = own_distances(points, near, rest, inverses, M, Q)
        shares = own_shares(us, M, Q, NU)
        value = tl.load(values + own, mask=live, other=0)
        row = starts(fixed, which, instance, live, outputs, FIXED, 0)
        col = starts(fixed, which, instance, live, inputs, FIXED, 1)
        gains = ()
        for c in tl.static_range(M):
            rows, cols = line_of(c, points, row, STRIDES, 0, Q), line_of(c, points, col, STRIDES, 1, Q)
            alive, weight = live & (shares[c] != 0), value * shares[c]
            if SPAN == 1:
                gains = gains + (exchange_one(x, g, d_x, rows, cols, weight, alive, X),)
            else:
                keep(lines, weights, c * T + tl.arange(0, T), rows, cols, weight, alive, COUNT)
        if SPAN > 1:
            tl.debug_barrier()
            exchange_points(x, g, d_x, lines, weights, weights + COUNT, width, COUNT, X, SPAN, P, E)
            tl.debug_barrier()
            for c in tl.static_range(M):
                gains = gains + (tl.load(weights + COUNT + c * T + tl.arange(0, T)),)
        mean = value * 0
        for c in tl.static_range(M):
            mean += shares[c] * gains[c]
        tl.store(d_values + number, mean, mask=live)
        flows = ()
        for c in tl.static_range(M):
            flows = flows + (shares[c] * (gains[c] - mean) * slope(us[c], NU, Q),)
        store_moments(
            flows, points, near, rest, inverses, -2 * value, number, live, d_residuals, d_scales, M, S, Q
        )  # fmt: skip
        first += tl.num_programs(0).to(tl.int64) * T


@kernel
def store_moments(
    flows, points, near, rest, inverses, factor, number, live, d_residuals, d_scales,
    M: tl.constexpr, S: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Σ flow · (p − μ) and Σ flow · (p − μ)², which are the gradients by residuals and scales but for factors."""
    joint = factor * 0
    for j in tl.static_range(Q):
        once, twice = factor * 0, factor * 0
        for c in tl.static_range(M):
            d = away(points[c * Q + j], near[j], rest[j])
            once += flows[c] * d
            twice += flows[c] * d * d
        square = factor * inverses[j] * inverses[j]
        tl.store(d_residuals + number * Q + j, once * square, mask=live)
        joint += twice * square * inverses[j]
        if S > 1:
            tl.store(d_scales + number * S + j, twice * square * inverses[j], mask=live)
    if S == 1:
        tl.store(d_scales + number, joint, mask=live)
