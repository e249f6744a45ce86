"""Two ranks of a distributed run rewire in the same way, by the gradient of both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ash import (
    DenseGradient,
    Factors,
    GaussianWiring,
    HyperWiring,
    MLPHypernetwork,
    Rescue,
    Rewirer,
    RigLWiring,
    Sampling,
    SETWiring,
    SparseLinear,
    data_parallel,
    parameter_groups,
    ranks,
)
from ash.ranks import over_ranks
from tests.two_ranks import in_two

ORDERS = ("largest", "positive", "negative")
LAYERS = {
    "gaussian": lambda: GaussianWiring(30, 20, 40),
    "default": lambda: GaussianWiring(30, 20, 40, sampling=Sampling(guided_samples=2, kept_samples=1)),
    "rigl": lambda: RigLWiring(30, 20, 60, growth_share=0.5),
    "hyper": lambda: HyperWiring(30, 20, 10, hypernetwork=partial(MLPHypernetwork, hidden=(8,))),
}
"""What is trained; `default` by torch's own wrapper, which sends rank 0's buffers in every step."""
BATCHES = (5, 3)
"""Of the two ranks."""


def main(rank: int) -> dict[str, Any]:
    """What a rank does: sums of scores, then two rewired layers; what it found."""
    x, g = part(rank)
    found: dict[str, Any] = {
        "factors": over_ranks(Factors(x, g)).dense(),
        "dense": over_ranks(DenseGradient(Factors(x, g).dense(), 1)).dense(),
    }
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(6, 4, wiring=RigLWiring(4, 6, 8)), SparseLinear(4, 4, wiring=SETWiring(4, 4, 8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    torch.manual_seed(rank)  # the ranks' own random numbers must not matter
    rewirer = Rewirer(model, optimizer, every=1, end=5, fraction=lambda _: 0.5)
    model(x).square().sum().backward()
    rewirer.step()
    found |= {"rigl": model[0].wiring.indices, "set": model[1].wiring.indices}
    ranks.WORTH = 1
    whole = over_ranks(Factors(x, g))
    found |= {f"places {by}": whole.places(5, torch.tensor([3, 20]), None, by) for by in ORDERS}
    found |= {"rows": whole.places(9, rows=torch.tensor([2])), "all": whole.places(99)}
    found |= {f"{kind} {name}": value for kind in LAYERS for name, value in trained(kind, rank).items()}
    return found


def trained(kind: str, rank: int) -> dict[str, torch.Tensor]:
    """All of a layer that two ranks have trained for four steps on batches of their own, from seeds of their own."""
    torch.manual_seed(10 + rank)
    layer = SparseLinear(20, 30, wiring=LAYERS[kind]())
    model = nn.parallel.DistributedDataParallel(layer) if kind == "default" else data_parallel(layer)
    optimizer = torch.optim.Adam(parameter_groups(layer, lr=0.05))
    rewirer = Rewirer(model, optimizer, every=2, end=4, rescue=Rescue() if kind == "gaussian" else None)
    weight = layer.wiring.rounded()
    before = None if weight is None else weight.indices.clone()
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(7, 20)).square().sum().backward()
        optimizer.step()
        rewirer.step()
    found = dict(layer.state_dict())
    if before is not None:
        found["moved"] = (layer.wiring.rounded().indices != before).any().float()
    return found


def part(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(rank)
    return torch.randn(BATCHES[rank], 6, generator=source), torch.randn(BATCHES[rank], 4, generator=source)


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_two_ranks(tmp_path: Path) -> None:
    one, other = in_two(main, tmp_path)
    own = {"default wiring.search.proposals", "default wiring.search.kept"}  # led by what each rank has seen
    assert [name for name in one if not torch.equal(one[name], other[name]) and name not in own] == []
    assert all(one[f"{kind} moved"] for kind in ("gaussian", "default", "rigl"))
    (x, g), (y, h) = part(0), part(1)
    both = Factors(torch.cat([x, y]), torch.cat([g, h])).dense()
    assert torch.allclose(one["factors"], both, atol=1e-6)
    assert torch.allclose(one["dense"], both, atol=1e-6)
    alone = Factors(torch.cat([x, y]), torch.cat([g, h]))
    for by in ORDERS:
        assert one[f"places {by}"].tolist() == alone.places(5, torch.tensor([3, 20]), None, by).tolist()
    assert one["rows"].tolist() == alone.places(9, rows=torch.tensor([2])).tolist()
    assert one["all"].tolist() == alone.places(99).tolist()


def test_a_process_by_itself() -> None:
    score = Factors(torch.randn(3, 2), torch.randn(3, 2))
    assert over_ranks(score) is score
