"""Sparse inputs: products, conversions, losses and scores against dense tensors and against dictionaries."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import problems
import pytest
import scipy.sparse
import torch
from fuzzing import DTYPES, EXTREMES, FULL, KINDS, ODD, SEEDS, Shape, batch_of, close, fuzz, shapes, weight_of
from hypothesis import strategies as st
from torch import Tensor

from ash import EdgeIndex, SparseBatch, SparseWeight, UserError, as_sparse_batch, contract, edge_scores, sparse_loss

pytestmark = pytest.mark.nightly
ENTRIES = st.integers(0, 14)
CHANNELS = st.sampled_from([(), (), (1,), (3,), (2, 2), (0,)])


@st.composite
def sizes(draw: st.DrawFn, rank: st.SearchStrategy[int] | None = None) -> list[Shape]:
    """Shapes of up to four tensors of one rank."""
    r = draw(st.integers(1, 4) if rank is None else rank)
    return draw(st.lists(st.tuples(*[st.integers(1, 5)] * r), min_size=1, max_size=4))


def dense_of(x: SparseBatch) -> Tensor:
    """(b, *largest sizes, *channels), entry by entry."""
    shape = [max(column) for column in zip(*x.sizes.tolist(), strict=True)]
    whole = torch.zeros(len(x), *shape, *x.values.shape[1:], dtype=x.values.dtype)
    for i, place, value in zip(x.instance.tolist(), x.indices.tolist(), x.values, strict=True):
        whole[(i, *place)] += value.detach()
    return whole


def as_dictionary(x: SparseBatch) -> dict[tuple[int, ...], float]:
    """Position, with the tensor's number first -> the sum of what is stored there."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for i, place, value in zip(x.instance.tolist(), x.indices.tolist(), x.values.tolist(), strict=True):
        found[(i, *place)] += value
    return dict(found)


@fuzz(
    900, seed=SEEDS, out_shape=shapes(), in_shape=shapes(), n=ENTRIES, entries=ENTRIES, b=st.integers(1, 4),
    own=st.booleans(), kinds=st.tuples(KINDS, KINDS), channels=CHANNELS, types=st.tuples(DTYPES, DTYPES),
    coalesce=st.booleans(),
)  # fmt: skip
def test_products_with_sparse_inputs(
    seed: int, out_shape: Shape, in_shape: Shape, n: int, entries: int, b: int, own: bool, kinds: tuple[str, str],
    channels: Shape, types: tuple[torch.dtype, torch.dtype], coalesce: bool,
) -> None:  # fmt: skip
    weight = weight_of(out_shape, in_shape, n, kinds[0], b if own else None, types[0])
    x = batch_of([in_shape] * b, entries, kinds[1], channels, types[1])
    y = contract(weight, x, coalesce=coalesce).check("refuse" if coalesce else "sum")
    assert y.values.dtype == types[1]
    factor = torch.randn(b, *out_shape, *channels, dtype=torch.float64)
    at = (y.instance, *y.indices.unbind(-1))
    leaves: tuple[Tensor, ...] = (weight.values, x.values)
    found = torch.autograd.grad((y.values.double() * factor[at]).sum(), leaves, materialize_grads=True)
    results = []
    for size in (False, True):
        given = [each.detach().double() for each in (weight.values, x.values, factor)]
        values, source, by = [each.abs() for each in given] if size else given
        leaves = values.requires_grad_(), source.requires_grad_()
        whole = x.with_values(leaves[1]).to_dense()
        dense = SparseWeight(weight.indices, leaves[0], out_shape, in_shape).to_dense()
        r = len(out_shape)
        parts = [problems.matmul(dense[i] if own else dense, whole[i : i + 1], r) for i in range(b)]
        wanted = torch.cat(parts)
        gradients = torch.autograd.grad((wanted * by).sum(), leaves, materialize_grads=True)
        results.append((wanted.detach(), *gradients))
    narrow = max(types, key=lambda t: torch.finfo(t).eps)
    for one, other, bound in zip((dense_of(y), *found), *results, strict=True):
        close(one.to(narrow), other, bound, 4 * (n + entries))


@fuzz(600, seed=SEEDS, given_sizes=sizes(), n=ENTRIES, kind=KINDS, channels=CHANNELS, dtype=DTYPES)
def test_what_a_batch_is_turned_into(
    seed: int, given_sizes: list[Shape], n: int, kind: str, channels: Shape, dtype: torch.dtype
) -> None:
    x = batch_of(given_sizes, n, kind, channels, dtype).check()
    dense = dense_of(x)

    def same(one: Tensor, other: Tensor = dense) -> bool:
        return one.shape == other.shape and torch.allclose(one, other, rtol=0.05, atol=0.05)

    whole = x.coalesce().check("refuse")
    assert same(x.to_dense()) and same(whole.to_dense()) and same(x.nonzero().to_dense())
    assert bool((whole.ids[1:] > whole.ids[:-1]).all())
    assert dtype in (torch.bfloat16, torch.float16) or same(x.to_coo().to_dense())
    order = torch.randperm(x.rank).tolist()
    turned = dense.permute(0, *[1 + i for i in order], *range(1 + x.rank, dense.dim()))
    assert same(x.permute(*order).to_dense(), turned)
    assert same(SparseBatch.cat([x, x]).to_dense(), torch.cat([dense, dense]))
    for i, one in enumerate(x):
        assert same(one.to_dense()[0], dense[i][tuple(slice(0, s) for s in given_sizes[i])])
    again = SparseBatch.cat(list(x))
    assert torch.equal(again.ids, x.ids) and torch.equal(again.values, x.values)
    assert int(x.starts[-1]) == n and len(x.starts) == len(x) + 1


@fuzz(500, seed=SEEDS, given_sizes=sizes(st.just(2)), n=ENTRIES, kind=KINDS, dtype=FULL)
def test_matrices_of_other_packages_and_back(
    seed: int, given_sizes: list[Shape], n: int, kind: str, dtype: torch.dtype
) -> None:
    x = batch_of(given_sizes, n, kind, (), dtype)
    dense = dense_of(x)
    ways: list[Any] = [
        x.to_csr(), x.to_scipy(), [scipy.sparse.coo_matrix(each) for each in x.to_scipy()], dense, x.to_coo(),
        [each.to_sparse_csc() for each in x.to_csr()], dense.to_sparse_coo(),
    ]  # fmt: skip
    for way in ways:
        found = as_sparse_batch(way, rank=2)
        tops = found.to_dense()
        assert torch.allclose(tops, dense[:, : tops.shape[1], : tops.shape[2]], atol=1e-5)
        assert len(found) == len(x)
    square = batch_of([(s[0], s[0]) for s in given_sizes], n, kind, (), dtype)
    back = SparseBatch.from_edge_index(*square.to_edge_index())
    assert torch.equal(back.ids, square.ids) and torch.equal(back.values, square.values)


LARGE = st.integers(1, 3).flatmap(lambda r: st.tuples(*[st.integers(1, 2 ** (62 // r))] * r))


@fuzz(500, seed=SEEDS, out_shape=LARGE, in_shape=LARGE, n=ENTRIES, entries=ENTRIES, b=st.integers(1, 3),
      own=st.booleans(), edge=st.booleans())  # fmt: skip
def test_tensors_of_any_number_of_positions(
    seed: int, out_shape: Shape, in_shape: Shape, n: int, entries: int, b: int, own: bool, edge: bool
) -> None:
    """Up to 2^62 positions, where a dense tensor is out of the question: a dictionary of positions is the reference."""
    kind = "corners" if edge else "random"
    weight = weight_of(out_shape, in_shape, n, kind, b if own else None, torch.float64).check()
    few = batch_of([(2,) * len(in_shape)] * b, entries, "random", (), torch.float64)
    indices = few.indices * (torch.tensor(in_shape) - 1)
    if not edge and n and entries:
        flat = weight.indices.reshape(-1, weight.indices.shape[-1])[:, len(out_shape) :]
        indices = flat[torch.randint(0, len(flat), (entries,))]
    x = SparseBatch(few.instance, indices, few.values, torch.tensor(in_shape).expand(b, -1))
    if own and b * math.prod(in_shape) > 2**63 - 1:
        with pytest.raises(UserError, match="2\\^63"):
            contract(weight, x)
        return
    wanted: dict[tuple[int, ...], float] = defaultdict(float)
    for i, place, value in zip(x.instance.tolist(), x.indices.tolist(), x.values.tolist(), strict=True):
        one = weight.instance(i)
        for position, worth in zip(one.indices.tolist(), one.values.tolist(), strict=True):
            if tuple(position[len(out_shape) :]) == tuple(place):
                wanted[(i, *position[: len(out_shape)])] += worth * value
    found = as_dictionary(contract(weight, x, coalesce=b * math.prod(out_shape) <= 2**63 - 1))
    assert found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(wanted[key], abs=1e-9) for key in wanted)


@fuzz(600, seed=SEEDS, given_sizes=sizes(), n=st.integers(1, 9),
      wrong=st.sampled_from(["index", "value", "size", "instance"]),
      index=st.one_of(st.sampled_from(EXTREMES), st.integers(-6, 9)), odd=st.sampled_from(ODD))  # fmt: skip
def test_check_refuses_what_is_outside_and_nothing_else(
    seed: int, given_sizes: list[Shape], n: int, wrong: str, index: int, odd: float
) -> None:
    x = batch_of(given_sizes, n, "random", (), torch.float32)
    which, column = int(torch.randint(0, n, ())), int(torch.randint(0, x.rank, ()))
    instance, indices, values, own = (each.detach().clone() for each in (x.instance, x.indices, x.values, x.sizes))
    good = False
    if wrong == "index":
        indices[which, column] = index
        good = 0 <= index < int(own[instance[which], column])
    elif wrong == "value":
        values[which] = odd
    elif wrong == "size":
        own[int(torch.randint(0, len(own), ())), column] = min(index, 0)
    else:
        instance[which] = index
        good = 0 <= index < len(x) and instance.tolist() == sorted(instance.tolist())
        good = good and all(i < s for i, s in zip(indices[which].tolist(), own[index].tolist(), strict=True))
    spoilt = SparseBatch(instance, indices, values, own)
    if good:
        assert spoilt.check() is spoilt
    else:
        with pytest.raises(UserError, match="expected"):
            spoilt.check()


WRONG = {
    "an index too few": lambda i, p, v, s: (i, p[:, 1:], v, s),
    "an entry too many": lambda i, p, v, s: (i, p, torch.cat([v, v[:1]]), s),
    "int32": lambda i, p, v, s: (i, p.int(), v, s),
    "positions that are no integers": lambda i, p, v, s: (i, p.double(), v, s),
    "values that are integers": lambda i, p, v, s: (i, p, v.long(), s),
    "complex values": lambda i, p, v, s: (i, p, v.to(torch.complex64), s),
    "sizes of one": lambda i, p, v, s: (i, p, v, s[0]),
}


@fuzz(150, seed=SEEDS, given_sizes=sizes(), n=st.integers(1, 5), wrong=st.sampled_from(sorted(WRONG)))
def test_parts_that_do_not_fit_are_refused(seed: int, given_sizes: list[Shape], n: int, wrong: str) -> None:
    x = batch_of(given_sizes, n, "random", (), torch.float32)
    with pytest.raises(UserError, match="expected"):
        SparseBatch(*WRONG[wrong](x.instance, x.indices, x.values.detach(), x.sizes))


@fuzz(500, seed=SEEDS, nodes=st.integers(0, 6), edges=st.integers(0, 9), graphs=st.integers(1, 3),
      index=st.one_of(st.sampled_from(EXTREMES), st.integers(-2, 7)), dtype=st.sampled_from([torch.int64, torch.int32]),
      values=st.sampled_from([None, (), (2,)]))  # fmt: skip
def test_edge_indices(
    seed: int, nodes: int, edges: int, graphs: int, index: int, dtype: torch.dtype, values: Shape | None
) -> None:
    batch = torch.randint(0, graphs, (nodes,)).sort().values
    edge_index = torch.randint(0, max(1, nodes), (2, edges))
    if edges and -(2**31) <= index < 2**31:
        edge_index[0, 0] = index
    given_values = None if values is None else torch.randn(edges, *values)
    given = EdgeIndex(edge_index.to(dtype), nodes, given_values, batch.to(dtype))
    inside = nodes > 0 and bool(((edge_index >= 0) & (edge_index < nodes)).all())
    good = inside and bool((batch[edge_index[0]] == batch[edge_index[1]]).all())
    good = good and len(batch.unique()) == int(batch.max()) + 1
    if not good:
        with pytest.raises(UserError, match="expected"):
            as_sparse_batch(given)
        return
    found = as_sparse_batch(given)
    assert found.entries == edges and int(found.sizes[:, 0].sum()) == nodes
    back = found.to_edge_index()
    one, other = (sorted(map(tuple, each.t().tolist())) for each in (back.edge_index, edge_index))
    assert one == other and torch.equal(back.batch, batch)


@fuzz(700, seed=SEEDS, given_sizes=sizes(), n=st.tuples(ENTRIES, ENTRIES), kind=KINDS, channels=CHANNELS,
      weights=st.tuples(*[st.floats(0, 3)] * 3), threshold=st.floats(0.01, 2))  # fmt: skip
def test_losses_and_scores(
    seed: int, given_sizes: list[Shape], n: tuple[int, int], kind: str, channels: Shape,
    weights: tuple[float, float, float], threshold: float,
) -> None:  # fmt: skip
    p, t = (batch_of(given_sizes, count, kind, channels, torch.float64) for count in n)
    stored = []
    for each in (p, t):
        where = each.with_values(torch.ones(each.entries, dtype=torch.float64)).to_dense() > 0
        stored.append(where.reshape(*where.shape, *[1] * len(channels)))
    there, wanted = stored
    one, other = p.to_dense().detach(), t.to_dense().detach()
    matched, missed, spurious = weights
    total = matched * ((one - other) ** 2 * (there & wanted)).sum() + missed * (other**2 * (~there & wanted)).sum()
    total = total + spurious * (one**2 * (there & ~wanted)).sum()
    count = max(1, int(wanted.sum())) * max(1, math.prod(channels))
    loss = sparse_loss(p, t, matched=matched, missed=missed, spurious=spurious)
    assert loss.item() == pytest.approx(total.item() / count, rel=1e-9, abs=1e-12)
    if channels:
        return
    predicted, true = one.abs() >= threshold, other.abs() >= threshold
    hits = int((predicted & true).sum())
    scores = edge_scores(p, t, threshold)
    assert scores.precision == (hits / int(predicted.sum()) if predicted.any() else 1)
    assert scores.recall == (hits / int(true.sum()) if true.any() else 1)
    exact = (predicted == true).flatten(1).all(1)
    assert scores.exact == pytest.approx(float(exact.double().mean()))
