"""Two ranks train with every wiring: the same topology on both, and the losses of one process with both batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ash import (
    Codebook,
    DSRWiring,
    GateWiring,
    GaussianWiring,
    HyperWiring,
    MLPHypernetwork,
    Rescue,
    Rewirer,
    RigLWiring,
    Sampling,
    SETWiring,
    SNFSWiring,
    SparseLinear,
    StaticWiring,
    TopKWiring,
    Wiring,
    check_same_topology,
    data_parallel,
    parameter_groups,
)
from ash.agreement import RanksDiffer
from tests.two_ranks import in_two

STEPS = 500 if "ASH_PROCESSES" in os.environ else 30
"""Of every wiring; `.ci/run` takes them all."""
ALIKE = min(STEPS, 100)
"""Steps whose losses are compared."""
INPUTS, OUTPUTS, BATCH, K = 12, 10, 6, 40

DETERMINISTIC: dict[str, Callable[[], Wiring]] = {
    "static": lambda: StaticWiring(OUTPUTS, INPUTS, density=0.4),
    "rigl": lambda: RigLWiring(OUTPUTS, INPUTS, K),
    "set": lambda: SETWiring(OUTPUTS, INPUTS, K),
    "snfs": lambda: SNFSWiring(OUTPUTS, INPUTS, K),
    "dsr": lambda: DSRWiring(OUTPUTS, INPUTS, K),
    "top_k": lambda: TopKWiring(OUTPUTS, INPUTS, density=0.4),
    "gates": lambda: GateWiring(OUTPUTS, INPUTS),
}
DRAWN: dict[str, Callable[[], Wiring]] = {
    "gaussian": lambda: GaussianWiring(OUTPUTS, INPUTS, K),
    "guided": lambda: GaussianWiring(OUTPUTS, INPUTS, K, sampling=Sampling(guided_samples=2, kept_samples=1)),
    "all": lambda: GaussianWiring(OUTPUTS, INPUTS, K, context="all"),
    "codebook": lambda: GaussianWiring(OUTPUTS, INPUTS, K, values=Codebook(5)),
    "hyper": lambda: HyperWiring(OUTPUTS, INPUTS, 10, hypernetwork=partial(MLPHypernetwork, hidden=(8,))),
}


class Training:
    """A layer in double precision that learns a fixed matrix, rewired after every tenth step."""

    def __init__(self, wiring: Callable[[], Wiring], parallel: bool):
        torch.manual_seed(0)
        self.layer = SparseLinear(INPUTS, OUTPUTS, wiring=wiring()).double()
        self.matrix = torch.randn(OUTPUTS, INPUTS, dtype=torch.float64)
        self.model: nn.Module = data_parallel(self.layer) if parallel else self.layer
        self.optimizer = torch.optim.SGD(parameter_groups(self.layer, 0.02, mean_lr=0.02, scale_lr=0.01), momentum=0.9)
        plain = not any(isinstance(module, Codebook) for module in self.layer.modules())
        rescue = Rescue() if plain else None
        self.rewirer = Rewirer(self.layer, self.optimizer, every=10, end=max(10, STEPS), rescue=rescue)
        self.data = torch.Generator().manual_seed(1)

    def step(self, ranks: slice) -> float:
        """One step on those rows of the batch of both ranks; the loss of these."""
        x = torch.randn(2 * BATCH, INPUTS, generator=self.data, dtype=torch.float64)[ranks]
        self.optimizer.zero_grad()
        loss = (self.model(x) - x @ self.matrix.t()).square().mean()
        loss.backward()
        self.optimizer.step()
        self.rewirer.step()
        return float(loss.detach())


def main(rank: int) -> dict[str, Any]:
    """Train every wiring, comparing topologies after every step; the losses. Then what is said of ranks that differ."""
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    losses: dict[str, Any] = {}
    for name, wiring in {**DETERMINISTIC, **DRAWN}.items():
        training = Training(wiring, parallel=True)
        torch.manual_seed(10 + rank)
        before = {key: value.clone() for key, value in training.layer.wiring.state_dict().items()}
        losses[name] = []
        for _ in range(STEPS):
            losses[name].append(training.step(own))
            check_same_topology(training.layer)
        after = training.layer.wiring.state_dict()
        assert any(not torch.equal(after[key], value) for key, value in before.items()), f"{name} has learned nothing"
    training = Training(DETERMINISTIC["static"], parallel=False)
    with torch.no_grad():
        training.layer.wiring.values[3] += rank * 1e-15
    return losses | {"told": told(training.layer)}


def told(layer: nn.Module) -> str:
    """The error of layers that differ."""
    try:
        check_same_topology(layer)
    except RanksDiffer as problem:
        return str(problem)
    return ""


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_every_wiring_on_two_ranks(tmp_path: Path) -> None:
    one, other = in_two(main, tmp_path)
    assert one["told"] == other["told"] == "ranks differ in wiring.values; all have to change wirings alike."
    for name, wiring in DETERMINISTIC.items():
        training = Training(wiring, parallel=False)
        torch.manual_seed(10)
        alone = [training.step(slice(None)) for _ in range(ALIKE)]
        both = [(a + b) / 2 for a, b in zip(one[name], other[name], strict=True)]
        assert both[:ALIKE] == pytest.approx(alone, rel=1e-6, abs=1e-9), name
        assert alone[-1] < alone[0]


def test_alone_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ash.agreement.dist.all_reduce", lambda *_, **__: pytest.fail("nobody to compare with"))
    assert check_same_topology(SparseLinear(3, 2)) is None  # type: ignore[func-returns-value]
