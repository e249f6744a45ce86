"""Two ranks train with every wiring: the same topology on both, and the losses of one process with both batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

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


def rank_main(rank: int, folder: str) -> None:
    """Train every wiring, compare topologies in every step, and write the losses; then differ on purpose."""
    torch.set_num_threads(1)
    file = Path(folder) / "meeting"
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=300))
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    losses = {}
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
    torch.save(losses, Path(folder) / f"{rank}.pt")
    layer = SparseLinear(INPUTS, OUTPUTS, wiring=StaticWiring(OUTPUTS, INPUTS, density=0.4))
    differing = "" if _differs(layer) else "nothing"
    torch.manual_seed(0)
    layer = SparseLinear(INPUTS, OUTPUTS, wiring=StaticWiring(OUTPUTS, INPUTS, density=0.4))
    with torch.no_grad():
        layer.wiring.values[3] += rank * 1e-7
    (Path(folder) / f"{rank}.txt").write_text(differing + str(_differs(layer)))
    dist.destroy_process_group()


def _differs(layer: nn.Module) -> str:
    try:
        check_same_topology(layer)
    except RanksDiffer as problem:
        return str(problem)
    return ""


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_every_wiring_on_two_ranks(tmp_path: Path) -> None:
    other_rank = mp.get_context("spawn").Process(target=rank_main, args=(1, str(tmp_path)))
    other_rank.start()
    rank_main(0, str(tmp_path))
    other_rank.join(300)
    assert other_rank.exitcode == 0
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text().startswith("ranks differ in wiring.values;")
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, wiring in DETERMINISTIC.items():
        training = Training(wiring, parallel=False)
        torch.manual_seed(10)
        alone = [training.step(slice(None)) for _ in range(ALIKE)]
        both = [(a + b) / 2 for a, b in zip(one[name], other[name], strict=True)]
        assert both[:ALIKE] == pytest.approx(alone, rel=1e-6, abs=1e-9), name
        assert alone[-1] < alone[0]


def test_alone_nothing_is_compared() -> None:
    layer: Tensor | nn.Module = SparseLinear(3, 2)
    check_same_topology(layer)  # type: ignore[arg-type]
    assert isinstance(layer, nn.Module)
