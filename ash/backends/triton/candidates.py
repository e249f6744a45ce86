"""The kernel that finds the entries of a sum of outer products that may be above a bar."""

# mypy: ignore-errors

import triton.language as tl

from ash.backends.triton.kernel import kernel


@kernel
def tile_of(rows, cols, M: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr):
    """Rows and columns of this program's tile; neighbours share rows, which then stay in the cache."""
    down, across = tl.cdiv(rows, M), tl.cdiv(cols, N)
    program = tl.program_id(0)
    group = program // (GROUP * across)
    high = tl.minimum(down - group * GROUP, GROUP)
    rest = program % (GROUP * across)
    return (group * GROUP + rest % high) * M + tl.arange(0, M), (rest // high) * N + tl.arange(0, N)


@kernel
def collect(
    gt, xt, heights, widths, bar, found, count, rows, cols, b, capacity,
    BY: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, SPAN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Flattened positions whose score may exceed the bar, in any order, into `found`; `count`, how many there are.

    Args:
        gt, xt: (rows, b) and (cols, b), in float32, or rounded to a narrower type.
        heights, widths: (rows,) and (cols,); a product of two bounds the error of the tile's product.
        bar: (1,). capacity: of `found`; what comes when it is full is counted only.
        BY: 0 by absolute value, 1 by the most positive, −1 by the most negative.
        WIDEN: the interpreter multiplies the bits of bfloat16 as if they were integers.
    """
    i, j = tile_of(rows, cols, M, N, GROUP)
    down, across = i < rows, j < cols
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, SPAN, K):
        e = first + tl.arange(0, K)
        ours = tl.load(gt + (i.to(tl.int64) * b)[:, None] + e[None, :], mask=down[:, None] & (e < b)[None, :], other=0)
        other = tl.load(
            xt + (j.to(tl.int64) * b)[:, None] + e[None, :], mask=across[:, None] & (e < b)[None, :], other=0
        )
        if WIDEN:
            ours, other = ours.to(tl.float32), other.to(tl.float32)
        total = tl.dot(ours, tl.trans(other), total, input_precision=PRECISION)
    if BY == 0:
        total = tl.abs(total)
    elif BY < 0:
        total = -total
    above = tl.load(heights + i, mask=down, other=0)[:, None] * tl.load(widths + j, mask=across, other=0)[None, :]
    hit = (total + above > tl.load(bar)) & down[:, None] & across[None, :]
    if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
        slot = tl.atomic_add(count + tl.zeros((M, N), tl.int32), 1, mask=hit, sem="relaxed")
        ids = i.to(tl.int64)[:, None] * cols + j[None, :]
        tl.store(found + slot, ids, mask=hit & (slot < capacity))


@kernel
def score(gt, xt, ids, scores, n, cols, b, SPAN: tl.constexpr, P: tl.constexpr, E: tl.constexpr):
    """The entries of the sum of outer products at n flattened positions, in float32."""
    at = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    where = tl.load(ids + at, mask=at < n, other=0)
    i, j = where // cols, where % cols
    total = tl.zeros((P,), tl.float32)
    for first in range(0, SPAN, E):
        e = first + tl.arange(0, E)
        mask = (at < n)[:, None] & (e < b)[None, :]
        ours = tl.load(gt + (i * b)[:, None] + e[None, :], mask=mask, other=0)
        total += tl.sum(ours * tl.load(xt + (j * b)[:, None] + e[None, :], mask=mask, other=0), 1)
    tl.store(scores + at, total, mask=at < n)
