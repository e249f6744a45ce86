"""Device functions for the table of a chunk: its T tuples by the points of all of them, P at a time.

The scratch of a program holds for COUNT points, tuple by tuple, their rows of y (−1: dead), rows of x and positions
in the learned columns; and how far a dead point is from everything (infinitely; 0 for others).
"""

# mypy: ignore-errors

import triton.language as tl

from ash.backends.triton.kernel import kernel
from ash.backends.triton.shares import density, slope


@kernel
def bury(lines, dead, inputs, COUNT: tl.constexpr, P: tl.constexpr):
    """Mark the points that stand earlier in their chunk already, by flattened positions."""
    for point in range(0, COUNT, P):
        at = point + tl.arange(0, P)
        rows = tl.load(lines + at)
        ids = tl.where(rows >= 0, rows * inputs + tl.load(lines + COUNT + at), -1)
        found = tl.where(rows >= 0, 0, 1)
        for earlier in range(0, point + P, P):
            before = earlier + tl.arange(0, P)
            their = tl.load(lines + before)
            theirs = tl.where(their >= 0, their * inputs + tl.load(lines + COUNT + before), -2)
            same = (ids[:, None] == theirs[None, :]) & (before[None, :] < at[:, None])
            found += tl.sum(same.to(tl.int32), 1)
        tl.store(dead + at, tl.where(found > 0, float("inf"), 0.0))


@kernel
def differences(lines, dead, at, near, rest, inverses, own, COUNT: tl.constexpr, M: tl.constexpr, GROUPS: tl.constexpr):
    """p − μ of every column, and u, of all tuples and some points; infinite for other fixed columns too."""
    Q: tl.constexpr = len(near)
    ds = ()
    u = tl.load(dead + at)[None, :] + tl.zeros((near[0].shape[0], at.shape[0]), rest[0].dtype)
    if GROUPS:
        u = tl.where(own[:, None] == tl.load(lines + (2 + Q) * COUNT + at)[None, :], u, float("inf"))
    for j in tl.static_range(Q):
        there = tl.load(lines + (2 + j) * COUNT + at)
        d = (there[None, :] - near[j][:, None]).to(u.dtype) - rest[j][:, None]
        ds = ds + (d,)
        part = d * inverses[j][:, None]
        u += part * part
    return ds, u


@kernel
def sums(
    lines, dead, near, rest, inverses, own, live, NU: tl.constexpr,
    COUNT: tl.constexpr, M: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Of every tuple the distance of its nearest point, and the sum of densities relative to that."""
    Q: tl.constexpr = len(near)
    least = tl.full(live.shape, float("inf"), rest[0].dtype)
    for point in range(0, COUNT, P):
        _, u = differences(lines, dead, point + tl.arange(0, P), near, rest, inverses, own, COUNT, M, GROUPS)
        least = tl.minimum(least, tl.min(u, 1))
    least = tl.where(live, least, 0.0)
    total = tl.where(live, least * 0, 1.0)
    for point in range(0, COUNT, P):
        _, u = differences(lines, dead, point + tl.arange(0, P), near, rest, inverses, own, COUNT, M, GROUPS)
        total += tl.sum(tl.where(live[:, None], density(u, least[:, None], NU, Q), 0.0), 1)
    return least, total


@kernel
def weigh(
    lines, dead, weights, value, least, total, near, rest, inverses, own, live, NU: tl.constexpr,
    COUNT: tl.constexpr, M: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The weight of every point: the sum over the tuples of value × share."""
    Q: tl.constexpr = len(near)
    each = tl.where(live, value / total, 0.0)
    for point in range(0, COUNT, P):
        at = point + tl.arange(0, P)
        _, u = differences(lines, dead, at, near, rest, inverses, own, COUNT, M, GROUPS)
        relative = tl.where(live[:, None], density(u, least[:, None], NU, Q), 0.0)
        tl.store(weights + at, tl.sum(relative * each[:, None], 0))


@kernel
def mean_gain(
    lines, dead, gains, least, scale, near, rest, inverses, own, live, NU: tl.constexpr,
    COUNT: tl.constexpr, M: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """ḡ of every tuple: the sum over the points of share × gain."""
    Q: tl.constexpr = len(near)
    mean = least * 0
    for point in range(0, COUNT, P):
        at = point + tl.arange(0, P)
        _, u = differences(lines, dead, at, near, rest, inverses, own, COUNT, M, GROUPS)
        share = tl.where(live[:, None], density(u, least[:, None], NU, Q), 0.0) * scale[:, None]
        mean += tl.sum(share * tl.load(gains + at)[None, :], 1)
    return mean


@kernel
def column_moments(
    j: tl.constexpr, lines, dead, gains, mean, scale, least, near, rest, inverses, own, live, NU: tl.constexpr,
    COUNT: tl.constexpr, M: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Σ flow · (p − μ) and Σ flow · (p − μ)² of column j, with flow = share · (g − ḡ) · slope."""
    Q: tl.constexpr = len(near)
    once, twice = least * 0, least * 0
    for point in range(0, COUNT, P):
        at = point + tl.arange(0, P)
        ds, u = differences(lines, dead, at, near, rest, inverses, own, COUNT, M, GROUPS)
        share = tl.where(live[:, None], density(u, least[:, None], NU, Q), 0.0) * scale[:, None]
        flow = share * (tl.load(gains + at)[None, :] - mean[:, None]) * slope(u, NU, Q)
        once += tl.sum(flow * ds[j], 1)
        twice += tl.sum(flow * ds[j] * ds[j], 1)
    return once, twice
