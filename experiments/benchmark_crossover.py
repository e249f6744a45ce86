"""Rows of the benchmark on the crossover with dense: from which density on a dense product trains faster.

- `crossover_N`: the density of N × N, batch 64, from which a step of a static layer is faster with `backend="dense"`
  than with `"torch"`; 0 where it always is. What `"auto"` follows.
- `crossover_N_linear`: the density from which `nn.Linear` is faster than the layer as it is chosen.
- `crossover_N_auto`: at densities 1.5 times the crossover and the crossover over 1.5, seconds of what `"auto"` takes
  over those of the other; the larger of the two.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

import torch
from torch import nn

from ash import SparseLinear, StaticWiring
from ash.backends import choose_backend
from experiments.benchmark_case import Case, Layer, Part, Plan, Step, layer_step
from experiments.benchmark_oracle import check_static
from experiments.benchmark_report import Row
from experiments.measure import timed

SIZES = (256, 512, 1024, 2048)
LOWEST = 1e-3
"""Density from which is searched."""
HALVINGS, REPEATS = 6, 3
"""Of the interval, on a logarithmic scale: to 11 %; and how often a crossover is taken."""
APART = 1.5
"""Factor by which the densities at which the choice is checked are away from the crossover."""
BAR = 1.15
SHARE = 1 / 64
"""Of a case's budget, the seconds for each density."""
BACKENDS = ("torch", "dense")


def plan(quick: bool) -> Plan:
    """Both crossovers and the check of the choice, for each size."""
    found: Plan = []
    for n in (96,) if quick else SIZES:
        what = f"static {n:,}²"
        rows = [
            Row(f"crossover_{n}", f"{what}: density from which backend dense is faster", "density"),
            Row(f"crossover_{n}_linear", f"{what}: density from which nn.Linear is faster", "density"),
            Row(f"crossover_{n}_auto", f"{what}: what auto takes / the other, {APART} × beside it", "ratio", BAR),
        ]
        found += [(row, Case(layer, "ratio", n)) for row, layer in zip(rows, LAYERS, strict=True)]
    return found


def steps(case: Case, density: float, linear: bool = False) -> dict[str, Step]:
    """A step by CSR and one by the dense product, on the same entries; or of the layer and of `nn.Linear`."""
    n = case.size
    wiring = StaticWiring(n, n, density=density)
    if linear:
        layers = [SparseLinear(n, n, wiring=wiring), nn.Linear(n, n)]
    else:
        layers = [SparseLinear(n, n, wiring=wiring, backend=name) for name in BACKENDS]
    return {name: layer_step(layer, case) for name, layer in zip(BACKENDS, layers, strict=True)}


def ratio(case: Case, density: float, linear: bool = False) -> float:
    """Seconds of the sparse step over those of the dense one, the median of steps that alternate."""
    made = steps(case, density, linear)
    for step in made.values():
        step()
    seconds = timed(made, case.budget * SHARE, case.most)
    return statistics.median(a / b for a, b in zip(*(seconds[name] for name in BACKENDS), strict=True))


def crossover(case: Case, linear: bool = False) -> float:
    """The density where both take the same time; 0 where the dense step is faster at any, 1 where it never is."""
    low, high = LOWEST, 1.0
    if ratio(case, low, linear) > 1:
        return 0.0
    if ratio(case, high, linear) < 1:
        return 1.0
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ratio(case, middle, linear) < 1 else (low, middle)
    return math.sqrt(low * high)


def measure(case: Case, linear: bool) -> dict[str, Any]:
    """The crossover, some times."""
    low, median, high = sorted(crossover(case, linear) for _ in range(REPEATS))
    return {"low": low, "median": median, "high": high}


def measure_auto(case: Case) -> dict[str, Any]:
    """How much slower the choice is than the other one, at worst, beside the crossover."""
    middle = crossover(case)
    densities = [each for each in (middle / APART, min(1.0, middle * APART)) if each >= LOWEST] or [0.1]
    found = sorted(_chosen(case, density) for density in densities)
    return {"low": found[0], "median": found[-1], "high": found[-1]}


def _chosen(case: Case, density: float) -> float:
    entries = round(density * case.size**2)
    sparse = ratio(case, density)
    return sparse if choose_backend(case.size, case.size, entries) == "torch" else 1 / sparse


def _prepare(case: Case) -> Step:
    return steps(case, case.density)["torch"]


def _check(case: Case) -> float:
    with torch.random.fork_rng():
        return check_static()


LAYERS = {
    "crossover": Layer(_prepare, _check, measure=partial(measure, linear=False)),
    "crossover_linear": Layer(_prepare, _check, measure=partial(measure, linear=True)),
    "crossover_auto": Layer(_prepare, _check, measure=measure_auto),
}
PART = Part(LAYERS, plan)
