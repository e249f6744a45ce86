"""Layers of millions of rows and columns in the benchmark: free tuples that train, and RigL with its growth.

- `free_1e7_…`: a whole step (forward, backward, Adam, anchors) of 5,000,000 tuples of 8 points on 10^7 × 10^7, batch 8.
  Before, tuples near 10^7 are trained beside the same problem at the origin in float64: their means have to agree to
  a thousandth of an index.
- `rigl_1e6_…`: a step of 10,000,000 weights on 10^6 × 10^6, batch 8, with SGD with momentum, and its memory.
  `rigl_1e6_growth_…`: a rewiring after it, of 30 % of the weights, exact over all 10^12 entries; inputs and gradients
  are normal numbers. `rigl_1e6_relu_growth_seconds`: inputs after a ReLU, 70 % of which are always 0, and half of the
  gradients 0. `rigl_1e6_sampled_growth_seconds`: normal numbers at batch 64, where norms hardly differ and every entry
  has to be looked at, exact among 1 % of the rows (`growth_share`). `rigl_1e6_growth_memory`: the peak of a step with
  a rewiring over that of one without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ash import GaussianWiring, Rewirer, RigLWiring, Sampling, SparseLinear, parameter_groups
from ash.pattern import ravel
from experiments.benchmark_case import Case, Layer, Part, Plan, Step, train_step
from experiments.benchmark_oracle import check_gaussian
from experiments.benchmark_report import Row, single
from experiments.benchmark_rigl import FRACTION, LR, MOMENTUM, check_rigl, sparse_step
from experiments.measure import peak_above, spread

FREE, BATCH, ROUNDS = 10_000_000, 8, 3
SECONDS, BYTES = 60.0, 8e9
"""Bars of a step of the free layer."""
RIGL, DENSITY, LARGE = 1_000_000, 1e-5, 64
"""RigL's layer; the batch at which rows are sampled."""
MEMORY = 1.5
"""Bar of the memory of a step with a rewiring over that of one without."""
SHARE, SILENT = 0.01, 0.7
"""Of the rows that are sampled; of the inputs that are always 0."""
WINDOW, TOLERANCE = 16, 1e-3
"""Of the tuples that are trained near 10^7: the indices that they move in, and the error of their means in indices."""

WARM = Case("rigl_growth", size=4096, batch=BATCH, density=0.001)
"""A first rewiring, which loads and compiles what is needed."""


def free_step(case: Case) -> Step:
    """A training step of half as many tuples as rows."""
    layer = SparseLinear(case.size, case.size, wiring=GaussianWiring(case.size, case.size, max(1, case.size // 2)))
    optimizer = torch.optim.Adam(parameter_groups(layer))
    assert isinstance(layer.wiring, GaussianWiring)
    settle = layer.wiring.settle

    def train(x: Tensor, g: Tensor) -> None:
        optimizer.zero_grad()
        layer(x).backward(g)
        optimizer.step()
        settle()

    return train_step(train, case)


def means_far_out(means: str = "anchored", steps: int = 40) -> float:
    """Largest difference, in indices, of means trained near 10^7 and of the same at the origin in float64."""
    far, near = (_trained(shift, means, steps, dtype) for shift, dtype in ((FREE - 100, None), (0, torch.float64)))
    return float((far - near).abs().max())


def _trained(shift: int, means: str, steps: int, dtype: torch.dtype | None) -> Tensor:
    """Means, less the shift, of three tuples that look for three entries with their corners alone."""
    start = torch.tensor([[4.3, 5.8], [7.6, 9.1], [11.2, 10.4]], dtype=torch.float64)
    size = FREE if shift else WINDOW
    wiring = GaussianWiring(
        size, size, len(start), kernel="gaussian", values="ones", means=means, positions=start + shift, scale=0.8,
        scale_ceiling=2.0, sampling=Sampling(global_samples=0, local_samples=0), dtype=dtype,
    )  # fmt: skip
    optimizer = torch.optim.Adam(parameter_groups(wiring, mean_lr=0.05))
    target = torch.zeros(WINDOW, WINDOW, dtype=dtype)
    target[[5, 7, 10], [5, 8, 11]] = 1.0
    for _ in range(steps):
        weight = wiring()
        places = ravel(weight.indices - shift, (WINDOW, WINDOW))
        found = torch.zeros_like(target).flatten().index_add(0, places, weight.values)
        optimizer.zero_grad()
        (found - target.flatten()).square().sum().backward()
        optimizer.step()
    wiring.settle()
    return wiring.tuples().means.detach() - shift


def check_free() -> float:
    """The error against the dense oracle; fails, too, where means far out are not those of the same problem near."""
    off = means_far_out()
    if not off <= TOLERANCE:
        raise AssertionError(f"means near 10^7 are off by {off:.2g} of an index")
    return check_gaussian("tuple")


def rigl_step(case: Case) -> Step:
    """A training step of RigL's layer without a rewiring."""
    return train_step(sparse_step(_rigl(case), 0), case)


def _rigl(case: Case, share: float = 1.0) -> SparseLinear:
    return SparseLinear(case.size, case.size, wiring=partial(RigLWiring, density=case.density, growth_share=share))


def growth(case: Case, kind: str) -> tuple[Step, Callable[[], object]]:
    """A training step of RigL's layer, and the rewiring that follows it."""
    layer = _rigl(case, SHARE if kind == "sampled" else 1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR, momentum=MOMENTUM)
    rewirer = Rewirer(layer, optimizer, every=1, end=1 << 50, fraction=lambda _: FRACTION)
    x, g = factors(case, kind)

    def step() -> None:
        x.grad = None
        optimizer.zero_grad()
        layer(x).backward(g)
        optimizer.step()

    return step, rewirer.step


def factors(case: Case, kind: str) -> tuple[Tensor, Tensor]:
    """Inputs and gradients of the outputs, of which the gradient of the weight is made."""
    x, g = torch.randn(case.batch, case.size), torch.randn(case.batch, case.size)
    if kind == "relu":
        x.relu_().mul_(torch.rand(case.size) >= SILENT)
        g.mul_(torch.rand_like(g) < 0.5)
    return x.requires_grad_(), g


def measure_growth(case: Case, kind: str) -> dict[str, Any]:
    """Seconds of rewirings, each after a step; or the peak of two steps with rewirings, above the base."""
    for event in growth(WARM, kind):
        event()
    if case.figure == "bytes":
        return spread([peak_above(lambda: _both(*growth(case, kind)))])
    step, rewire = growth(case, kind)
    seconds = []
    for _ in range(ROUNDS):
        step()
        begun = time.perf_counter()
        rewire()
        seconds.append(time.perf_counter() - begun)
    return spread(seconds)


def _both(step: Step, rewire: Callable[[], object]) -> Step:
    def both() -> None:
        step()
        rewire()

    return both


def plan(quick: bool) -> Plan:
    """The free layer, and RigL's with its growth."""
    free, rigl, density = (400, 300, 0.02) if quick else (FREE, RIGL, DENSITY)
    what, other = f"{free // 2:,} tuples on {free:,}²", f"RigL {rigl:,}², {round(density * rigl * rigl):,} weights"
    rewiring = f"{other}: a rewiring"
    case = Case("free_scale", size=free, batch=BATCH, density=density, most=ROUNDS)
    at: Callable[..., Case] = partial(Case, size=rigl, batch=BATCH, density=density, most=ROUNDS)
    return [
        (Row("free_1e7_seconds", what, "seconds", SECONDS), case),
        (Row("free_1e7_bytes", what, "bytes", BYTES), Case("free_scale", "bytes", free, BATCH)),
        (Row("rigl_1e6_seconds", other, "seconds"), at("rigl_scale")),
        (Row("rigl_1e6_bytes", other, "bytes"), at("rigl_scale", "bytes")),
        (Row("rigl_1e6_growth_seconds", rewiring, "seconds"), at("rigl_growth")),
        (Row("rigl_1e6_growth_bytes", f"{other}, with rewirings", "bytes"), at("rigl_growth", "bytes")),
        (Row("rigl_1e6_relu_growth_seconds", f"{rewiring}, sparse inputs", "seconds"), at("rigl_relu_growth")),
        (
            Row("rigl_1e6_sampled_growth_seconds", f"{rewiring} in {SHARE:.0%} of the rows, batch {LARGE}", "seconds"),
            at("rigl_sampled_growth", batch=LARGE),
        ),
    ]


def memory(rows: Sequence[Row], quick: bool) -> list[Row]:
    """The peak of a step with a rewiring over that of one without."""
    known = {row.name: row.median for row in rows if row.shown}
    own, plain = known.get("rigl_1e6_growth_bytes"), known.get("rigl_1e6_bytes")
    if not own or not plain:
        return []
    what = "memory, a step with a rewiring / one without"
    return [single("rigl_1e6_growth_memory", what, own / plain, None if quick else MEMORY)]


def _growth_layer(kind: str) -> Layer:
    return Layer(rigl_step, lambda case: check_rigl(), measure=partial(measure_growth, kind=kind))


PART = Part(
    layers={
        "free_scale": Layer(free_step, lambda case: check_free()),
        "rigl_scale": Layer(rigl_step, lambda case: check_rigl()),
        "rigl_growth": _growth_layer("normal"),
        "rigl_relu_growth": _growth_layer("relu"),
        "rigl_sampled_growth": _growth_layer("sampled"),
    },
    plan=plan,
    derived=memory,
    suite="scale",
)
