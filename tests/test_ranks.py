"""Two ranks of a distributed run rewire in the same way, by the gradient of both."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from ash import DenseGradient, Factors, Rewirer, RigLWiring, SETWiring, SparseLinear
from ash.ranks import over_ranks

BATCHES = (5, 3)
"""Of the two ranks."""


def rank_main(rank: int, folder: str) -> None:
    """What a rank does: sums of scores, then two rewired layers; what it found is written to the folder."""
    torch.set_num_threads(1)
    file = Path(folder) / "meeting"
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=300))
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
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def part(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(rank)
    return torch.randn(BATCHES[rank], 6, generator=source), torch.randn(BATCHES[rank], 4, generator=source)


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_two_ranks(tmp_path: Path) -> None:
    other_rank = mp.get_context("spawn").Process(target=rank_main, args=(1, str(tmp_path)))
    other_rank.start()
    rank_main(0, str(tmp_path))
    other_rank.join(300)
    assert other_rank.exitcode == 0
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    (x, g), (y, h) = part(0), part(1)
    both = Factors(torch.cat([x, y]), torch.cat([g, h])).dense()
    assert torch.allclose(one["factors"], both, atol=1e-6)
    assert torch.allclose(one["dense"], both, atol=1e-6)


def test_a_process_by_itself() -> None:
    score = Factors(torch.randn(3, 2), torch.randn(3, 2))
    assert over_ranks(score) is score
