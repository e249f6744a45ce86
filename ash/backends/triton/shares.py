"""Device functions that weigh the points of tuples: `ash.shares` for what stays in registers.

Points, anchors, residuals and inverse scales are tuples of rows, as in `drawing.py`. NU is 0 for a Gaussian.
"""

# mypy: ignore-errors

import triton.language as tl

from ash.backends.triton.kernel import kernel


@kernel
def inverses_of(scales, Q: tl.constexpr):
    """1 / σ of every column; scales below `ash.shares.SMALLEST` count as that."""
    rows = ()
    for j in tl.static_range(Q):
        rows = rows + (1.0 / tl.maximum(scales[j], 1e-8),)
    return rows


@kernel
def away(point, anchor, residual):
    """p − μ."""
    return (point.to(tl.int64) - anchor).to(residual.dtype) - residual


@kernel
def distance(c: tl.constexpr, points, anchors, residuals, inverses, Q: tl.constexpr):
    """u of point c: Σ (p − μ)² / σ²."""
    u = away(points[c * Q], anchors[0], residuals[0]) * inverses[0]
    u = u * u
    for j in tl.static_range(1, Q):
        d = away(points[c * Q + j], anchors[j], residuals[j]) * inverses[j]
        u += d * d
    return u


@kernel
def repeated(c: tl.constexpr, points, Q: tl.constexpr):
    """Whether point c stands earlier in its tuple already."""
    found = points[0] != points[0]
    for b in tl.static_range(c):
        same = points[b * Q] == points[c * Q]
        for j in tl.static_range(1, Q):
            same = same & (points[b * Q + j] == points[c * Q + j])
        found = found | same
    return found


@kernel
def density(u, least, NU: tl.constexpr, Q: tl.constexpr):
    """The kernel's density at u over that at `least`."""
    if NU == 0:
        relative = tl.exp((least - u) * 0.5)
    else:
        base = (NU + least) / (NU + u)
        if NU + Q == 2:
            relative = base
        elif NU + Q == 3:
            relative = base * tl.sqrt(base)
        elif NU + Q == 4:
            relative = base * base
        elif NU + Q == 5:
            relative = base * base * tl.sqrt(base)
        else:
            powered = tl.exp(tl.log(tl.maximum(base, 1e-37)) * (0.5 * (NU + Q)))
            relative = tl.where(base > 0, powered, 0.0)
    return relative


@kernel
def slope(u, NU: tl.constexpr, Q: tl.constexpr):
    """d log density / du."""
    fall = tl.full(u.shape, -0.5, u.dtype)
    if NU > 0:
        fall = (-0.5 * (NU + Q)) / (NU + u)
    return fall


@kernel
def own_distances(points, anchors, residuals, inverses, M: tl.constexpr, Q: tl.constexpr):
    """u of every point of a tuple; infinite where it stands earlier already."""
    us = ()
    for c in tl.static_range(M):
        u = distance(c, points, anchors, residuals, inverses, Q)
        us = us + (tl.where(repeated(c, points, Q), float("inf"), u),)
    return us


@kernel
def own_shares(us, M: tl.constexpr, Q: tl.constexpr, NU: tl.constexpr):
    """The share of every point of a tuple that is a context of its own."""
    least = us[0]
    for c in tl.static_range(1, M):
        least = tl.minimum(least, us[c])
    total = density(us[0], least, NU, Q)
    for c in tl.static_range(1, M):
        total += density(us[c], least, NU, Q)
    shares = ()
    for c in tl.static_range(M):
        shares = shares + (density(us[c], least, NU, Q) / total,)
    return shares
