"""How many entries each layer of a sparse model gets: uniform, Erdős–Rényi, and that with kernel sizes.

A distribution says how many entries layers want in relation to each other. `allot` makes counts of it that keep
to what the layers can hold and sum to the density asked for, to the entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ash.checks import choose, require

HALVINGS = 200
"""Of the interval in which the common factor of all layers is sought: enough for any double."""


@dataclass(frozen=True)
class LayerSize:
    """The weight tensor of a layer: `out` × `inputs` units (features, channels), and a kernel's sizes if it has one.

    Groups of a convolution are told apart by `inputs`, those of one group. A layer of several input dimensions
    (an image of 28 × 28) has their product as `inputs`.
    """

    out: int
    inputs: int
    kernel: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        """Numbers of the dense tensor."""
        return self.out * self.inputs * math.prod(self.kernel)


Distribution = Callable[[LayerSize], float]
"""Entries that a layer wants, up to a factor that all layers share."""


def uniform(layer: LayerSize) -> float:
    """The same density in every layer."""
    return float(layer.weights)


def er(layer: LayerSize) -> float:
    """Erdős–Rényi: a density in proportion to (out + inputs) / (out · inputs), so that wide layers are sparser.

    Source: Mocanu et al. 2018, Scalable training of artificial neural networks with adaptive sparse connectivity.
    """
    return (layer.out + layer.inputs) * float(math.prod(layer.kernel))


def erk(layer: LayerSize) -> float:
    """Erdős–Rényi with the kernel: a density in proportion to (out + inputs + Σ kernel) / (out · inputs · Π kernel).

    Of a layer without a kernel the same as `er`. Source: Evci et al. 2020 (RigL, arXiv 1911.11134), section 3.
    """
    return float(layer.out + layer.inputs + sum(layer.kernel))


DISTRIBUTIONS: dict[str, Distribution] = {"uniform": uniform, "er": er, "erk": erk}


def allot(
    layers: Mapping[str, LayerSize],
    density: float,
    distribution: str | Distribution = "erk",
    dense: Collection[str] = (),
) -> dict[str, int]:
    """Entries of every layer, `round(density · all weights)` in total.

    Args:
        layers: their sizes by name.
        density: share of all weights, 0 … 1, those of `dense` layers among them.
        distribution: `"uniform"`, `"er"`, `"erk"`, or a function of a `LayerSize`.
        dense: names of layers that keep all their weights; the others share what they leave.

    No layer gets less than 1 entry or more than it has weights: what a layer cannot take goes to the others in
    their proportions. Fractions are rounded so that the total holds (those with the largest remainders up).

    Raises `UserError` for a density outside (0, 1], no layers, an unknown distribution or dense name, and dense
    layers that leave less than one entry for each of the others.
    """
    require(0 < density <= 1, f"density={density}; expected a number above 0 and at most 1.")
    require(bool(layers), "no layers to distribute entries over; expected at least one.")
    strange = sorted(set(dense) - set(layers))
    require(not strange, f"dense layers {strange}; expected names among {sorted(layers)}.")
    wanted = choose("distribution", distribution, DISTRIBUTIONS) if isinstance(distribution, str) else distribution
    kept = {name: layers[name].weights for name in dense}
    rest = [name for name in layers if name not in kept]
    total = round(density * sum(layer.weights for layer in layers.values())) - sum(kept.values())
    require(
        total >= len(rest) or not kept,
        f"density={density} with {sorted(kept)} dense leaves {max(0, total)} entries for {len(rest)} other layers; "
        "expected at least one each; raise the density or keep fewer layers dense.",
    )
    counts = share_out([wanted(layers[name]) for name in rest], [layers[name].weights for name in rest], total, 1)
    found = dict(zip(rest, counts, strict=True)) | kept
    return {name: found[name] for name in layers}


def share_out(wanted: Sequence[float], most: Sequence[int], total: int, least: int = 0) -> list[int]:
    """`total` divided in proportion to `wanted`, each part from `least` to its `most`, in whole numbers.

    The sum is `total`, or what the bounds allow where they do not allow it.
    """
    bounds = [(min(least, m), m) for m in most]
    total = min(max(total, sum(low for low, _ in bounds)), sum(most))
    low, high = 0.0, max((m / w for m, w in zip(most, wanted, strict=True) if w > 0), default=0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = sum(_clip(middle * w, b) for w, b in zip(wanted, bounds, strict=True)) >= total
        low, high = (low, middle) if enough else (middle, high)
    parts = [_clip(high * w, b) for w, b in zip(wanted, bounds, strict=True)]
    return _whole(parts, bounds, total)


def _clip(part: float, bounds: tuple[int, int]) -> float:
    return min(max(part, bounds[0]), bounds[1])


def _whole(parts: Sequence[float], bounds: Sequence[tuple[int, int]], total: int) -> list[int]:
    """The parts rounded down, and those with the largest remainders up until the total holds."""
    counts = [math.floor(part + 1e-9) for part in parts]  # 1e-9: the interval ends just beside a whole number
    order = sorted(range(len(parts)), key=lambda i: counts[i] - parts[i])
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        free = [i for i in order if bounds[i][0] <= counts[i] + step <= bounds[i][1]]
        for i in free[: abs(total - sum(counts))]:
            counts[i] += step
    return counts
