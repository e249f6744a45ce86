"""Free Gaussian layers with a context for each tuple, all columns learned or the outputs fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from ash import GaussianWiring, Sampling, SparseLinear, Template
from experiments.benchmark_case import Case, Layer, Part, Plan, Step, copy_step, layer_step
from experiments.benchmark_layers import product_bytes, product_step
from experiments.benchmark_oracle import compare
from experiments.benchmark_report import Row

TUPLES, ROWS, POINTS = 100_000, 16_384, 8
"""Of the layer; points of each tuple."""
SMALL, SMALL_ROWS, SMALL_BATCH = 5_000, 96, 256
"""Tuples, rows and batch of the check: enough points for the kernels that serve large layers."""
QUICK_ROWS = 82
BARS: Mapping[str, Mapping[str, float]] = {"free": {"bare": 2.5}, "free_fixed": {"bare": 2.0}}
WORDS = {"free": "tuples, 8 points each", "free_fixed": "tuples, outputs fixed, 8 points each"}
RIVALS = {"bare": "three bare products", "limit": "the bytes that must move, copied"}


def free_wiring(n: int, k: int, fixed: bool) -> GaussianWiring:
    """k tuples on n × n: 4 corners, 2 + 2 samples; or, the outputs fixed row by row, 2 corners, 2 + 4 samples."""
    if not fixed:
        return GaussianWiring(n, n, k)
    template = Template(2, (0,), (torch.arange(k) * n // k).unsqueeze(-1))
    return GaussianWiring(n, n, template=template, sampling=Sampling(global_samples=2, local_samples=4))


def free_step(case: Case, fixed: bool) -> Step:
    """A step of the layer; without a bias, since the products have none."""
    n = case.size
    return layer_step(SparseLinear(n, n, False, wiring=free_wiring(n, tuples(n), fixed)), case)


def tuples(n: int) -> int:
    """How many tuples a layer of n rows has."""
    return round(n * TUPLES / ROWS)


def free_bare_step(case: Case, fixed: bool) -> Step:
    """The three products on the points of a draw."""
    return product_step(free_wiring(case.size, tuples(case.size), fixed)(), case.batch)


def free_limit_step(case: Case) -> Step:
    """A copy of the bytes that the three products must move at least."""
    return copy_step(product_bytes(POINTS * tuples(case.size), case))


def check_free(fixed: bool) -> float:
    """Largest relative error of output and gradients of a layer in training against a small dense one."""
    wiring = free_wiring(SMALL_ROWS, SMALL, fixed)
    with torch.no_grad():
        wiring.means.offset.normal_(std=0.3)
        wiring.log_scale.uniform_(-1, 3)
    layer = SparseLinear(SMALL_ROWS, SMALL_ROWS, wiring=wiring)
    x, seed = torch.randn(SMALL_BATCH, SMALL_ROWS, requires_grad=True), torch.get_rng_state()
    y = layer(x)
    torch.set_rng_state(seed)
    dense = _dense(wiring, wiring().indices.reshape(SMALL, POINTS, 2))
    return compare(layer, x, y, linear(x, dense, layer.bias))


def _dense(wiring: GaussianWiring, points: Tensor) -> Tensor:
    """The weight by equation 2 of arXiv 1810.09184 with Student's t, every tuple a context; points (k, m, 2)."""
    own = wiring.tuples()
    learned = points[..., list(wiring.template.learned)]
    u = (learned - own.anchors.unsqueeze(1) - own.residuals.unsqueeze(1)).square().sum(-1) / own.scales.square()
    same = (points.unsqueeze(-2) == points.unsqueeze(-3)).all(-1).tril(-1).any(-1)
    power = (1 + learned.shape[-1]) / 2
    shares = torch.softmax((-power * torch.log1p(u)).masked_fill(same, -torch.inf), dim=-1)
    weights = own.values.unsqueeze(-1) * shares
    return torch.zeros(wiring.shape).index_put(tuple(points.unbind(-1)), weights, accumulate=True)


def plan(quick: bool) -> Plan:
    """A step, its memory, and its ratios to the bare products and to the memory's limit."""
    n, found = QUICK_ROWS if quick else ROWS, []
    k = tuples(n)
    for layer, bars in BARS.items():
        what = f"{k:,} {WORDS[layer]}"
        found += [
            (Row(f"{layer}_{k}_{rival}", f"{what} / {words}", "ratio", bars.get(rival)),
             Case(layer, "ratio", n, context="tuple", rival=rival))
            for rival, words in RIVALS.items()
        ]  # fmt: skip
        found.append((Row(f"{layer}_{k}_seconds", what, "seconds"), Case(layer, "seconds", n, context="tuple")))
        found.append((Row(f"{layer}_{k}_bytes", what, "bytes"), Case(layer, "bytes", n, context="tuple")))
    return found


def _layer(fixed: bool) -> Layer:
    rivals: dict[str, Callable[[Case], Step]] = {
        "bare": partial(free_bare_step, fixed=fixed),
        "limit": free_limit_step,
    }
    return Layer(partial(free_step, fixed=fixed), lambda case: check_free(fixed), rivals, {"size": 1024})


PART = Part(layers={"free": _layer(False), "free_fixed": _layer(True)}, plan=plan)
