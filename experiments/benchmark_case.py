"""What a figure of the benchmark is taken of: a case, the kind of layer that it names, and the parts of the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from experiments.benchmark_report import Row

Step = Callable[[], object]
QUICK_BATCH = 8
"""Of quick figures."""


@dataclass(frozen=True)
class Case:
    """What is measured, by default one training step (output, gradients of parameters and of the input) on size × size.

    Attributes:
        layer: the name of a `Layer`.
        figure: `seconds` of a step, `bytes` at its peak, or the `ratio` of its seconds to those of a rival.
        size, batch: of the layer and its input.
        context: of the Gaussians.
        density: of the static entries and of RigL's. every: steps between RigL's rewirings; 0: none.
        rival: what a ratio is to; the layer says what there is.
        budget: seconds of measuring, roughly. most: rounds at most.
    """

    layer: tyro.conf.Positional[str]
    figure: Literal["seconds", "bytes", "ratio"] = "seconds"
    size: int = 512
    batch: int = 64
    context: Literal["tuple", "all"] = "all"
    density: float = 0.01
    every: int = 0
    rival: str = "bare"
    budget: float = 3.5
    most: int = 31

    def arguments(self) -> list[str]:
        """The command line that gives this case."""
        given = dataclasses.asdict(self)
        first = given.pop("layer")
        return [first, *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


@dataclass(frozen=True)
class Layer:
    """A kind of layer that is measured.

    Attributes:
        prepare: makes layer and input; gives the step.
        check: the largest relative error against the dense oracle or another form on a small problem; raises where it
            is too large; None where there is nothing to compare.
        rivals: what a step is compared with, by name.
        warm: what differs, in the case of the small first step, from what is measured.
        measure: takes the figure where it is no step in this process: `low`, `median`, `high` and what else is known.
    """

    prepare: Callable[[Case], Step]
    check: Callable[[Case], float | None]
    rivals: Mapping[str, Callable[[Case], Step]] = field(default_factory=dict)
    warm: Mapping[str, Any] = field(default_factory=dict)
    measure: Callable[[Case], dict[str, Any]] | None = None


Plan = list[tuple[Row, Case]]


def _nothing(rows: Sequence[Row], quick: bool) -> list[Row]:
    return []


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        layers: its kinds of layers by name.
        plan: (quick) -> figures to take, with their cases. Quick ones are few and tiny.
        derived: (all rows taken, quick) -> figures that follow from them.
        suite: `cpu`, whose bytes belong to the suite `memory`; `scale`; or `gpu`.
    """

    layers: Mapping[str, Layer]
    plan: Callable[[bool], Plan]
    derived: Callable[[Sequence[Row], bool], list[Row]] = _nothing
    suite: Literal["cpu", "scale", "gpu"] = "cpu"


def layer_step(layer: nn.Module, case: Case, inputs: int = 0, outputs: int = 0) -> Step:
    """Forward and backward, to the parameters and the input; `inputs` and `outputs` where they are not `case.size`."""
    x = torch.randn(case.batch, inputs or case.size, requires_grad=True)
    g = torch.randn(case.batch, outputs or case.size)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(g)

    return step


def train_step(train: Callable[[Tensor, Tensor], object], case: Case) -> Step:
    """A training step with its optimizer's, on a batch whose gradient is wanted too."""
    x, g = torch.randn(case.batch, case.size, requires_grad=True), torch.randn(case.batch, case.size)

    def step() -> None:
        x.grad = None
        train(x, g)

    return step


def copy_step(size: int) -> Step:
    """Moves so many bytes through memory, half of them read and half written: the least time that they take."""
    source = torch.ones(max(1, size // 8))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
