"""Anchors that take up what the means have moved by; needs numba. Arrays are contiguous."""

# mypy: ignore-errors

import numpy as np

from ash.jit.kernel import kernel


@kernel
def settle(anchor, fraction, offset, scales, top):
    """anchor + fraction become μ = anchor + fraction + scale · offset, within 0 … top in every column; offset, 0."""
    zero = fraction.dtype.type(0)
    for j in range(anchor.shape[1]):
        s, last = j if scales.shape[1] > 1 else 0, top[j]
        for t in range(len(anchor)):
            total = fraction[t, j] + scales[t, s] * offset[t, j]
            whole = np.rint(total)
            place, rest = anchor[t, j] + np.int64(whole), total - whole
            low = (place < 0) | ((place == 0) & (rest < zero))  # no branches: they would cost it its vectors
            high = (place > last) | ((place == last) & (rest > zero))
            anchor[t, j] = min(max(place, 0), last)
            fraction[t, j] = zero if low | high else rest
            offset[t, j] = zero
