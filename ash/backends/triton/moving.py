"""Device functions that move data: rows of x times weights, added to rows of y, and back.

x and y are matrices of `width` columns, at most SPAN. What a program has drawn passes through a scratch of its own,
which stays in the cache: from one tuple a thread, as points are drawn and weighed, to one row of x for several.
`lines` holds for COUNT points their rows of y, −1 where nothing is to be moved, and then their rows of x.
"""

# mypy: ignore-errors

import triton.language as tl

from ash.backends.triton.kernel import kernel


@kernel
def line_of(c: tl.constexpr, points, start, STRIDES: tl.constexpr, SIDE: tl.constexpr, Q: tl.constexpr):
    """Row (SIDE 0) or column (SIDE 1) of the matrix where point c lies, int64, from where its fixed indices are."""
    line = start
    for j in tl.static_range(Q):
        if STRIDES[j][SIDE] > 0:
            line += points[c * Q + j].to(tl.int64) * STRIDES[j][SIDE]
    return line


@kernel
def starts(fixed, which, instance, live, lines, FIXED: tl.constexpr, SIDE: tl.constexpr):
    """Where the lines of a tuple begin: those of its instance, and its fixed indices."""
    start = instance * lines
    if FIXED:
        start += tl.load(fixed + which * 2 + SIDE, mask=live, other=0)
    return start


@kernel
def keep(lines, weights, at, rows, cols, weight, alive, COUNT: tl.constexpr):
    """Put some points into the scratch."""
    tl.store(lines + at, tl.where(alive, rows, -1))
    tl.store(lines + COUNT + at, cols)
    tl.store(weights + at, weight)


@kernel
def add_points(x, y, lines, weights, width, COUNT: tl.constexpr, SPAN: tl.constexpr, P: tl.constexpr, E: tl.constexpr):
    """y[rows] += weights · x[cols] for the points of the scratch."""
    for point in range(0, COUNT, P):
        at = point + tl.arange(0, P)
        rows, cols, weight = tl.load(lines + at), tl.load(lines + COUNT + at), tl.load(weights + at)
        for first in range(0, SPAN, E):
            e = first + tl.arange(0, E)
            mask = (rows >= 0)[:, None] & (e < width)[None, :]
            part = tl.load(x + (cols * width)[:, None] + e[None, :], mask=mask, other=0).to(weight.dtype)
            tl.atomic_add(y + (rows * width)[:, None] + e[None, :], part * weight[:, None], mask=mask, sem="relaxed")


@kernel
def exchange_points(
    x, g, d_x, lines, weights, gains, width,
    COUNT: tl.constexpr, X: tl.constexpr, SPAN: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """gains = g[rows] · x[cols], summed over the columns; and, where X, d_x[cols] += weights · g[rows]."""
    for point in range(0, COUNT, P):
        at = point + tl.arange(0, P)
        rows, cols, weight = tl.load(lines + at), tl.load(lines + COUNT + at), tl.load(weights + at)
        total = weight * 0
        for first in range(0, SPAN, E):
            e = first + tl.arange(0, E)
            mask = (rows >= 0)[:, None] & (e < width)[None, :]
            source = (cols * width)[:, None] + e[None, :]
            own = tl.load(x + source, mask=mask, other=0).to(weight.dtype)
            due = tl.load(g + (rows * width)[:, None] + e[None, :], mask=mask, other=0)
            total += tl.sum(own * due, 1)
            if X:
                tl.atomic_add(d_x + source, due * weight[:, None], mask=mask, sem="relaxed")
        tl.store(gains + at, total)


@kernel
def add_one(x, y, rows, cols, weight, alive):
    """`add_points` of one point a thread, where x has one column: nothing passes through the scratch."""
    part = tl.load(x + cols, mask=alive, other=0).to(weight.dtype)
    tl.atomic_add(y + rows, part * weight, mask=alive, sem="relaxed")


@kernel
def exchange_one(x, g, d_x, rows, cols, weight, alive, X: tl.constexpr):
    """`exchange_points` of one point a thread, where x has one column."""
    own = tl.load(x + cols, mask=alive, other=0).to(weight.dtype)
    due = tl.load(g + rows, mask=alive, other=0)
    if X:
        tl.atomic_add(d_x + cols, due * weight, mask=alive, sem="relaxed")
    return own * due
