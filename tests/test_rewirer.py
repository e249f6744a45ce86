"""The Rewirer: when it rewires, from which gradients, what it does to the optimizer, how it goes on."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ash import (
    Anneal,
    DSRWiring,
    DynamicWiring,
    GaussianWiring,
    Rescue,
    Rewirer,
    RigLWiring,
    SETWiring,
    SNFSWiring,
    SparseLayer,
    SparseLinear,
    SparseWeight,
    StaticWiring,
    UserError,
    Wiring,
)
from ash.explored import Explored
from ash.layers.dense import materialise

Optimizer = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "sgd fused": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2, fused=True),
    "sgd foreach": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adam foreach": partial(torch.optim.Adam, lr=0.01, foreach=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "adamw fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
}
sgd = OPTIMIZERS["sgd"]


def net(kind: Callable[..., Wiring] = RigLWiring, seed: int = 0, **options: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    make = partial(kind, density=0.3, **options)
    return nn.Sequential(SparseLinear(10, 8, wiring=make), nn.ReLU(), SparseLinear(8, 4, wiring=make))


def batches(count: int, seed: int = 9, b: int = 12) -> Iterator[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(b, 10, generator=source), torch.randn(b, 4, generator=source)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, rewirer: Rewirer | None, steps: int, seed: int = 9
) -> list:
    events = []
    for x, y in batches(steps, seed):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
        events.append(None if rewirer is None else rewirer.step())
    return [each for each in events if each is not None]


def wiring_of(layer: nn.Module) -> DynamicWiring:
    assert isinstance(layer, SparseLayer) and isinstance(layer.wiring, DynamicWiring)
    return layer.wiring


def positions(model: nn.Sequential) -> list[list[int]]:
    return [wiring_of(model[i]).ids().tolist() for i in (0, 2)]


# --- when ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 3, "end": 9}, [3, 6, 9]),
        ({"every": 3, "end": 8, "start": 4}, [6]),
        ({"every": 4, "end": 8, "start": 4}, [4, 8]),
        ({"every": 1, "end": 3}, [1, 2, 3]),
    ],
)
def test_steps_of_the_schedule(options: dict[str, int], expected: list[int]) -> None:
    model = net()
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, fraction=lambda t: 0.5, **options)
    events = train(model, optimizer, rewirer, 12)
    assert [event.step for event in events] == expected
    assert all(event.moves == {"0.wiring": 12, "2.wiring": 5} for event in events)  # halves of 24 and 10
    assert all(event.entries == {"0.wiring": 24, "2.wiring": 10} and event.moved == 17 for event in events)
    assert rewirer.steps == 12


def test_the_fraction_is_annealed_by_a_cosine() -> None:
    model = net()
    optimizer = sgd(model.parameters())
    events = train(model, optimizer, Rewirer(model, optimizer, every=2, end=8, fraction=0.5), 8)
    assert [event.fraction for event in events] == pytest.approx([0.4267767, 0.25, 0.0732233, 0.0], abs=1e-6)
    assert [event.moves["0.wiring"] for event in events] == [10, 6, 2, 0]


def test_gradients_are_collected_only_before_a_rewiring() -> None:
    model = net()
    optimizer = sgd(model.parameters())
    found: dict[int, list[list[bool]]] = {}
    for average_over in (1, 2):
        rewirer = Rewirer(model, optimizer, every=3, end=6, average_over=average_over)
        found[average_over] = []
        for _ in range(8):
            found[average_over].append([wiring_of(model[i]).collecting for i in (0, 2)])
            train(model, optimizer, rewirer, 1)
        rewirer.close()
    none, both = [False, False], [True, True]
    assert found[1] == [none, none, both, none, none, both, none, none]
    assert found[2] == [none, both, both, none, both, both, none, none]


def test_set_collects_nothing() -> None:
    model = net(SETWiring)
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=1, end=3)
    assert not wiring_of(model[0]).collecting
    assert train(model, optimizer, rewirer, 1)[0].moved > 0


# --- from which gradients --------------------------------------------------------------------------------


def grown_by(model: nn.Sequential, gradient: Tensor, before: list[int], n: int) -> set[int]:
    return set(gradient.abs().flatten().index_fill(0, torch.tensor(before), -1).topk(n).indices.tolist())


@pytest.mark.parametrize("pieces", [1, 3])
def test_growth_follows_the_dense_gradient_of_the_whole_step(pieces: int) -> None:
    """Micro-batches of one step add up, as one large batch, also where each is written over the last one."""
    model = net()
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=1, end=9, fraction=lambda t: 0.25)
    dense = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        for i in (0, 2):
            dense[i].weight.copy_(wiring_of(model[i])().to_dense())
            dense[i].bias.copy_(model[i].bias)
    x, y = next(batches(1))
    before = positions(model)
    loss(dense, x, y).backward()
    buffer = torch.empty(12 // pieces, 10)
    for source, target in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
        (loss(model, buffer.copy_(source), target) / pieces).backward()
    optimizer.step()
    rewirer.step()
    for i, old, new, n in zip((0, 2), before, positions(model), (6, 2), strict=True):
        assert set(new) - set(old) == grown_by(model, dense[i].weight.grad, old, n)


def test_gradients_of_the_last_steps_are_averaged() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rewirer = Rewirer(model, optimizer, every=4, end=4, average_over=3, fraction=lambda t: 0.25)
    total: Tensor | float = 0.0
    before = positions(model)[1]
    for number, (x, y) in enumerate(batches(4)):
        hidden = model[1](model[0](x)).detach()
        slope = 2 * (model[2](hidden).detach() - y) / y.numel()
        total = total + slope.t() @ hidden if number >= 1 else total
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
        rewirer.step()
    assert isinstance(total, Tensor)
    assert set(positions(model)[1]) - set(before) == grown_by(model, total, before, 2)


def test_a_layer_without_a_gradient_or_with_one_that_is_not_finite_is_left_out() -> None:
    model = net()
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=1, end=9)
    before = positions(model)
    event = rewirer.step()
    assert event is not None and event.moves == {}
    x, y = next(batches(1))
    (loss(model, x, y) * float("inf")).backward()
    event = rewirer.step()
    assert event is not None and event.moves == {}
    model.eval()
    loss(model, x, y).backward()
    event = rewirer.step()
    assert event is not None and event.moves == {}
    assert positions(model) == before


def test_a_wiring_in_two_layers_is_rewired_once_by_both_gradients() -> None:
    shared = RigLWiring(6, 6, 12)
    model = nn.Sequential(SparseLinear(6, 6, wiring=shared), SparseLinear(6, 6, wiring=shared))
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=1, end=5, fraction=lambda t: 0.25)
    weight = shared().to_dense().detach().requires_grad_()
    x = torch.randn(7, 6)
    biases = [model[i].bias.detach() for i in (0, 1)]
    ((x @ weight.t() + biases[0]) @ weight.t() + biases[1]).square().sum().backward()
    before = shared.ids().tolist()
    model(x).square().sum().backward()
    optimizer.step()
    event = rewirer.step()
    assert event is not None and event.moves == {"0.wiring": 3}
    assert weight.grad is not None
    assert set(shared.ids().tolist()) - set(before) == grown_by(model, weight.grad, before, 3)


class Materialised(nn.Module):
    """The smallest host that makes the whole tensor."""

    def __init__(self, wiring: Wiring):
        super().__init__()
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        return x @ materialise(self.wiring, self.wiring(x)).t()


def test_a_host_that_makes_the_tensor_is_rewired_by_its_dense_gradient() -> None:
    model = Materialised(RigLWiring(4, 10, 12))
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=1, end=5, fraction=lambda t: 0.25)
    x, y = next(batches(1))
    gradient = 2 * (model(x).detach() - y).t() @ x / y.numel()
    before = model.wiring.ids().tolist()  # type: ignore[operator]
    loss(model, x, y).backward()
    optimizer.step()
    rewirer.step()
    after = model.wiring.ids().tolist()  # type: ignore[operator]
    assert set(after) - set(before) == grown_by(nn.Sequential(), gradient, before, 3)


# --- the optimizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("kind", [RigLWiring, partial(SNFSWiring, capacity=30), DSRWiring])
def test_the_state_follows_the_entries(make: Optimizer, kind: Callable[..., DynamicWiring]) -> None:
    """By position: entries that stay keep their values and state, what grew has none, the rest is as without."""
    model = net(partial(kind, threshold=0.15) if kind is DSRWiring else kind)
    other = copy.deepcopy(model)
    both = []
    for each in (model, other):
        optimizer = make(each.parameters())
        rewirer = Rewirer(each, optimizer, every=3, end=3, fraction=lambda t: 0.3) if each is model else None
        events = train(each, optimizer, rewirer, 3)
        both.append((each, optimizer, events))
    assert both[0][2][0].moved > 5
    for i in (0, 2):
        maps = [by_position(wiring_of(each[i]), optimizer) for each, optimizer, _ in both]
        assert len(maps[0][0]) > 1 or "sgd" in str(make)
        for now, before in zip(*maps, strict=True):
            assert all(value == before.get(place, 0.0) for place, value in now.items())
            assert any(place not in before for place in now)
        rest = [(p, q) for p, q in zip(model[i].parameters(), other[i].parameters(), strict=True) if p.dim() and
                p is not wiring_of(model[i]).values]  # fmt: skip
        assert all(torch.equal(p, q) for p, q in rest) and rest


def by_position(wiring: DynamicWiring, optimizer: torch.optim.Optimizer) -> list[dict[int, float]]:
    """Values and every state tensor of a wiring's entries, by flattened position."""
    state = optimizer.state[wiring.values]
    tensors = [wiring.values.detach(), *(v for v in state.values() if v is not None and v.shape == wiring.values.shape)]
    assert len(tensors) >= 2
    return [dict(zip(wiring.ids().tolist(), t.tolist(), strict=False)) for t in tensors]


def test_the_entries_are_in_order_after_a_rewiring() -> None:
    model = net()
    optimizer = sgd(model.parameters())
    train(model, optimizer, Rewirer(model, optimizer, every=1, end=3), 2)
    for i in (0, 2):
        assert (wiring_of(model[i]).ids().diff() > 0).all()


# --- layers that exchange entries ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SNFSWiring, partial(SNFSWiring, momentum="dense"), partial(DSRWiring, threshold=0.1)])
def test_layers_exchange_entries_and_the_total_is_conserved(kind: Callable[..., DynamicWiring]) -> None:
    model = net(kind)
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=2, end=20, fraction=0.4)
    events = train(model, optimizer, rewirer, 20)
    assert {sum(event.entries.values()) for event in events} == {34}
    assert len({event.entries["0.wiring"] for event in events}) > 2
    for i in (0, 2):
        wiring = wiring_of(model[i])
        assert len(wiring.ids().unique()) == wiring.stored_entries()
        assert (wiring.values[wiring.stored_entries() :] == 0).all()


def test_layers_exchange_entries_by_their_momentum() -> None:
    """Half of 24 and 10 entries go; the 17 are shared in the proportion of the mean momenta of what stays."""
    model = net(SNFSWiring)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rewirer = Rewirer(model, optimizer, every=1, end=1, fraction=lambda t: 0.5)
    x, y = next(batches(1))
    loss(model, x, y).backward()
    claims = []
    for i in (0, 2):
        wiring = wiring_of(model[i])
        half = wiring.stored_entries() // 2
        kept = wiring.entry_values().abs().topk(half).indices
        gradient = model[i].wiring.values.grad[kept]
        claims.append(float(gradient.abs().mean()))
    optimizer.step()
    event = rewirer.step()
    assert event is not None
    first = 12 + 17 * claims[0] / sum(claims)
    assert event.entries["0.wiring"] == pytest.approx(first, abs=0.51)


def test_full_layers_exchange_entries_where_there_is_room() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseLinear(10, 8, wiring=partial(SNFSWiring, density=0.1)),
        SparseLinear(8, 4, wiring=partial(SNFSWiring, density=1.0)),
    )
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=1, end=9, fraction=lambda t: 0.5)
    events = train(model, optimizer, rewirer, 9)
    assert all(sum(event.entries.values()) == 40 for event in events)
    assert events[0].entries == {"0.wiring": 24, "1.wiring": 16}  # 4 + 20 grow where anything is free


@pytest.mark.parametrize("kind", [SNFSWiring, partial(DSRWiring, threshold=9.0)])
def test_layers_that_are_nearly_full_drop_no_more_than_can_grow(kind: Callable[..., DynamicWiring]) -> None:
    model = nn.Sequential(
        SparseLinear(10, 8, wiring=partial(kind, density=0.9)), SparseLinear(8, 4, wiring=partial(kind, density=0.9))
    )
    optimizer = sgd(model.parameters())
    events = train(model, optimizer, Rewirer(model, optimizer, every=1, end=3, fraction=lambda t: 0.5), 3)
    assert [event.entries for event in events] == [{"0.wiring": 72, "1.wiring": 29}] * 3
    assert [event.moves for event in events] == [{"0.wiring": 8, "1.wiring": 3}] * 3


# --- other wirings ---------------------------------------------------------------------------------------


class Told(StaticWiring):
    """Notes what it is told."""

    steps: list[int]

    def advance(self, step: int) -> None:
        self.steps = [*getattr(self, "steps", []), step]


def test_other_wirings_are_told_of_the_steps_and_stay() -> None:
    model = nn.Sequential(SparseLinear(10, 6, wiring=partial(Told, k=9)), SparseLinear(6, 4, wiring=RigLWiring))
    optimizer = sgd(model.parameters())
    before = model[0].wiring.indices.clone()
    events = train(model, optimizer, Rewirer(model, optimizer, every=2, end=4), 5)
    assert model[0].wiring.steps == [1, 2, 3, 4, 5]
    assert torch.equal(model[0].wiring.indices, before)
    assert list(events[0].moves) == ["1.wiring"]


@pytest.mark.parametrize("rescue", [None, Rescue(idle=2.0)])
def test_gaussian_wirings_are_rescued_if_asked(rescue: Rescue | None) -> None:
    model = nn.Sequential(SparseLinear(10, 4, wiring=partial(GaussianWiring, k=12)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewirer = Rewirer(model, optimizer, every=2, end=4, rescue=rescue)
    events = train(model, optimizer, rewirer, 4)
    if rescue is None:
        assert [event.moves for event in events] == [{}, {}]
        return
    assert [event.moves["0.wiring"] > 6 for event in events] == [True, True]
    moved = model[0].wiring.values == 0
    state = optimizer.state[model[0].wiring.values]["exp_avg"]
    assert (state[moved] == 0).all() and (state[~moved] != 0).all()


# --- state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SETWiring, RigLWiring, SNFSWiring, partial(SNFSWiring, momentum="dense"), DSRWiring])
@pytest.mark.parametrize("stop", [5, 7, 8])
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(kind: Callable[..., DynamicWiring], stop: int) -> None:
    def start(seed: int) -> tuple[nn.Sequential, torch.optim.Optimizer, Rewirer]:
        model = net(kind, seed)
        optimizer = OPTIMIZERS["adam"](model.parameters())
        return model, optimizer, Rewirer(model, optimizer, every=4, end=12, fraction=0.5, average_over=3)

    model, optimizer, rewirer = start(1)
    every = list(batches(14))
    states: list[Any] = []
    for number, (x, y) in enumerate(every):
        if number == stop:
            states = [copy.deepcopy(each.state_dict()) for each in (model, optimizer, rewirer)]
        step(model, optimizer, rewirer, x, y)
    again = start(2)
    torch.manual_seed(77)
    for each, state in zip(again, states, strict=True):
        each.load_state_dict(state)
    for x, y in every[stop:]:
        step(*again, x, y)
    for one, other in zip(model.state_dict().values(), again[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert again[2].explored_total == rewirer.explored_total
    assert again[2].steps == rewirer.steps == 14


def step(model: nn.Module, optimizer: torch.optim.Optimizer, rewirer: Rewirer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    loss(model, x, y).backward()
    optimizer.step()
    rewirer.step()


def test_a_state_is_loaded_without_unpickling_code(tmp_path: Any) -> None:
    model = net()
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=4, end=12, average_over=3)
    train(model, optimizer, rewirer, 2)
    torch.save(rewirer.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert set(state["scores"]) == {"0.wiring", "2.wiring"}
    rewirer.load_state_dict(state)
    other = nn.Sequential(SparseLinear(10, 4, wiring=RigLWiring))
    with pytest.raises(UserError, match=r"a state with 2\.wiring"):
        Rewirer(other, sgd(other.parameters()), end=200).load_state_dict(state)


# --- the explored rate -----------------------------------------------------------------------------------


def test_the_share_ever_explored() -> None:
    model = net()
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=1, end=30, fraction=lambda t: 0.3)
    seen = [set(each) for each in positions(model)]
    assert rewirer.explored_total == 34 / 112
    for _ in range(10):
        event = train(model, optimizer, rewirer, 1, seed=rewirer.steps)[0]
        seen = [old | set(new) for old, new in zip(seen, positions(model), strict=True)]
        assert event.explored == {"0.wiring": len(seen[0]) / 80, "2.wiring": len(seen[1]) / 32}
        assert event.explored_total == (len(seen[0]) + len(seen[1])) / 112
    assert event.explored["0.wiring"] > 0.4
    rewirer.close()
    none = Rewirer(model, optimizer, every=1, end=30, explored=False)
    event = train(model, optimizer, none, 1)[0]
    assert (event.explored, event.explored_total, none.explored_total) == ({}, None, None)


@pytest.mark.parametrize(("size", "by_bits"), [(10, True), (1000, False)])
def test_explored_positions_are_counted_exactly(size: int, by_bits: bool) -> None:
    explored = Explored((size, size), size * size, 20)
    assert explored.by_bits == by_bits
    seen: set[int] = set()
    for _ in range(8):
        ids = torch.randperm(100)[:20]
        seen |= set(ids.tolist())
        explored.add(ids)
        assert explored.count == len(seen)
    assert explored.rate == len(seen) / size**2


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 5, "start": 10}, "ends before it begins: start=10, end=5"),
        ({"end": 0}, "ends before it begins: start=0, end=0"),
        ({"end": 50, "every": 100}, "no rewiring from step 0 to 50 with every=100; expected end >= 100"),
        ({"end": 50, "every": 0}, "every=0"),
        ({"end": 50, "every": 10, "start": -1}, "start=-1"),
        ({"end": 50, "every": 10, "fraction": 1.5}, "fraction=1.5"),
        ({"end": 50, "every": 10, "fraction": -0.1}, "fraction=-0.1"),
        ({"end": 50, "every": 10, "average_over": 0}, "average_over=0"),
        ({"end": 50, "every": 10, "average_over": 11}, "average_over=11; expected 1 to every=10"),
    ],
)
def test_bad_schedules(options: dict[str, Any], message: str) -> None:
    model = net()
    with pytest.raises(UserError, match=message):
        Rewirer(model, sgd(model.parameters()), **options)


def test_a_schedule_of_fractions_out_of_range() -> None:
    model = net()
    optimizer = sgd(model.parameters())
    rewirer = Rewirer(model, optimizer, every=1, end=5, fraction=Anneal(2.0, 1.0, 5, "linear"))
    with pytest.raises(UserError, match=r"fraction=1\.8"):
        train(model, optimizer, rewirer, 1)


def test_a_second_rewirer() -> None:
    model = net()
    optimizer = sgd(model.parameters())
    first = Rewirer(model, optimizer, end=500)
    for second in (model, nn.Sequential(model, nn.ReLU()), model[0]):
        with pytest.raises(UserError, match="a second Rewirer on one model: .*wiring has one"):
            Rewirer(second, optimizer, end=500)
    first.close()
    other = Rewirer(model, optimizer, every=1, end=500)
    assert wiring_of(model[0]).collecting
    del other
    gc.collect()
    assert not wiring_of(model[0]).collecting
    third = Rewirer(model, optimizer, end=500)
    twin = copy.deepcopy(model)  # another model
    assert Rewirer(twin, sgd(twin.parameters()), end=500).driven.keys() == third.driven.keys()


def test_an_optimizer_without_the_parameters() -> None:
    model = net()
    with pytest.raises(UserError, match=r"does not hold 0\.wiring\.values, 2\.wiring\.values"):
        Rewirer(model, sgd(net().parameters()), end=500)
    with pytest.raises(UserError, match=r"does not hold 2\.wiring\.values; make it after"):
        Rewirer(model, sgd(model[0].parameters()), end=500)
    static = nn.Sequential(SparseLinear(4, 4, wiring=StaticWiring))
    with pytest.raises(UserError, match="any parameter of Sequential"):
        Rewirer(static, sgd(net().parameters()), end=500)


def test_a_model_without_wirings() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(UserError, match="Linear has no wirings"):
        Rewirer(model, sgd(model.parameters()), end=500)


def test_a_wiring_of_ones_own_is_rewired() -> None:
    """Any wiring that overrides `rewire` is driven, with the gradient of the step."""

    class Own(StaticWiring):
        seen: Tensor | None = None

        def rewire(self, score: Any) -> Any:
            self.seen = score.dense()
            return super().rewire(score)

        def forward(self, x: Tensor | None = None) -> SparseWeight:
            return super().forward(x)

    model = nn.Sequential(SparseLinear(10, 4, wiring=partial(Own, k=7)))
    optimizer = sgd(model.parameters())
    x, y = next(batches(1))
    expected = 2 * (model(x).detach() - y).t() @ x / y.numel()
    events = train(model, optimizer, Rewirer(model, optimizer, every=1, end=2), 1)
    assert events[0].moves == {"0.wiring": 0}
    assert torch.allclose(model[0].wiring.seen, expected, atol=1e-6)
