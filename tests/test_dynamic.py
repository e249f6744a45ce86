"""Dynamic wirings: one rewiring at a time, against the dense gradient and by hand."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ash import (
    DenseGradient,
    DSRWiring,
    DynamicWiring,
    Factors,
    Mask,
    RigLWiring,
    SETWiring,
    SNFSWiring,
    SourceBeforeTarget,
    SparseLinear,
    UserError,
    contract,
)

KINDS = [SETWiring, RigLWiring, SNFSWiring]
kinds = pytest.mark.parametrize("kind", KINDS)
ENTRIES = torch.tensor([[0, 0], [0, 2], [1, 1], [2, 0], [2, 2]])


def small(kind: type[DynamicWiring] = RigLWiring, **options: Any) -> DynamicWiring:
    """Five entries of 3 × 3 with values 5, −1, 3, 2, −4."""
    wiring = kind(3, 3, indices=ENTRIES, **options)
    with torch.no_grad():
        wiring.entry_values().copy_(torch.tensor([5.0, -1.0, 3.0, 2.0, -4.0]))
    return wiring


GRADIENT = torch.tensor([[9.0, 0.5, 9.0], [-2.0, 9.0, 1.0], [9.0, 3.0, 9.0]])


def test_a_rewiring_worked_out_by_hand() -> None:
    wiring = small()
    report = wiring.rewire(DenseGradient(GRADIENT, 1), fraction=0.4)
    # −1 at (0, 2) and 2 at (2, 0) are smallest; 3 at (2, 1) and −2 at (1, 0) are the largest free gradients.
    assert sorted(report.moved.tolist()) == [1, 3]
    assert report.order is None
    expected = torch.tensor([[5.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, -4.0]])
    assert torch.equal(wiring().to_dense(), expected)
    assert {tuple(e) for e in wiring.indices.tolist()} == {(0, 0), (1, 1), (2, 2), (2, 1), (1, 0)}


def test_a_rewiring_by_saliency() -> None:
    gradient = GRADIENT.clone()
    gradient[0, 0] = 0.1  # |w · g| = 0.5, the smallest
    wiring = small(drop="saliency")
    wiring.rewire(DenseGradient(gradient, 1), fraction=0.2)
    assert wiring.indices.tolist()[0] == [2, 1]
    assert wiring.values.tolist() == [0.0, -1.0, 3.0, 2.0, -4.0]


def test_edges_that_lead_nowhere_are_dropped_first() -> None:
    """Unit 1 of the hidden layer has no way out, and input 2 is always 0."""
    first = RigLWiring(3, 3, indices=ENTRIES, drop="dead_first")
    second = RigLWiring(2, 3, indices=torch.tensor([[0, 0], [1, 2]]))
    model = torch.nn.Sequential(SparseLinear(3, 3, wiring=first), SparseLinear(3, 2, wiring=second))
    x = torch.randn(20, 3) * torch.tensor([1.0, 1.0, 0.0])
    first.collecting = True
    model(x).square().sum().backward()
    score = first.collected()
    assert score is not None
    dropped = first.to_drop(0.6, score, torch.Generator())
    assert {tuple(ENTRIES[i].tolist()) for i in dropped} == {(0, 2), (1, 1), (2, 2)}


@kinds
@settings(max_examples=40)
@given(data=st.data())
def test_what_always_holds(kind: type[DynamicWiring], data: st.DataObject) -> None:
    out, in_ = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    mask = torch.rand(out, in_) < data.draw(st.floats(0.2, 1.0))
    mask[0, 0] = True
    k = data.draw(st.integers(1, int(mask.sum())))
    wiring = kind(out, in_, k, admissible=Mask(mask), capacity=k)
    before, values = set(wiring.ids().tolist()), wiring.values.detach().clone()
    fraction = data.draw(st.floats(0.0, 1.0))
    factors = Factors(torch.randn(4, in_), torch.randn(4, out))
    report = wiring.rewire(factors, fraction)
    ids, moved = wiring.ids(), report.moved
    after = set(ids.tolist())
    expected = min(round(fraction * k), int(mask.sum()) - k)
    assert report.moves == expected == len(moved.unique())
    assert len(after) == k == wiring.stored_entries()  # the count is conserved, all entries differ
    assert not set(ids[moved].tolist()) & before  # what grows was not there, so not dropped either
    assert after - set(ids[moved].tolist()) <= before
    assert wiring.admissible.contains(wiring.indices).all()
    rest = torch.ones(k, dtype=torch.bool)
    rest[moved] = False
    assert (wiring.values[moved] == 0).all()
    assert torch.equal(wiring.values[rest], values[rest])
    if kind is not SETWiring:
        size = factors.dense().abs()
        size[~mask] = -1
        size = size.flatten().index_fill(0, torch.tensor(sorted(before)), -1)
        assert torch.allclose(size[ids[moved]].sort().values, size.topk(expected).values.sort().values)


def test_the_smallest_are_dropped_and_the_largest_gradients_of_a_batch_grow() -> None:
    """Through a layer: the score that it hands over is the gradient of a dense layer's weight."""
    wiring = RigLWiring(8, 10, 30)
    layer = SparseLinear(10, 8, wiring=wiring)
    dense = torch.nn.Linear(10, 8)
    with torch.no_grad():
        dense.weight.copy_(wiring().to_dense())
        assert layer.bias is not None
        dense.bias.copy_(layer.bias)
    x = torch.randn(16, 10)
    wiring.collecting = True
    layer(x).square().sum().backward()
    dense(x).square().sum().backward()
    assert dense.weight.grad is not None
    before, size = wiring.ids(), dense.weight.grad.abs().flatten()
    smallest = wiring.values.abs().topk(9, largest=False).indices
    score = wiring.collected()
    assert score is not None
    report = wiring.rewire(score, 0.3)
    assert sorted(report.moved.tolist()) == sorted(smallest.tolist())
    assert set(wiring.ids()[report.moved].tolist()) == set(size.index_fill(0, before, -1).topk(9).indices.tolist())


def test_entries_are_brought_into_order() -> None:
    wiring = small()
    wiring.rewire(DenseGradient(GRADIENT, 1), 0.4)
    dense, ids, values = wiring().to_dense(), wiring.ids().clone(), wiring.values.detach().clone()
    order = wiring.arrange()
    assert order is not None
    assert torch.equal(wiring.ids(), ids[order])
    assert torch.equal(wiring.values, values[order])
    assert (wiring.ids().diff() > 0).all()
    assert torch.equal(wiring().to_dense(), dense)
    assert wiring().pattern.order is None  # no permutation in a step
    assert wiring.arrange() is None


def test_the_csr_structure_is_kept_between_rewirings_and_made_anew_after_one() -> None:
    wiring = RigLWiring(9, 9, 20)
    kept = wiring().pattern
    with torch.no_grad():
        wiring.values.mul_(2.0)
    assert wiring().pattern is kept
    wiring.rewire(Factors(torch.randn(3, 9), torch.randn(3, 9)), 0.5)
    assert wiring().pattern is not kept
    x = torch.randn(2, 9)
    assert torch.allclose(contract(wiring(), x, "torch"), contract(wiring(), x, "dense"), atol=1e-6)


def test_random_growth_is_decided_by_the_generator() -> None:
    one, other = (SETWiring(9, 9, 20, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    for wiring, seed in ((one, 3), (other, 4)):
        torch.manual_seed(seed)
        wiring.rewire(None, 0.5, torch.Generator().manual_seed(2))
    assert torch.equal(one.indices, other.indices)
    torch.manual_seed(5)
    one.rewire(None, 0.5)
    torch.manual_seed(5)
    other.rewire(None, 0.5)
    assert torch.equal(one.indices, other.indices)


def test_grown_entries_can_start_at_other_values() -> None:
    wiring = RigLWiring(20, 20, 200, start="fan_in")
    moved = wiring.rewire(Factors(torch.randn(3, 20), torch.randn(3, 20)), 0.5).moved
    values = wiring.values[moved].detach()
    bound = torch.bincount(wiring.indices[:, 0], minlength=20)[wiring.indices[moved, 0]].rsqrt()
    assert (values != 0).all()
    assert (values.abs() <= bound).all()
    assert values.std() > 0.1


def test_a_full_wiring_stays() -> None:
    wiring = RigLWiring(4, 4, density=1.0)
    before = wiring.indices.clone()
    assert wiring.rewire(Factors(torch.randn(3, 4), torch.randn(3, 4)), 1.0).moves == 0
    assert torch.equal(wiring.indices, before)


# --- a count that changes --------------------------------------------------------------------------------


def roomy(kind: type[DynamicWiring] = RigLWiring) -> DynamicWiring:
    return small(kind, capacity=7)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_more_or_fewer_may_grow_than_were_dropped(n: int) -> None:
    wiring = roomy()
    along = torch.arange(7.0)  # an optimizer's state, say
    report = wiring.exchange(torch.tensor([3, 1]), n, DenseGradient(GRADIENT, 1), torch.Generator())
    grown = [(2, 1), (1, 0), (1, 2), (0, 1)][:n]
    expected = {(0, 0): 5.0, (1, 1): 3.0, (2, 2): -4.0} | dict.fromkeys(grown, 0.0)
    actual = dict(zip(map(tuple, wiring.entries().tolist()), wiring.entry_values().tolist(), strict=True))
    assert actual == expected
    assert wiring.stored_entries() == int(wiring.count) == 3 + n == len(wiring().values)
    assert (wiring.values[3 + n :] == 0).all()
    assert (report.order is not None) == (n < 2)
    assert {tuple(e) for e in wiring.indices[report.moved].tolist()} == set(grown)
    if report.order is not None:
        kept = {0: (0, 0), 2: (1, 1), 4: (2, 2)}  # by their numbers before
        for place, number in enumerate(along[report.order].int().tolist()[: 3 + n]):
            if place not in report.moved.tolist():
                assert kept[number] == tuple(wiring.indices[place].tolist())


def test_what_is_not_in_use_changes_nothing() -> None:
    wiring, other = roomy(), small()
    x = torch.randn(4, 3)
    for each in (wiring, other):
        contract(each(), x).square().sum().backward()
    assert torch.equal(wiring().to_dense(), other().to_dense())
    assert wiring.values.grad is not None and other.values.grad is not None
    assert torch.equal(wiring.values.grad, torch.cat([other.values.grad, torch.zeros(2)]))
    dense = torch.randn(3, 3)
    wiring.load_dense(dense)
    assert torch.equal(wiring.entry_values(), dense[tuple(ENTRIES.t())])
    assert (wiring.values[5:] == 0).all()
    wiring.reset_parameters()
    assert (wiring.values[5:] == 0).all()
    assert (wiring.values[:5] != 0).all()


def test_a_state_with_another_count_is_loaded() -> None:
    wiring, other = roomy(), roomy()
    assert other().pattern.nnz == 5
    wiring.exchange(torch.tensor([0]), 3, DenseGradient(GRADIENT, 1), torch.Generator())
    wiring.arrange()
    for each in (copy.deepcopy(wiring), other):
        each.load_state_dict(wiring.state_dict())
        assert each.stored_entries() == 7
        assert torch.equal(each().to_dense(), wiring().to_dense())
        assert each().pattern.nnz == 7


def test_room_is_limited_by_capacity_and_by_what_is_free() -> None:
    assert roomy().room(torch.tensor([0])) == 3
    assert small(capacity=9).room(torch.tensor([0, 1])) == 4  # the two that were dropped do not come back
    assert small(SNFSWiring).capacity == 9
    assert SNFSWiring(10, 10, 20).capacity == 80


# --- variants --------------------------------------------------------------------------------------------


def test_sparse_momentum_weighs_the_last_steps() -> None:
    wiring = SNFSWiring(2, 2, 2, decay=0.5)
    one, two = (Factors(torch.randn(3, 2), torch.randn(3, 2)) for _ in range(2))
    both = wiring.remember(wiring.remember(None, one), two)
    assert torch.allclose(both.dense(), 0.5 * one.dense() + two.dense())
    dense = SNFSWiring(2, 2, 2, decay=0.5, momentum="dense")
    held = dense.remember(dense.remember(None, one), two)
    assert isinstance(held, DenseGradient)
    assert torch.allclose(held.dense(), both.dense())
    assert (wiring.window, dense.window) == (16, None)


def test_a_layer_of_sparse_momentum_claims_by_its_momentum() -> None:
    wiring = small(SNFSWiring)
    gradient = torch.tensor([[-2.0, 50.0, 7.0], [0.0, 6.0, 0.0], [9.0, 0.0, 1.0]])
    assert wiring.claim(torch.tensor([3, 1]), DenseGradient(gradient, 1)) == 3.0  # |−2|, 6, 1 stay
    assert wiring.claim(torch.arange(5), DenseGradient(gradient, 1)) == 0.0


def test_one_threshold_drops_and_adapts() -> None:
    wiring = small(DSRWiring, threshold=2.5, tolerance=0.1)
    assert wiring.to_drop(0.1, None, torch.Generator()).tolist() == [1, 3]
    assert wiring.to_drop(0.0, None, torch.Generator()).tolist() == []
    assert wiring.claim(torch.tensor([1, 3]), None) == 3.0
    for dropped, expected in ((2, 2.5), (1, 5.0), (9, 2.5), (2, 2.5)):
        wiring.after_event(dropped, 2)
        assert float(wiring.threshold) == expected
    wiring.threshold.fill_(100.0)
    assert wiring.to_drop(0.1, None, torch.Generator()).tolist() == [1, 3, 2, 4]  # the largest stays


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(RigLWiring, 4, 4, 5, drop="smallest"), "unknown drop rule 'smallest'"),
        (partial(RigLWiring, 4, 4, 5, start="one"), "unknown start 'one'"),
        (partial(RigLWiring, 4, 4, 5, capacity=4), "capacity=4 for k=5 entries; expected 5 to 16"),
        (partial(RigLWiring, 4, 4, 3, capacity=7, admissible=SourceBeforeTarget(4)), "expected 3 to 6"),
        (partial(RigLWiring, 4, 4, indices=torch.tensor([[0, 1], [0, 1]])), "1 entries that occur twice"),
        (partial(SNFSWiring, 4, 4, 5, momentum="thin"), "unknown momentum 'thin'"),
        (partial(SNFSWiring, 4, 4, 5, window=0), "window=0"),
        (partial(SNFSWiring, 4, 4, 5, decay=1.0), "decay=1.0"),
        (partial(DSRWiring, 4, 4, 5, threshold=0.0), "threshold=0.0"),
        (lambda: RigLWiring(4, 4, 5).rewire(), "RigLWiring without a gradient"),
        (lambda: SETWiring(4, 4, 5, drop="saliency").rewire(), "SETWiring without a gradient"),
        (lambda: SETWiring(4, 4, 5, drop="dead_first").rewire(), "SETWiring without a gradient"),
        (lambda: SETWiring(4, 4, 5).rewire(fraction=1.5), "fraction=1.5"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_memory_follows_the_entries_and_not_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that a rewiring makes has more numbers than a block or a small multiple of k."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            made = found if isinstance(found, tuple | list) else [found]
            largest = max([largest, *(t.numel() for t in made if isinstance(t, Tensor))])
            return found

    monkeypatch.setattr("ash.growth.BLOCK", 4096)
    monkeypatch.setattr("ash.growth.GRID", 4096)
    monkeypatch.setattr("ash.largest.SLACK", 4096)
    n, k = 3000, 5000
    for kind in (SETWiring, RigLWiring):
        wiring = kind(n, n, k)
        factors = Factors(torch.randn(2, n), torch.randn(2, n))
        with Watch():
            wiring.rewire(factors, 0.3)
            wiring.arrange()
        assert 2 * k <= largest < 8 * k < n * n / 200


def test_growth_among_some_rows() -> None:
    """Half of six rows are drawn; the largest free entries of these grow, and the rest where they have too few."""
    wiring = RigLWiring(6, 5, 6, growth_share=0.5)
    factors, source = Factors(torch.randn(3, 5), torch.randn(3, 6)), torch.Generator().manual_seed(1)
    rows = torch.randperm(6, generator=torch.Generator().manual_seed(1))[:3]
    score = factors.dense().abs()
    score.view(-1)[wiring.ids()] = -1.0
    among = score.clone()
    among[[i for i in range(6) if i not in rows.tolist()]] = -1.0
    found = wiring.grow(4, factors, source)
    assert found.tolist() == among.flatten().topk(4).indices.tolist()
    many = wiring.grow(20, factors, torch.Generator().manual_seed(1))
    free = int((among >= 0).sum())
    assert set(many[:free].tolist()) == set(among.flatten().topk(free).indices.tolist())
    assert len(many.unique()) == 20 and (score.view(-1)[many] >= 0).all()


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_of_the_rows(share: float) -> None:
    with pytest.raises(UserError, match=f"growth_share={share}"):
        RigLWiring(4, 4, 5, growth_share=share)
