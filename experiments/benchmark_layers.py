"""Rows and cases of free Gaussian layers and of static ones."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from ash import GaussianWiring, SparseLinear, SparseWeight, StaticWiring
from experiments.benchmark_case import Case, Layer, Part, Plan, Step, copy_step, layer_step
from experiments.benchmark_oracle import check_gaussian, check_static
from experiments.benchmark_report import Row

Bars = tuple[float | None, float | None]
NONE: Bars = (None, None)
ALL: dict[int, Bars] = {512: (0.040, 60e6), 2048: (0.5, 80e6), 8192: (8.0, 120e6)}
"""Bars in seconds and bytes of the layer with one context, by number of tuples."""
EACH: dict[int, Bars] = {10_000: NONE, 30_000: NONE, 100_000: (0.8, 1e9), 300_000: NONE, 1_000_000: NONE}
"""The same of the layer with a context for each tuple."""
NAMES = {"all": ("gaussian", "one context for all"), "tuple": ("tuple", "a context for each tuple")}
GROWTH = {"seconds": ("time", 5.0), "bytes": ("memory", 1.5)}
STATIC = {1024: (128, 0.1), 4096: (128, 0.01), 8192: (64, 0.005)}
"""Batch and density of the static layer, by size."""
RIVALS: dict[str, tuple[dict[int, float], str]] = {
    "bare": (dict.fromkeys(STATIC, 1.15), "three bare products"),
    "sparselab": (dict.fromkeys(STATIC, 1 / 1.3), "sparselab"),
    "dense": ({4096: 1 / 16, 8192: 1 / 40}, "nn.Linear"),
    "limit": ({}, "the bytes that must move, copied"),
}
"""Bars by size, and what a static layer is compared with."""
DENSITIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
DENSITY_SIZE = 2048


def gaussian_step(case: Case) -> Step:
    """A step of as many tuples as rows, 2 + 2 samples besides the corners."""
    n = case.size
    return layer_step(SparseLinear(n, n, wiring=GaussianWiring(n, n, n, context=case.context)), case)


def static_step(case: Case) -> Step:
    """A step of a static layer. Against the bare products, or the bytes, it has no bias, since they have none."""
    n, bias = case.size, case.figure != "ratio" or case.rival not in ("bare", "limit")
    return layer_step(SparseLinear(n, n, bias, wiring=StaticWiring(n, n, density=case.density)), case)


def bare_step(case: Case) -> Step:
    """The three products of a static layer's entries."""
    with torch.no_grad():
        return product_step(StaticWiring(case.size, case.size, density=case.density)(), case.batch)


def product_step(entries: SparseWeight, batch: int) -> Step:
    """The three products that a sparse layer cannot do without; transposes and layouts are made before."""
    with torch.no_grad():
        weight, transposed = entries.to_csr(), entries.transpose().to_csr()
    x, g = torch.randn(weight.shape[1], batch), torch.randn(weight.shape[0], batch)

    def step() -> None:
        weight @ x
        transposed @ g
        torch.sparse.sampled_addmm(weight, g, x.t(), beta=0.0)

    return step


def limit_step(case: Case) -> Step:
    """A copy of the bytes that the three products of a static layer must move at least."""
    return copy_step(product_bytes(round(case.density * case.size**2), case))


def product_bytes(entries: int, case: Case) -> int:
    """A value and an index for each entry and product, and two batches read or written by each of the three."""
    return 3 * (8 * entries + 2 * 4 * case.size * case.batch)


def sparselab_step(case: Case) -> Step:
    """A step of the layer of the package sparselab; raises `ImportError` where it is not installed."""
    package = importlib.import_module("sparselab")
    return layer_step(package.SparseLinear(case.size, case.size, bias=True, sparsity=1 - case.density), case)


def dense_step(case: Case) -> Step:
    """A step of `nn.Linear`."""
    return layer_step(nn.Linear(case.size, case.size), case)


def plan(quick: bool) -> Plan:
    """Time and memory against the number of tuples; static layers beside their rivals, and against the density."""
    if quick:
        gaussians = [*_gaussians("all", {128: NONE}), *_gaussians("tuple", {128: NONE, 256: NONE})]
        return [*gaussians, *_statics({128: (8, 0.05)}), *_densities(128, (0.05, 0.1))]
    gaussians = [*_gaussians("all", ALL), *_gaussians("tuple", EACH)]
    return [*gaussians, *_statics(STATIC), *_densities(DENSITY_SIZE, DENSITIES)]


def _gaussians(context: Literal["tuple", "all"], bars: dict[int, Bars]) -> Plan:
    key, series = NAMES[context]
    kinds: tuple[Literal["seconds", "bytes"], ...] = ("seconds", "bytes")
    return [
        (
            Row(f"{key}_{k}_{kind}", f"{k:,} tuples, {series}", kind, bar, series=series, size=k),
            Case("gaussian", kind, k, context=context),
        )
        for k, both in bars.items()
        for kind, bar in zip(kinds, both, strict=True)
    ]


def _statics(sizes: dict[int, tuple[int, float]]) -> Plan:
    return [
        (
            Row(f"static_{n}_{rival}", f"static {n:,}², {1 - density:.1%} sparse / {words}", "ratio", bars.get(n)),
            Case("static", "ratio", n, batch=batch, density=density, rival=rival),
        )
        for n, (batch, density) in sizes.items()
        for rival, (bars, words) in RIVALS.items()
    ]


def _densities(n: int, densities: Sequence[float]) -> Plan:
    """Time and memory of a static layer at some densities, and of the dense one."""
    found: Plan = []
    kinds: tuple[Literal["seconds", "bytes"], ...] = ("seconds", "bytes")
    for density in (*densities, 1.0):
        layer, series = ("static", "static") if density < 1 else ("dense", "dense nn.Linear")
        what = f"{layer} {n:,}²" + (f", density {density:.1%}" if density < 1 else "")
        for kind in kinds:
            name = f"density_{density:g}_{kind}"
            row = Row(name, what, kind, series=series, size=density, axis=f"density of {n:,} × {n:,}")
            found.append((row, Case(layer, kind, n, density=density)))
    return found


def growths(rows: Sequence[Row], quick: bool) -> list[Row]:
    """How much more time and memory a tuple takes at any size than at the smallest, with a context for each.

    Of the medians, and so of the smallest and of the largest figures. Only where every size was measured.
    """
    found = []
    for figure, (word, bar) in GROWTH.items():
        own = [row for row, _ in plan(quick) if row.series == NAMES["tuple"][1] and row.figure == figure]
        names = {row.name for row in own}
        each = [row for row in rows if row.name in names and row.shown]
        if len(each) == len(names):
            what = f"{word} per tuple, at most / with the fewest tuples"
            low, median, high = (_growth(each, name) for name in ("low", "median", "high"))
            found.append(Row(f"tuple_{word}_growth", what, "ratio", None if quick else bar, low, median, high))
    return found


def _growth(rows: Sequence[Row], name: str) -> float:
    each = [getattr(row, name) / row.size for row in sorted(rows, key=lambda row: row.size)]
    return float(max(each) / each[0])


PART = Part(
    layers={
        "gaussian": Layer(gaussian_step, lambda case: check_gaussian(case.context)),
        "static": Layer(
            static_step,
            lambda case: check_static(),
            {"bare": bare_step, "sparselab": sparselab_step, "dense": dense_step, "limit": limit_step},
        ),
        "dense": Layer(dense_step, lambda case: None),
    },
    plan=plan,
    derived=growths,
)
