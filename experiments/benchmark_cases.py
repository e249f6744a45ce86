"""One figure of the benchmark, in a process of its own: `python -m experiments.benchmark_cases LAYER …`.

Prints one line of JSON: `low`, `median`, `high` and `runs` of the figure; the `error` relative to the dense
oracle on a small problem; for ratios the same of the `seconds` of either step; for bytes those `loaded`, code
and tables that a process loads on first use, which the figure does not hold. Or `missing`, a package.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from ash import GaussianWiring, SparseLinear, StaticWiring
from experiments.benchmark_graphs import check_graphs, graph_step
from experiments.benchmark_hyper import INPUTS, OUTPUTS, DenseHyper, Gathered, adaptive
from experiments.benchmark_oracle import check_gaussian, check_hyper, check_static
from experiments.benchmark_rigl import MaskedLinear, check_rigl, masked_step, sparse_layer, sparse_step
from experiments.measure import peak_above, spread, timed, trimmed_bytes

Step = Callable[[], object]
WARM_SIZE, WARM_BATCH, WARM_DENSITY, WARM_INSTANCES = 512, 4096, 0.02, 16
"""The layer that loads, before anything is measured, what is loaded or compiled on first use. Enough work for
the kernels that serve large layers."""


@dataclass(frozen=True)
class Case:
    """What is measured: one training step (output, gradients of parameters and of the input) on size × size.

    Attributes:
        layer: `gaussian`, with as many tuples as rows, 2 + 2 samples; `static`; `hyper`, 784 → 256 with `size`
            tuples for every instance; `dense_hyper`, all weights for every instance; `rigl`, or `masked_rigl`, a dense
            weight with a mask, both with SGD; `graphs`, an edge-wise layer on one graph of `size` nodes, with Adam.
        figure: `seconds` of a step, `bytes` at its peak, or the `ratio` of its seconds to those of a rival.
        size, batch: of the layer and its input.
        context: of the Gaussians.
        density: of the static entries and of RigL's. every: steps between RigL's rewirings; 0: none.
        rival: of the static layer: `bare`, the three products alone; `sparselab`'s layer; or `dense`. Of the
            adaptive one: `gather`, the product alone; or `dense_hyper`. Of RigL: `masked_rigl`.
        budget: seconds of measuring, roughly. most: rounds at most.
    """

    layer: tyro.conf.Positional[Literal["gaussian", "static", "hyper", "dense_hyper", "rigl", "masked_rigl", "graphs"]]
    figure: Literal["seconds", "bytes", "ratio"] = "seconds"
    size: int = 512
    batch: int = 64
    context: Literal["tuple", "all"] = "all"
    density: float = 0.01
    every: int = 0
    rival: Literal["bare", "sparselab", "dense", "gather", "dense_hyper", "masked_rigl"] = "bare"
    budget: float = 30.0
    most: int = 31

    def arguments(self) -> list[str]:
        """The command line that gives this case."""
        given = dataclasses.asdict(self)
        first = given.pop("layer")
        return [first, *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


def main() -> None:
    """Run the case of the command line."""
    print(json.dumps(run(tyro.cli(Case, description=__doc__))))


def run(case: Case) -> dict[str, Any]:
    """Check the layer against the oracle, then measure; see the module's docstring for what comes back."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begun = trimmed_bytes()
    error = CHECKS[case.layer](case)
    batch = WARM_INSTANCES if "hyper" in case.layer else WARM_BATCH
    every = min(case.every, 1)
    _prepare(dataclasses.replace(case, size=WARM_SIZE, batch=batch, density=WARM_DENSITY, every=every))()
    if case.figure == "bytes":
        loaded = trimmed_bytes() - begun
        return {"error": error, "loaded": loaded, **spread([peak_above(lambda: _prepare(case))])}
    if case.figure == "seconds":
        seconds = timed({"layer": _prepare(case)}, case.budget, case.most)
        return {"error": error, **spread(seconds["layer"])}
    return _ratio(case, error)


def _ratio(case: Case, error: float | None) -> dict[str, Any]:
    """Ratios round by round, each of two steps that followed each other."""
    try:
        rival = RIVALS[case.rival](case)
    except ImportError as problem:
        return {"missing": f"{case.rival} is not installed ({problem})"}
    seconds = timed({"layer": _prepare(case), "rival": rival}, case.budget, case.most)
    ratios = [ours / theirs for ours, theirs in zip(seconds["layer"], seconds["rival"], strict=True)]
    own = {name: spread(figures) for name, figures in seconds.items()}
    return {"error": error, **spread(ratios), "seconds": own}


def _prepare(case: Case) -> Step:
    """A training step of the layer. Against the bare products it has no bias, since they have none."""
    n = case.size
    if case.layer == "graphs":
        return graph_step(n)
    if case.layer == "hyper":
        return _step(adaptive(n, bias=case.rival != "gather"), case, INPUTS, OUTPUTS)
    if case.layer == "dense_hyper":
        return _step(DenseHyper(), case, INPUTS, OUTPUTS)
    if case.layer == "gaussian":
        return _step(SparseLinear(n, n, wiring=GaussianWiring(n, n, n, context=case.context)), case)
    if case.layer == "rigl":
        return _train(sparse_step(sparse_layer(n, case.density), case.every), case)
    if case.layer == "masked_rigl":
        return _masked_rigl(case)
    bias = case.figure != "ratio" or case.rival != "bare"
    return _step(SparseLinear(n, n, bias, wiring=StaticWiring(n, n, density=case.density)), case)


def _step(layer: nn.Module, case: Case, inputs: int = 0, outputs: int = 0) -> Step:
    x = torch.randn(case.batch, inputs or case.size, requires_grad=True)
    g = torch.randn(case.batch, outputs or case.size)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(g)

    return step


def _train(train: Callable[[Tensor, Tensor], object], case: Case) -> Step:
    """A training step with its optimizer's, on a batch whose gradient is wanted too."""
    x, g = torch.randn(case.batch, case.size, requires_grad=True), torch.randn(case.batch, case.size)

    def step() -> None:
        x.grad = None
        train(x, g)

    return step


def _masked_rigl(case: Case) -> Step:
    return _train(masked_step(MaskedLinear(case.size, case.density), case.every), case)


def _bare(case: Case) -> Step:
    """The three products that a sparse layer cannot do without; transposes and layouts are made before."""
    n = case.size
    with torch.no_grad():
        entries = StaticWiring(n, n, density=case.density)()
        weight, transposed = entries.to_csr(), entries.transpose().to_csr()
    x, g = torch.randn(n, case.batch), torch.randn(n, case.batch)

    def step() -> None:
        weight @ x
        transposed @ g
        torch.sparse.sampled_addmm(weight, g, x.t(), beta=0.0)

    return step


def _sparselab(case: Case) -> Step:
    package = importlib.import_module("sparselab")
    return _step(package.SparseLinear(case.size, case.size, bias=True, sparsity=1 - case.density), case)


def _dense(case: Case) -> Step:
    return _step(nn.Linear(case.size, case.size), case)


def _gather(case: Case) -> Step:
    return _step(Gathered(case.batch, case.size), case, INPUTS, OUTPUTS)


def _dense_hyper(case: Case) -> Step:
    return _step(DenseHyper(), case, INPUTS, OUTPUTS)


RIVALS: dict[str, Callable[[Case], Step]] = {
    "bare": _bare,
    "sparselab": _sparselab,
    "dense": _dense,
    "gather": _gather,
    "dense_hyper": _dense_hyper,
    "masked_rigl": _masked_rigl,
}
CHECKS: dict[str, Callable[[Case], float | None]] = {
    "static": lambda case: check_static(),
    "gaussian": lambda case: check_gaussian(case.context),
    "hyper": lambda case: check_hyper(),
    "dense_hyper": lambda case: None,
    "rigl": lambda case: check_rigl(),
    "masked_rigl": lambda case: None,
    "graphs": lambda case: check_graphs(),
}


if __name__ == "__main__":
    main()
