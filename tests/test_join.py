"""Sparse weight × sparse input against the dense contraction: values, first and second derivatives, layers."""

from __future__ import annotations

from functools import partial

import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ash import (
    GaussianWiring,
    HyperWiring,
    MLPHypernetwork,
    RigLWiring,
    Sampling,
    SETWiring,
    SparseBatch,
    SparseLayer,
    SparseLinear,
    SparseWeight,
    StaticWiring,
    TopKWiring,
    UserError,
    contract,
    freeze,
)

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
Shape = tuple[int, ...]


def batch(shape: Shape, b: int, n: int, extra: Shape = ()) -> SparseBatch:
    """n entries at random places, some of them twice, in random order within a tensor."""
    indices = torch.stack([torch.randint(0, s, (n,)) for s in shape], -1)
    values = torch.randn(n, *extra, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor(shape).expand(b, -1)
    return SparseBatch(torch.randint(0, b, (n,)).sort().values, indices, values, sizes)


def draw(out_shape: Shape, in_shape: Shape, n: int, b: int | None = None) -> SparseWeight:
    lead = (n,) if b is None else (b, n)
    indices = torch.stack([torch.randint(0, s, lead) for s in (*out_shape, *in_shape)], -1)
    return SparseWeight(indices, torch.randn(lead, dtype=torch.float64, requires_grad=True), out_shape, in_shape)


def expected(weight: SparseWeight, x: SparseBatch) -> Tensor:
    dense, given, r = weight.to_dense(), x.to_dense(), len(weight.out_shape)
    if not weight.per_instance:
        return problems.matmul(dense, given, r)
    return torch.cat([problems.matmul(one, each[None], r) for one, each in zip(dense, given, strict=True)])


def check(weight: SparseWeight, x: SparseBatch, coalesce: bool = True) -> SparseBatch:
    """Value and first derivatives against the dense contraction."""
    found, wanted = contract(weight, x, coalesce=coalesce), expected(weight, x)
    assert torch.allclose(found.to_dense(), wanted)
    factor = torch.randn_like(wanted)
    leaves = (weight.values, x.values)
    ours = torch.autograd.grad((found.to_dense() * factor).sum(), leaves, materialize_grads=True)
    theirs = torch.autograd.grad((wanted * factor).sum(), leaves, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other)
    return found.check("refuse" if coalesce else "sum")


@settings(max_examples=60)
@given(SHAPES, SHAPES, st.integers(0, 12), st.integers(0, 12), st.integers(1, 3), st.booleans(), st.booleans())
def test_it_is_the_dense_contraction(
    out_shape: Shape, in_shape: Shape, n: int, entries: int, b: int, own: bool, coalesce: bool
) -> None:
    check(draw(out_shape, in_shape, n, b if own else None), batch(in_shape, b, entries), coalesce)


@pytest.mark.parametrize("b", [None, 2])
def test_channels_share_the_weight(b: int | None) -> None:
    found = check(draw((3, 2), (4,), 9, b), batch((4,), 2, 6, (2, 3)))
    assert found.values.shape[1:] == (2, 3)


@pytest.mark.parametrize("own", [None, 3])
def test_derivatives_of_both_orders(own: int | None) -> None:
    weight, x = draw((2, 2), (3, 2), 7, own), batch((3, 2), 3, 8)

    def product(values: Tensor, given: Tensor) -> Tensor:
        instance = SparseWeight(weight.indices, values, weight.out_shape, weight.in_shape)
        return contract(instance, x.with_values(given)).values

    assert gradcheck(product, (weight.values, x.values))
    assert gradgradcheck(product, (weight.values, x.values))


def test_worked_by_hand() -> None:
    """W[0, 2] = 5 and W[1, 2] = 7 meet the entries 2 and 3 at position 2; nothing meets the one at position 0."""
    weight = SparseWeight(torch.tensor([[0, 2], [1, 2], [1, 1]]), torch.tensor([5.0, 7.0, 11.0]), (2,), (3,))
    x = SparseBatch.from_entries([torch.tensor([[2], [0], [2]])], [torch.tensor([2.0, 13.0, 3.0])], [(3,)])
    found = contract(weight, x)
    assert found.indices.tolist() == [[0], [1]] and found.values.tolist() == [25, 35]
    assert found.sizes.tolist() == [[2]]
    pairs = contract(weight, x, coalesce=False)
    assert pairs.indices.tolist() == [[0], [1], [0], [1]] and pairs.values.tolist() == [10, 14, 15, 21]


def test_a_weight_over_the_pairs_of_many_nodes() -> None:
    """50,000² positions on either side: only the entries that meet are looked at."""
    n = 50_000
    edges = torch.tensor([[7, 49_999], [3, 4], [49_999, 0]])
    turned = torch.cat([edges.flip(1), edges], 1)
    weight = SparseWeight(turned, torch.ones(3), (n, n), (n, n))
    x = SparseBatch.from_entries([edges[[2, 0]]], None, [(n, n)])
    assert contract(weight, x).indices.tolist() == [[0, 49_999], [49_999, 7]]


def test_an_empty_graph_gives_an_empty_one() -> None:
    layer = SparseLayer((4, 4), (3, 2), bias=False, wiring=partial(StaticWiring, k=9))
    empty = SparseBatch.from_entries([torch.zeros(0, 2)], [torch.zeros(0)], [(4, 4)])
    found = layer(empty)
    assert found.entries == 0 and found.sizes.tolist() == [[3, 2]]
    found.values.sum().backward()
    assert layer.wiring.values.grad.tolist() == [0] * 9


def test_the_dtype_of_the_input_is_kept() -> None:
    weight = SparseWeight(torch.tensor([[0, 0], [0, 0]]), torch.tensor([1.0, 2.0**-9]), (1,), (1,))
    x = SparseBatch.from_entries([torch.zeros(1, 1)], [torch.ones(1, dtype=torch.bfloat16)], [(1,)])
    assert contract(weight, x).values.dtype == torch.bfloat16
    wide = contract(weight, x.to(torch.float64)).values
    assert wide.dtype == torch.float64 and wide.tolist() == [1 + 2.0**-9]


# --- layers ------------------------------------------------------------------------------------------------


WIRINGS = {
    "static": partial(StaticWiring, k=30),
    "gaussian": partial(GaussianWiring, k=12),
    "SET": partial(SETWiring, k=30),
}


@pytest.mark.parametrize("wiring", WIRINGS.values(), ids=WIRINGS)
@pytest.mark.parametrize("train", [True, False])
def test_a_layer_gives_what_it_gives_for_dense_input(wiring: partial, train: bool) -> None:
    layer = SparseLayer((4, 4), (3, 5), bias=False, wiring=wiring).train(train)
    x = batch((4, 4), 3, 20).to(torch.float32)
    torch.manual_seed(1)
    found = layer(x)
    torch.manual_seed(1)
    assert torch.allclose(found.to_dense(), layer(x.to_dense()), atol=1e-6)


def test_gradients_reach_values_and_means() -> None:
    layer = SparseLayer((4, 4), (4, 4), bias=False, wiring=partial(GaussianWiring, k=12))
    x = batch((4, 4), 2, 16).to(torch.float32)
    x.values.retain_grad()
    layer(x).values.square().sum().backward()
    assert x.values.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_layers_one_after_the_other() -> None:
    first = SparseLayer((3, 3), 5, bias=False, wiring=partial(StaticWiring, k=20))
    second = SparseLinear(5, 4, bias=False, wiring=partial(StaticWiring, k=9))
    x = batch((3, 3), 2, 6).to(torch.float32)
    assert torch.allclose(second(first(x)).to_dense(), second(first(x.to_dense())), atol=1e-6)


def test_layers_take_what_other_packages_hold() -> None:
    layer = SparseLayer((4, 4), 5, bias=False, wiring=partial(StaticWiring, k=20))
    x = batch((4, 4), 3, 12).to(torch.float32)
    wanted = layer(x.to_dense())
    for stored in (x.to_coo(), x.to_csr(), x.to_scipy(), list(x), x.to_edge_index()):
        assert torch.allclose(layer(stored).to_dense(), wanted, atol=1e-6)
    vectors = SparseLinear(6, 5, bias=False, wiring=partial(StaticWiring, k=9))
    rows = torch.eye(6)[:4]
    assert torch.allclose(vectors(rows.to_sparse_coo()).to_dense(), vectors(rows))


def test_a_frozen_layer_takes_sparse_input() -> None:
    layer = SparseLayer((4, 4), 6, bias=False, wiring=partial(GaussianWiring, k=12)).eval()
    x = batch((4, 4), 2, 9).to(torch.float32)
    assert torch.allclose(freeze(layer)(x).to_dense(), layer(x).to_dense())


def test_a_weight_per_instance_from_a_condition() -> None:
    net = partial(MLPHypernetwork, hidden=(8,))
    wiring = partial(HyperWiring, k=6, hypernetwork=net, condition_shape=(3,))
    layer = SparseLayer((4, 4), (2, 3), bias=False, wiring=wiring).eval()
    x, condition = batch((4, 4), 3, 20).to(torch.float32), torch.randn(3, 3)
    assert torch.allclose(layer(x, condition).to_dense(), layer(x.to_dense(), condition), atol=1e-6)
    with pytest.raises(UserError, match="the condition is dense"):
        layer(x)
    with pytest.raises(UserError, match="2 weights .one per instance. for a batch of 3"):
        layer(x, condition[:2])


@pytest.mark.parametrize("train", [True, False])
def test_a_candidate_that_learns_is_refused(train: bool) -> None:
    layer = SparseLayer((3, 3), 4, bias=False, wiring=partial(TopKWiring, k=8)).train(train)
    x = batch((3, 3), 2, 6).to(torch.float32)
    with pytest.raises(UserError, match="candidate tensor learns"):
        layer(x)
    with torch.no_grad():
        assert torch.allclose(layer(x).to_dense(), layer(x.to_dense()), atol=1e-6)


def test_a_wiring_that_wants_the_whole_gradient_is_refused() -> None:
    x = batch((3, 3), 2, 6).to(torch.float32)
    guided = SparseLayer(
        (3, 3), 4, bias=False, wiring=partial(GaussianWiring, k=4, sampling=Sampling(guided_samples=2))
    )
    collecting = SparseLayer((3, 3), 4, bias=False, wiring=partial(RigLWiring, k=8))
    collecting.wiring.collecting = True
    for layer in (guided, collecting):
        with pytest.raises(UserError, match="only some; give the layer x.to_dense()"):
            layer(x)
        layer.eval()
        assert layer(x).sizes.tolist() == [[4], [4]]


def test_a_bias_is_refused() -> None:
    with pytest.raises(UserError, match="would fill every output position.*bias=False"):
        SparseLayer((3, 3), 4)(batch((3, 3), 2, 6))


BAD = {
    "a size": (lambda: batch((3, 4), 2, 6), r"shapes \(3, 4\); expected \(3, 3\)"),
    "a rank": (lambda: batch((9,), 2, 6), r"shapes \(9,\); expected \(3, 3\)"),
    "sizes that differ": (
        lambda: SparseBatch.cat([batch((3, 3), 1, 2), batch((2, 3), 1, 2)]),
        r"shapes \(2, 3\), \(3, 3\); expected",
    ),
    "an index": (
        lambda: SparseBatch.from_entries([torch.tensor([[0, 3]])], None, [(3, 3)]),
        r"\[0, 3\].*shape \[3, 3\]; expected 0 <= index < size",
    ),
    "a NaN": (
        lambda: SparseBatch.from_entries([torch.tensor([[0, 2]])], [torch.tensor([torch.nan])], [(3, 3)]),
        r"\[0, 2\] with value nan.*expected finite values",
    ),
}


@pytest.mark.parametrize(("x", "message"), BAD.values(), ids=BAD)
def test_bad_input(x: object, message: str) -> None:
    layer = SparseLayer((3, 3), 4, bias=False, wiring=partial(StaticWiring, k=8))
    with pytest.raises(UserError, match=message):
        layer(x())  # type: ignore[operator]
