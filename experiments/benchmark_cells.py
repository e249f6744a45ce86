"""Rows of the benchmark on one context of many narrow tuples: shares by cells beside the streamed whole table.

The two are compared on the layer that is measured, in output and gradients, before any time is taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ash import Context, GaussianWiring, SparseLinear
from experiments.benchmark_case import QUICK_BATCH, Case, Layer, Part, Plan, Step
from experiments.benchmark_report import Row
from experiments.measure import spread

SIZE, QUICK_SIZE = 16_384, 128
SCALE = 1.0
"""Of all tuples, in units of an index."""
BAR = 1 / 20
TOLERANCE = 1e-5
"""Of output and gradients, relative to the largest of each."""
ROUNDS, TABLES = 5, 2
"""Steps by cells, and by the table, one of which takes as long as many of them."""
KERNELS = {"cells": ("student_t", "whole"), "cells_gaussian": ("gaussian", "whole_gaussian")}

Train = Callable[[str], list[Tensor]]


def plan(quick: bool, kinds: Sequence[str]) -> Plan:
    """A step by cells over a step by the whole table, of these kinds."""
    size, bar, batch = (QUICK_SIZE, None, QUICK_BATCH) if quick else (SIZE, BAR, 64)
    return [
        (
            Row(f"cells_{size}_{name}", f"{size:,} narrow tuples, {kernel}: cells / whole table", "ratio", bar),
            Case(layer, "ratio", size, batch=batch),
        )
        for layer, (kernel, name) in KERNELS.items()
        if layer in kinds
    ]


def train(case: Case) -> Train:
    """A training step by `cells` or by the `table`, always of the same draw; gives output and gradients."""
    n = case.size
    wiring = GaussianWiring(n, n, n, kernel=KERNELS[case.layer][0], context="all", scale=SCALE)
    layer = SparseLinear(n, n, wiring=wiring)
    x, g = torch.randn(case.batch, n, requires_grad=True), torch.randn(case.batch, n)

    def step(shares: str) -> list[Tensor]:
        wiring.context = Context("all", shares=shares)
        torch.manual_seed(0)
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], g)]

    return step


def cells_step(case: Case) -> Step:
    """A step by cells."""
    step = train(case)
    return lambda: step("cells")


def check(case: Case) -> float:
    """Largest relative error of output and gradients by cells against the whole table; fails above `TOLERANCE`."""
    step = train(case)
    pairs = [(a.detach(), b.detach()) for a, b in zip(step("cells"), step("table"), strict=True)]
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if not error <= TOLERANCE:
        raise AssertionError(f"shares by cells are off by {error:.2g}, relative to the table's largest number")
    return error


def measure(case: Case) -> dict[str, Any]:
    """Seconds of every step by cells over those of the table's median one."""
    step = train(case)
    step("cells")
    seconds = {
        name: [_seconds(step, name) for _ in range(runs)] for name, runs in (("table", TABLES), ("cells", ROUNDS))
    }
    whole = statistics.median(seconds["table"])
    own = {"layer": spread(seconds["cells"]), "rival": spread(seconds["table"])}
    return {**spread([each / whole for each in seconds["cells"]]), "seconds": own}


def _seconds(step: Train, shares: str) -> float:
    begun = time.perf_counter()
    step(shares)
    return time.perf_counter() - begun


LAYER = Layer(cells_step, check, measure=measure)
PART = Part({"cells_gaussian": LAYER}, partial(plan, kinds=["cells_gaussian"]))
FAT_PART = Part({"cells": LAYER}, partial(plan, kinds=["cells"]), suite="scale")
"""Fat tails, whose table takes a minute."""
