"""Device functions that draw the points of tuples; `points.py` says the same in plain torch.

A program holds T tuples, a number a lane. What belongs to a point is one of a tuple of such rows: the points of
a tuple stay in the registers of its thread. Names in capitals are known when a kernel is compiled.
"""

# mypy: ignore-errors

import triton.language as tl

from ash.backends.triton.kernel import kernel


@kernel
def random(counter):
    """64 random bits of a counter: splitmix64 (Steele, Lea and Flood, 2014)."""
    z = (counter ^ (counter >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@kernel
def bits_of(number, d: tl.constexpr, j: tl.constexpr, seed, Q: tl.constexpr, DRAWN: tl.constexpr, WIDE: tl.constexpr):
    """The bits of a tuple's d-th drawn point in column j; two narrow columns share 64."""
    one: tl.constexpr = j if WIDE else j - j % 2
    z = random(seed + (number * (DRAWN * Q) + (d * Q + one)) * 0x9E3779B97F4A7C15)
    if not WIDE:
        z = z >> 32 if j % 2 == 1 else z & 0xFFFFFFFF
    return z


@kernel
def uniform(bits, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """A number below SIZE."""
    number = bits * SIZE
    if WIDE:
        number = (bits >> 32) * SIZE + (((bits & 0xFFFFFFFF) * SIZE) >> 32)
    return (number >> 32).to(tl.int64)


@kernel
def normal(bits, table, WIDE: tl.constexpr):
    """A normal number, linear within the cells of the table of quantiles."""
    if WIDE:
        cell = (bits >> 54).to(tl.int64)
        part = (bits & 0x3FFFFFFFFFFFFF).to(tl.int64).to(tl.float64) * 5.551115123125783e-17  # 2^-54
    else:
        cell = (bits >> 22).to(tl.int32)
        part = (bits & 0x3FFFFF).to(tl.int32).to(tl.float32) * 2.384185791015625e-07  # 2^-22
    low = tl.load(table + cell)
    return low + part * (tl.load(table + cell + 1) - low)


@kernel
def whole(numbers, WIDE: tl.constexpr):
    """The nearest integers, ties to even: adding and taking away 1.5 · 2^52 (2^22) rounds."""
    if WIDE:
        near = tl.minimum(tl.maximum(numbers, -1099511627776.0), 1099511627776.0)
        near = (near + 6755399441055744.0) - 6755399441055744.0
    else:
        near = tl.minimum(tl.maximum(numbers, -1048576.0), 1048576.0)
        near = (near + 12582912.0) - 12582912.0
    return near.to(tl.int64)


@kernel
def within(positions, top):
    """Positions clipped to 0 … top."""
    return tl.minimum(tl.maximum(positions, 0), top)


@kernel
def corner(far: tl.constexpr, anchor, residual, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """The nearest position, or the one beyond the mean."""
    near = within(anchor + whole(residual, WIDE), SIZE - 1)
    if far:
        side = residual - (near - anchor).to(residual.dtype)
        near = within(near + tl.where(side >= 0, 1, -1), SIZE - 1)
    return near


@kernel
def local(bits, anchor, residual, scale, table, SIZE: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """A position near the mean: uniform in a window, or normal."""
    if WIDTH > 0:
        low = anchor + whole(residual - 0.5 * (WIDTH - 1), WIDE)
        at = within(low, SIZE - WIDTH) + uniform(bits, WIDTH, WIDE)
    else:
        at = within(anchor + whole(residual + normal(bits, table, WIDE) * scale, WIDE), SIZE - 1)
    return at


@kernel
def position(c: tl.constexpr, j: tl.constexpr, number, anchor, residual, scale, table, seed, PLACES: tl.constexpr):
    """Column j of the c-th point of every tuple. PLACES: sizes, widths, counts, WIDE."""
    SIZES: tl.constexpr = PLACES[0]
    COUNTS: tl.constexpr = PLACES[2]
    WIDE: tl.constexpr = PLACES[3]
    Q: tl.constexpr = len(SIZES)
    CORNERS: tl.constexpr = COUNTS[0] * 2**Q
    FIRST: tl.constexpr = CORNERS + COUNTS[1]
    DRAWN: tl.constexpr = COUNTS[1] + COUNTS[2] + COUNTS[3]
    if c < CORNERS:
        at = corner((c >> (Q - 1 - j)) & 1, anchor, residual, SIZES[j], WIDE)
    else:
        bits = bits_of(number, c - CORNERS, j, seed, Q, DRAWN, WIDE)
        if c < FIRST or c >= FIRST + COUNTS[2]:
            at = uniform(bits, SIZES[j], WIDE)
        else:
            at = local(bits, anchor, residual, scale, table, SIZES[j], PLACES[1][j], WIDE)
    return at


@kernel
def positions(number, anchors, residuals, scales, table, seed, PLACES: tl.constexpr, M: tl.constexpr):
    """All points: position of point c in column j at place c · q + j, int32."""
    Q: tl.constexpr = len(PLACES[0])
    EXACT: tl.constexpr = tl.float64 if PLACES[3] else tl.float32
    points = ()
    for c in tl.static_range(M):
        for j in tl.static_range(Q):
            at = position(
                c, j, number, anchors[j], residuals[j].to(EXACT), scales[j].to(EXACT), table, seed, PLACES
            )  # fmt: skip
            points = points + (at.to(tl.int32),)
    return points


@kernel
def columns_of(pointer, own, live, COUNT: tl.constexpr, Q: tl.constexpr):
    """Q rows of numbers of tuples that have COUNT each, one or Q."""
    rows = ()
    for j in tl.static_range(Q):
        rows = rows + (tl.load(pointer + own * COUNT + (j if COUNT > 1 else 0), mask=live, other=0),)
    return rows
