"""The points that the kernels draw, in plain torch, bit for bit.

A point is a function of the seed, the number of its tuple and its place among the tuple's points alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.jit.tuples import CELLS, quantiles

NARROW = 1 << 16
"""Columns up to this size take 32 random bits a point and float32; beyond, 64 bits and float64."""

LARGEST = 1 << 31
"""The largest size of an index column."""

HALF = (1 << 32) - 1


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


STEP, FIRST, SECOND = (_signed(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Places:
    """Where a tuple's points may lie, and of which kinds they are.

    Attributes:
        sizes: of the learned columns.
        widths: of the window of local points in every column; 0 where they are normal.
        counts: whether there are corners; numbers of uniform, local and further uniform points.
    """

    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    counts: tuple[int, int, int, int]

    @property
    def wide(self) -> bool:
        """Whether positions take float64 and 64 random bits."""
        return max(self.sizes) > NARROW

    @property
    def corners(self) -> int:
        """How many corners a tuple has."""
        return 2 ** len(self.sizes) if self.counts[0] else 0

    @property
    def drawn(self) -> int:
        """How many points are drawn at random."""
        return sum(self.counts[1:])

    @property
    def m(self) -> int:
        """Points of a tuple."""
        return self.corners + self.drawn


@cache
def table(wide: bool, device: torch.device) -> Float[Tensor, " ends"]:
    """Quantiles of the normal distribution at the ends of its 2^CELLS cells."""
    return quantiles().to(device, torch.float64 if wide else torch.float32)


def draw(
    anchors: Int64[Tensor, "t q"],
    residuals: Float[Tensor, "t q"],
    scales: Float[Tensor, "t s"],
    places: Places,
    seed: Int64[Tensor, " one"],
) -> Int64[Tensor, "q t m"]:
    """The points of tuples, the nearest corner first, then uniform, local and further uniform ones."""
    exact = torch.float64 if places.wide else torch.float32
    columns = []
    for j in range(len(places.sizes)):
        own = anchors[:, j], residuals[:, j].to(exact), scales[:, j if scales.shape[1] > 1 else 0].to(exact)
        columns.append(torch.stack([*_corners(*own[:2], j, places), *_drawn(*own, j, places, seed)], -1))
    return torch.stack(columns)


def _corners(anchor: Tensor, residual: Tensor, j: int, places: Places) -> list[Tensor]:
    q, top = len(places.sizes), places.sizes[j] - 1
    near = (anchor + _whole(residual, places.wide)).clamp(0, top)
    step = torch.where(residual - (near - anchor).to(residual.dtype) >= 0, 1, -1)
    far = (near + step).clamp(0, top)
    return [far if (c >> (q - 1 - j)) & 1 else near for c in range(places.corners)]


def _drawn(anchor: Tensor, residual: Tensor, scale: Tensor, j: int, places: Places, seed: Tensor) -> list[Tensor]:
    points, size, width = [], places.sizes[j], places.widths[j]
    first, last = places.counts[1], places.counts[1] + places.counts[2]
    for d in range(places.drawn):
        bits = _bits(len(anchor), d, j, places, seed)
        if not first <= d < last:
            points.append(_uniform(bits, size, places.wide))
        elif width:
            low = anchor + _whole(residual - 0.5 * (width - 1), places.wide)
            points.append(low.clamp(0, size - width) + _uniform(bits, width, places.wide))
        else:
            noise = _normal(bits, places.wide) * scale
            points.append((anchor + _whole(residual + noise, places.wide)).clamp(0, size - 1))
    return points


def _bits(tuples: int, d: int, j: int, places: Places, seed: Tensor) -> Tensor:
    """64 random bits of every tuple's d-th drawn point in column j; 32 for narrow columns, of which two share 64."""
    q = len(places.sizes)
    one = j if places.wide else j - j % 2
    number = torch.arange(tuples, device=seed.device) * (places.drawn * q) + (d * q + one)
    z = seed + number * STEP  # splitmix64 (Steele, Lea and Flood, 2014)
    z = (z ^ _right(z, 30)) * FIRST
    z = (z ^ _right(z, 27)) * SECOND
    z = z ^ _right(z, 31)
    if places.wide:
        return z
    return _right(z, 32) if j % 2 else z & HALF


def _right(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right, zeros moving in."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _uniform(bits: Tensor, size: int, wide: bool) -> Tensor:
    """A number below size: the upper half of the product of the bits and the size."""
    if not wide:
        return (bits * size) >> 32
    return (_right(bits, 32) * size + (((bits & HALF) * size) >> 32)) >> 32


def _normal(bits: Tensor, wide: bool) -> Tensor:
    """A normal number, linear within the cells of the table of quantiles."""
    ends, rest = table(wide, bits.device), (64 if wide else 32) - CELLS
    cell = _right(bits, rest)
    part = (bits & ((1 << rest) - 1)).to(ends.dtype) * 2.0**-rest
    low = ends[cell]
    return low + part * (ends[cell + 1] - low)


def _whole(numbers: Tensor, wide: bool) -> Tensor:
    """The nearest integers, ties to even, within what no position exceeds."""
    most = float(1 << (40 if wide else 20))
    return numbers.clamp(-most, most).round().long()
