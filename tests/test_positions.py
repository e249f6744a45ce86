"""`PositionWiring`: the dense oracle, where it starts, what guides it, and a relabelling that it learns."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from test_edge import graphs

from ash import EdgeHypernetwork, EdgeLayer, PositionWiring, SparseBatch, UserError, sparse_loss

make = partial(PositionWiring, 7, dtype=torch.float64)


def relabelled(x: SparseBatch, order: torch.Tensor) -> SparseBatch:
    """Node u becomes node order[u]."""
    return SparseBatch(x.instance, order[x.indices], x.values, x.sizes).coalesce()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("hypernetwork", [None, EdgeHypernetwork])
def test_against_the_dense_oracle(hypernetwork: type[EdgeHypernetwork] | None, training: bool) -> None:
    wiring, x = make(hypernetwork=hypernetwork).train(training), graphs(7, 1, 5)
    weight = wiring(x)
    wanted = [torch.tensordot(w, m, 2) for w, m in zip(weight.as_batch().to_dense(), x.to_dense(), strict=True)]
    y = weight.contract(x).check("refuse")
    assert y.sizes.tolist() == [[7, 7]] * 3
    assert torch.allclose(y.to_dense(), torch.stack(wanted)) and y.entries > 0


def test_the_same_as_a_matrix_on_both_sides() -> None:
    wiring, x = make().eval(), graphs(7, seed=1)
    p = wiring.table().to_dense()
    assert torch.allclose(EdgeLayer(wiring)(x).to_dense()[0], p @ x.to_dense()[0] @ p.t())


@pytest.mark.parametrize("nodes", [2, 3, 50])
def test_no_node_starts_at_its_own_number(nodes: int) -> None:
    for seed in range(50):
        rounded = PositionWiring(nodes, generator=torch.Generator().manual_seed(seed)).table.rounded_indices()
        assert (rounded[:, 0] != torch.arange(nodes)).all() and torch.equal(rounded[:, 1], torch.arange(nodes))


def test_guided_points_by_hand() -> None:
    """Two graphs of three nodes: node 0 has one edge more in the second, and row 2 of the target with it."""
    wiring = PositionWiring(3)
    edges = [torch.tensor([[1, 2]]), torch.tensor([[1, 2], [0, 2]])]
    x = SparseBatch.from_entries(edges, None, [(3, 3)] * 2)
    y = relabelled(x, torch.tensor([2, 0, 1]))
    nothing = SparseBatch.from_entries([torch.zeros(0, 2)] * 2, None, [(3, 3)] * 2)
    wiring.guide(x, nothing, y)
    proposals = wiring.table.search.proposals[: int(wiring.table.search.count)]
    assert proposals.shape == (6, 2)
    first = {int(node): int(row) for row, node in proposals[:3]}
    assert first[0] == 2 and first[2] == 1


def test_a_relabelling_is_learned_and_resumed() -> None:
    n, order = 12, torch.randperm(12, generator=torch.Generator().manual_seed(1))
    layer = EdgeLayer(PositionWiring(n, window=64))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.2, betas=(0.9, 0.99))
    for step in range(100):
        x = graphs(*[n] * 4, seed=step, dtype=torch.float32)
        x = x.with_values(torch.ones_like(x.values))
        y = relabelled(x, order)
        prediction = layer(x)
        optimizer.zero_grad()
        sparse_loss(prediction, y).backward()
        layer.guide(x, prediction, y)
        optimizer.step()
    layer.eval()
    assert isinstance(layer.wiring, PositionWiring)
    assert torch.equal(layer.wiring.table.rounded_indices()[:, 0], order)
    other = PositionWiring(n, window=64)
    fresh = EdgeLayer(other).eval()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x).to_dense(), layer(x).to_dense())
    assert torch.equal(other.degrees, layer.wiring.degrees)


def test_errors() -> None:
    with pytest.raises(UserError, match="nodes=1; expected at least 2"):
        PositionWiring(1)
    with pytest.raises(UserError, match="a graph of 8 nodes; expected at most nodes=7"):
        make()(graphs(8))
    wiring, x = make(), graphs(7)
    with pytest.raises(UserError, match=r"a target of sizes \[\[5, 5\]\]; expected 1 times \[7, 7\]"):
        wiring.guide(x, x, graphs(5))


def test_positions_and_hypernetwork_are_drawn_anew() -> None:
    wiring = make(hypernetwork=EdgeHypernetwork)
    before = copy.deepcopy(wiring)
    wiring.reset_parameters(torch.Generator().manual_seed(3))
    assert not torch.equal(wiring.table.rounded_indices(), before.table.rounded_indices())
    assert wiring.hypernetwork is not None and before.hypernetwork is not None
    pairs = zip(wiring.hypernetwork.parameters(), before.hypernetwork.parameters(), strict=True)
    assert any(not torch.equal(now, then) for now, then in pairs)
