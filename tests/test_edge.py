"""Edge-wise hypernetworks: every layer against the dense oracle, where it starts, equivariance, learning."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from ash import (
    Anneal,
    EdgeHypernetwork,
    EdgeLayer,
    EdgeWiring,
    Sampling,
    SparseBatch,
    UserError,
    edge_scores,
    sparse_loss,
)
from ash.edge_hypernets import InducedAttention


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


@pytest.mark.parametrize("training", [True, False])
def test_gradients(wiring: EdgeWiring, training: bool) -> None:
    """Of entries, and of every parameter, against differences; those of means where shares are spread."""
    stirred(wiring, 0.01)  # beyond the ends of the list a mean's gradient is not the derivative
    x, layer = graphs(4, 3), EdgeLayer(wiring.train(training))
    names = [name for name, p in wiring.named_parameters() if training or name.startswith("hypernetwork.head")]
    parameters = [p for name, p in wiring.named_parameters() if name in names]

    def total(values: Tensor, *changed: Tensor) -> Tensor:
        torch.manual_seed(0)
        overwritten = {f"wiring.{name}": p for name, p in zip(names, changed, strict=True)}
        y = torch.func.functional_call(layer, overwritten, (x.with_values(values),))
        return (y.values * torch.linspace(1, 2, y.entries, dtype=y.values.dtype)).sum()

    inputs = (x.values.detach().requires_grad_(), *(p.detach().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(total, inputs, atol=1e-4, nondet_tol=0.0, fast_mode=True)


def test_gradients_reach_node_features() -> None:
    x, nodes = graphs(4, 3), torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    layer = EdgeLayer(stirred(make(node_features=2), 0.01))

    def total(nodes: Tensor) -> Tensor:
        return layer(x, nodes).values.square().sum()

    assert torch.autograd.gradcheck(total, (nodes,))
    total(nodes).backward()
    used = torch.cat([x.indices[:, side] + torch.tensor([0, 4])[x.instance] for side in (0, 1)]).unique()
    assert nodes.grad is not None and nodes.grad.abs().sum(1).nonzero().flatten().tolist() == used.tolist()


@pytest.mark.parametrize("name", [name for name in WIRINGS if name not in ("neighbours", "drawn points")])
def test_numbering_the_nodes_in_another_way(name: str) -> None:
    """Evaluation is permutation-equivariant. Neighbours of equal degree stand by number, so these do not take part."""
    wiring = stirred(WIRINGS[name]())
    x, order = graphs(7), torch.randperm(7)
    layer = EdgeLayer(wiring.eval())
    y, other = layer(x).to_dense()[0], layer(SparseBatch(x.instance, order[x.indices], x.values, x.sizes))
    assert y.abs().sum() > 0
    back = other.to_dense()[0]
    for dim in range(wiring.out_rank):
        back = back.index_select(dim, order)
    assert torch.allclose(back, y)


def test_graphs_of_a_batch_do_not_know_each_other(wiring: EdgeWiring) -> None:
    x, layer = graphs(5, 1, 7), EdgeLayer(wiring.eval())
    for one, both in zip(x, layer(x), strict=True):
        assert torch.allclose(layer(one).to_dense(), both.to_dense())


@pytest.mark.parametrize("training", [True, False])
def test_empty_graphs(wiring: EdgeWiring, training: bool) -> None:
    x = SparseBatch.from_entries([torch.zeros(0, 2)] * 2, None, [(3, 3), (1, 1)])
    y = EdgeLayer(wiring.train(training))(x)
    assert y.entries == 0 and y.sizes.tolist() == [[3] * wiring.out_rank, [1] * wiring.out_rank]


@pytest.mark.parametrize("options", [{}, {"sites": "path"}, {"neighbours": 1}, {"neighbours": 5}])
def test_nothing_starts_at_its_own_entry(options: dict[str, Any]) -> None:
    """But for loops, where every candidate may be the same node."""
    x = graphs(8)
    x = x.select(x.indices[:, 0] != x.indices[:, 1])
    starts = set()
    for seed in range(60):
        wiring = EdgeWiring(t=3, **options, generator=torch.Generator().manual_seed(seed)).eval()
        weight = wiring(x)
        assert len(weight.values) > 0 and (weight.values == 1).all()
        assert not (weight.indices == x.indices[weight.source]).all(1).any()
        starts |= {tuple(place) for place in wiring.base.round().tolist()}
    assert len(starts) >= 3


def test_absent_candidates_make_no_entry() -> None:
    """0 -> 1 -> 2: node 2 has no neighbour, so of the second edge nothing is left."""
    x = SparseBatch.from_entries([torch.tensor([[0, 1], [1, 2]])], [torch.tensor([3.0, 5.0])], [(3, 3)])
    wiring = EdgeWiring(neighbours=1, positions=torch.tensor([[2.0, 0.0]]))
    y = EdgeLayer(wiring.eval())(x)
    assert y.indices.tolist() == [[2, 0]] and y.values.tolist() == [3]
    weight = wiring.train()(x)
    assert weight.source.bincount().tolist() == [9, 4] and weight.values[:9].sum().item() == pytest.approx(1)
    assert weight.values[9:].sum().item() < 0.9


def test_duplicates_are_added_up_first() -> None:
    twice = SparseBatch.from_entries(
        [torch.tensor([[1, 0], [0, 2], [1, 0]])], [torch.tensor([1.0, 2.0, 3.0])], [(3, 3)]
    )
    layer = EdgeLayer(stirred(EdgeWiring()).eval())
    assert torch.equal(layer(twice).to_dense(), layer(twice.coalesce()).to_dense())


def test_channels_share_the_weight() -> None:
    x = graphs(5, channels=3)
    wiring = stirred(make(channels=3)).eval()
    weight = wiring(x)
    y = EdgeLayer(wiring)(x)
    assert y.values.shape == (y.entries, 3)
    for c in range(3):
        assert torch.allclose(y.values[:, c], weight.contract(x.with_values(x.values[:, c])).values)


def test_message_passing_by_hand() -> None:
    """Each edge sends its value to its column node."""
    x = SparseBatch.from_entries([torch.tensor([[0, 1], [2, 1], [1, 0]])], [torch.tensor([1.0, 2.0, 4.0])], [(3, 3)])
    y = EdgeLayer(EdgeWiring(out_rank=1, positions=torch.tensor([[1.0]])).eval())(x)
    assert y.to_dense().tolist() == [[4, 3, 0]]


def test_attention_against_the_whole_table() -> None:
    """Of two graphs, each by ordinary attention of its own sites."""
    torch.manual_seed(1)
    block, x, instance = InducedAttention(4, 3).double(), torch.randn(5, 4).double(), torch.tensor([0, 0, 0, 2, 2])
    found = block(x, instance, 3)
    for i in (0, 2):
        own = x[instance == i]
        seen = ((block.queries @ block.key(own).t()).softmax(1) @ block.value(own)).detach()
        share = (block.ask(own) @ block.found(seen).t() / 2).softmax(1)
        assert torch.allclose(found[instance == i], share @ seen)


def test_steps_are_counted_saved_and_go_on(wiring: EdgeWiring) -> None:
    x = graphs(5, 4)
    layer = EdgeLayer(wiring)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).values.square().sum().backward()
        optimizer.step()
    other = copy.deepcopy(layer)
    layer.reset_parameters()
    assert layer.state_dict()["wiring.step"] == 0
    layer.load_state_dict(other.state_dict())
    assert layer.state_dict()["wiring.step"] == other.state_dict()["wiring.step"] == 3
    torch.manual_seed(0)
    one = layer(x).to_dense()
    torch.manual_seed(0)
    assert torch.equal(one, other(x).to_dense())


@pytest.mark.parametrize("task", ["identity", "reverse"])
def test_learning(task: str) -> None:
    """On 12 nodes; then on 48, without an error."""
    layer = EdgeLayer(EdgeWiring(scale=Anneal(4.0, 0.1, 60), generator=torch.Generator().manual_seed(2)))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    for step in range(100):
        x, y = example(task, 12, 12, seed=step)
        loss = sparse_loss(layer(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = example(task, 48, seed=1000)
    scores = edge_scores(layer.eval()(x), y)
    assert scores.f1 == 1 and scores.exact == 1


def example(task: str, *sizes: int, seed: int) -> tuple[SparseBatch, SparseBatch]:
    x = graphs(*sizes, seed=seed, dtype=torch.float32)
    x = x.with_values(torch.ones_like(x.values))
    return x, (x if task == "identity" else x.permute(1, 0)).coalesce()


def test_bad_input() -> None:
    layer = EdgeLayer(EdgeWiring())
    edge = torch.tensor([[0, 3]])
    for indices, values, message in [
        (edge, torch.ones(1), "expected 0 <= index < size"),
        (-edge, torch.ones(1), "expected 0 <= index < size"),
        (edge - edge, torch.tensor([torch.nan]), "expected finite values"),
    ]:
        with pytest.raises(UserError, match=message):
            layer(SparseBatch.from_entries([indices], [values], [(3, 3)]))
    x = graphs(4, dtype=torch.float32)
    with pytest.raises(UserError, match="tensors of rank 3"):
        layer(SparseBatch.from_entries([torch.zeros(1, 3)], None, [(2, 2, 2)]))
    with pytest.raises(UserError, match=r"9 features of a site.*expected 7"):
        layer(x, torch.zeros(4, 1))
    with pytest.raises(UserError, match="NaN or infinite"):
        layer(x, torch.full((4, 1), torch.inf))
    with pytest.raises(UserError, match="expected the input that it was made for"):
        layer.wiring(x).contract(graphs(5, 4, dtype=torch.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": 0}, "t=0"),
        ({"out_rank": 0}, "out_rank=0"),
        ({"sites": "node"}, "unknown kind of site 'node'"),
        ({"sites": "path", "neighbours": 2}, "neighbours=2 of paths"),
        ({"neighbours": -1}, "neighbours=-1"),
        ({"values": "learned"}, "unknown value scheme"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"positions": torch.zeros(2, 2)}, r"expected \(t, out_rank\) = \(1, 2\)"),
        ({"hypernetwork": lambda features, t, width: "none"}, "a hypernetwork of type str"),
        ({"hypernetwork": partial(EdgeHypernetwork, context="sum")}, "unknown context of sites 'sum'"),
        ({"hypernetwork": partial(EdgeHypernetwork, hidden=())}, r"hidden=\(\)"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EdgeWiring(**options)


def test_other_modules_that_do_not_fit() -> None:
    with pytest.raises((UserError, TypeCheckError), match="Linear"):
        EdgeLayer(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"that emits .*; expected \(s, t, width\)"):
        EdgeWiring(lambda features, t, width: EdgeHypernetwork(features, t, width + 1))(graphs(4, dtype=torch.float32))
