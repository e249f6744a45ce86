"""Edge-wise hypernetworks: every layer against the dense oracle, where it starts, equivariance, learning."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from ash import EdgeHypernetwork, EdgeWiring, Sampling, SparseBatch


def graphs(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64, channels: int = 0) -> SparseBatch:
    """Random directed graphs of about twice as many edges as nodes, loops among them."""
    source = torch.Generator().manual_seed(seed)
    indices = [(torch.rand(n, n, generator=source) < 2 / n).nonzero() for n in sizes]
    shape = (channels,) if channels else ()
    values = [torch.randn(len(part), *shape, generator=source, dtype=dtype) for part in indices]
    return SparseBatch.from_entries(indices, values, [(n, n) for n in sizes])


def stirred(wiring: EdgeWiring, gain: float = 0.5) -> EdgeWiring:
    """The same wiring with a last layer that emits something."""
    assert isinstance(wiring.hypernetwork, EdgeHypernetwork)
    for part in wiring.hypernetwork.head.parameters():
        torch.nn.init.normal_(part, std=gain)
    return wiring


make = partial(EdgeWiring, dtype=torch.float64)

WIRINGS: dict[str, Any] = {
    "entry": make,
    "three tuples": partial(make, t=3),
    "path": partial(make, t=2, sites="path"),
    "neighbours": partial(make, t=2, neighbours=1),
    "drawn points": partial(make, t=2, neighbours=4),
    "drawn points of paths": partial(make, sites="path", sampling=Sampling(global_samples=3)),
    "message passing": partial(make, t=2, out_rank=1),
    "rank 3": partial(make, out_rank=3),
    "shared values": partial(make, values="shared", kernel="gaussian"),
    "ones": partial(make, values="ones"),
    "mean": partial(make, hypernetwork=partial(EdgeHypernetwork, hidden=(5, 4), context="mean")),
    "attention": partial(make, hypernetwork=partial(EdgeHypernetwork, context="attention", inducing=2)),
}


@pytest.fixture(params=list(WIRINGS.values()), ids=list(WIRINGS))
def wiring(request: pytest.FixtureRequest) -> EdgeWiring:
    return stirred(request.param())


@pytest.mark.parametrize("training", [True, False])
def test_against_the_dense_oracle(wiring: EdgeWiring, training: bool) -> None:
    x = graphs(5, 1, 7)
    weight = wiring.train(training)(x)
    y = weight.contract(x)
    assert torch.equal(y.sizes, x.sizes[:, :1].expand(-1, wiring.out_rank))
    dense, wanted = weight.as_batch().check().to_dense(), x.to_dense()
    wanted = torch.stack([torch.tensordot(w, m, 2) for w, m in zip(dense, wanted, strict=True)])
    assert wanted.abs().sum() > 0
    assert torch.allclose(y.check("refuse").to_dense(), wanted)
