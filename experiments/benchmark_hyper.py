"""The adaptive layer of the benchmark, 784 → 256, 8 points a tuple; what it is measured against, and its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ash import HyperWiring, MLPHypernetwork, SparseLinear
from experiments.benchmark_case import QUICK_BATCH, Case, Layer, Part, Plan, Step, layer_step
from experiments.benchmark_oracle import check_hyper
from experiments.benchmark_report import Row, divided

INPUTS, OUTPUTS, HIDDEN, POINTS = 784, 256, 32, 8
SIZES, RIVALLED = (1024, 2048, 4096), 1024
"""Tuples of the adaptive layer, one of which has rivals."""
GROWTH = 1.5
"""Memory of a point: the largest over the smallest of these."""
RIVALS: dict[str, tuple[float, str]] = {
    "gather": (2.5, "gather, multiply, index_add"),
    "dense_hyper": (0.2, "a dense hypernetwork layer"),
}


def adaptive(k: int, bias: bool = True) -> nn.Module:
    """A layer whose hypernetwork, a perceptron with one hidden layer, emits k tuples for every instance."""
    wiring = HyperWiring(OUTPUTS, INPUTS, k, hypernetwork=partial(MLPHypernetwork, hidden=(HIDDEN,)))
    return SparseLinear(INPUTS, OUTPUTS, bias, wiring=wiring)


class DenseHyper(nn.Module):
    """The same perceptron emits every weight of a dense layer, for every instance: (b, i) -> (b, o)."""

    def __init__(self) -> None:
        super().__init__()
        self.hypernetwork = MLPHypernetwork((INPUTS,), OUTPUTS, INPUTS, hidden=(HIDDEN,))
        self.bias = nn.Parameter(torch.zeros(OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.hypernetwork(x), x.unsqueeze(-1)).squeeze(-1) + self.bias


class Gathered(nn.Module):
    """What a sparse weight per instance cannot do without: gather, multiply, add up, over given indices and values."""

    def __init__(self, batch: int, k: int):
        super().__init__()
        n = k * POINTS
        self.values = nn.Parameter(torch.randn(batch, n))
        instance = torch.arange(batch).unsqueeze(-1)
        self.rows = (torch.randint(OUTPUTS, (batch, n)) + OUTPUTS * instance).flatten()
        self.cols = torch.randint(INPUTS, (batch, n))

    def forward(self, x: Tensor) -> Tensor:
        products = self.values * x.gather(1, self.cols)
        y = products.new_zeros(len(x) * OUTPUTS).index_add(0, self.rows, products.flatten())
        return y.reshape(len(x), OUTPUTS)


def adaptive_step(case: Case) -> Step:
    """A step of the adaptive layer; against the bare gathering without a bias."""
    return layer_step(adaptive(case.size, bias=case.rival != "gather"), case, INPUTS, OUTPUTS)


def dense_hyper_step(case: Case) -> Step:
    """A step of the layer all of whose weights are emitted."""
    return layer_step(DenseHyper(), case, INPUTS, OUTPUTS)


def gathered_step(case: Case) -> Step:
    """A step of the product alone."""
    return layer_step(Gathered(case.batch, case.size), case, INPUTS, OUTPUTS)


def plan(quick: bool) -> Plan:
    """The adaptive layer at some sizes, one of them beside its rivals."""
    sizes, rivalled = ((16, 32), 32) if quick else (SIZES, RIVALLED)
    what = f"adaptive {INPUTS} → {OUTPUTS}"
    found: Plan = [
        (Row(f"hyper_{k}_bytes", f"{what}, {k:,} tuples", "bytes", size=k), Case("hyper", "bytes", k)) for k in sizes
    ]
    found += [
        (Row(f"hyper_{rivalled}_seconds", f"{what}, {rivalled:,} tuples", "seconds"), Case("hyper", size=rivalled)),
        (
            Row("dense_hyper_bytes", f"dense hypernetwork {INPUTS} → {OUTPUTS}", "bytes"),
            Case("dense_hyper", "bytes"),
        ),
    ]
    return found + [
        (
            Row(f"hyper_{rivalled}_{rival}", f"{what}, {rivalled:,} tuples / {words}", "ratio", bar),
            Case("hyper", "ratio", rivalled, rival=rival),
        )
        for rival, (bar, words) in RIVALS.items()
    ]


def _batch(quick: bool) -> int:
    return QUICK_BATCH if quick else Case("hyper").batch


def memory(rows: Sequence[Row], quick: bool) -> list[Row]:
    """Bytes of the adaptive layer for each point, their growth, and its memory beside the dense hypernetwork's."""
    own = [row for row in rows if row.name.startswith("hyper_") and row.figure == "bytes" and row.shown]
    found = [
        divided(row, f"{row.name}_each", f"{row.what}, for each point", POINTS * _batch(quick) * row.size, "each")
        for row in own
    ]
    if len(own) > 1:
        growth = max(row.median or 0 for row in found) / min(row.median or 0 for row in found)
        what = "memory for each point, largest / smallest of these"
        found.append(Row("hyper_memory_growth", what, "ratio", None if quick else GROWTH, growth, growth, growth))
    dense = next((row.median for row in rows if row.name == "dense_hyper_bytes" and row.shown), None)
    beside = [row for row in own if row.size == RIVALLED or quick][-1:]
    if dense:
        what = "memory, adaptive / dense hypernetwork layer"
        ratios = [divided(row, "hyper_dense_memory", what, dense, "ratio") for row in beside]
        found += [row if quick else replace(row, bar=1.0) for row in ratios]
    return found


PART = Part(
    layers={
        "hyper": Layer(
            adaptive_step,
            lambda case: check_hyper(),
            {"gather": gathered_step, "dense_hyper": dense_hyper_step},
            warm={"batch": 16},
        ),
        "dense_hyper": Layer(dense_hyper_step, lambda case: None, warm={"batch": 16}),
    },
    plan=plan,
    derived=memory,
)
