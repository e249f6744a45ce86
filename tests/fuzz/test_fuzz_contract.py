"""Products of stored weights with dense inputs, and what a weight can be turned into, against the dense tensor."""

from __future__ import annotations

import math

import problems
import pytest
import torch
from fuzzing import (
    DTYPES,
    EXTREMES,
    FULL,
    KINDS,
    LAYOUTS,
    SEEDS,
    Shape,
    close,
    each_path,
    fuzz,
    indices_in,
    laid_out,
    path,
    shapes,
    weight_of,
)
from hypothesis import strategies as st
from torch import Tensor

from ash import SparseWeight, UserError, contract

pytestmark = pytest.mark.nightly
ENTRIES = st.integers(0, 14)
EXTRA = st.lists(st.integers(0, 3), max_size=2).map(tuple)
BATCHES = st.integers(0, 4)
BACKENDS = st.sampled_from(["auto", "torch", "dense"])


def dense_product(weight: SparseWeight, values: Tensor, x: Tensor) -> Tensor:
    """Entry by entry in a dense tensor of float64."""
    r = len(weight.out_shape)
    if not weight.per_instance:
        whole = torch.zeros(weight.shape, dtype=torch.float64)
        return problems.matmul(whole.index_put(tuple(weight.indices.unbind(-1)), values, accumulate=True), x, r)
    parts = [dense_product(weight.instance(i), values[i], x[i : i + 1]) for i in range(len(x))]
    nothing = x.new_zeros(0, *weight.out_shape, *x.shape[1 + len(weight.in_shape) :])
    return torch.cat(parts) if parts else nothing + 0 * (values.sum() + x.sum())


def reference(weight: SparseWeight, x: Tensor, bias: Tensor, factor: Tensor, whole: bool) -> tuple[Tensor, ...]:
    """y and the derivatives of Σ factor · y by values, x and bias; or, not `whole`, those of absolute values: sizes."""
    given = [each.detach().double() for each in (weight.values, x, bias, factor)]
    values, x, bias, factor = given if whole else [each.abs() for each in given]
    leaves = (values.requires_grad_(), x.requires_grad_(), bias.requires_grad_())
    y = dense_product(weight, values, x)
    y = y + bias.reshape(*weight.out_shape, *[1] * (y.dim() - 1 - bias.dim()))
    found = torch.autograd.grad((y * factor).sum(), leaves, materialize_grads=True)
    return y.detach(), *found


def check_product(weight: SparseWeight, x: Tensor, backend: str, biased: bool) -> None:
    """With a bias, or with none, which is one of zeros."""
    bias = (biased * torch.randn(weight.out_shape, dtype=torch.float64)).to(weight.values.dtype).requires_grad_()
    y = contract(weight, x, backend, bias=bias if biased else None)
    assert y.dtype == x.dtype
    factor = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    leaves = (weight.values, x, bias) if biased else (weight.values, x)
    found = torch.autograd.grad(y, leaves, factor, materialize_grads=True)
    terms = 2 * (weight.entries + y.numel() + x.numel() // max(1, math.prod(weight.in_shape)))
    wanted, sizes = (reference(weight, x, bias, factor, whole)[: 1 + len(leaves)] for whole in (True, False))
    narrow = max((weight.values.dtype, x.dtype), key=lambda t: torch.finfo(t).eps)
    for one, other, size in zip((y.detach(), *found), wanted, sizes, strict=True):
        close(one.to(narrow), other, size, terms)


@fuzz(
    2500, seed=SEEDS, out_shape=shapes(), in_shape=shapes(), n=ENTRIES, kind=KINDS, b=BATCHES, extra=EXTRA,
    types=st.tuples(DTYPES, DTYPES), layout=LAYOUTS, backend=BACKENDS, how=each_path,
    own=st.booleans(), biased=st.booleans(),
)  # fmt: skip
def test_products(
    seed: int, out_shape: Shape, in_shape: Shape, n: int, kind: str, b: int, extra: Shape,
    types: tuple[torch.dtype, torch.dtype], layout: str, backend: str, how: str, own: bool, biased: bool,
) -> None:  # fmt: skip
    """Of one weight for all, or one for each instance."""
    weight = weight_of(out_shape, in_shape, n, kind, b if own else None, types[0])
    x = laid_out(torch.randn(b, *in_shape, *extra, dtype=torch.float64).to(types[1]), layout).requires_grad_()
    with path(how):
        check_product(weight, x, backend, biased)


@fuzz(
    300, seed=SEEDS, out_shape=shapes(2), in_shape=shapes(2), n=ENTRIES, b=BATCHES, dtype=FULL, backend=BACKENDS
)
def test_candidates_receive_the_dense_gradient(
    seed: int, out_shape: Shape, in_shape: Shape, n: int, b: int, dtype: torch.dtype, backend: str
) -> None:
    plain = weight_of(out_shape, in_shape, n, "random", None, dtype, learns=False).coalesce()
    candidate = torch.randn(plain.shape, dtype=dtype, requires_grad=True)
    weight = SparseWeight(plain.indices, plain.values, out_shape, in_shape, candidate=candidate)
    x = torch.randn(b, *in_shape, dtype=dtype, requires_grad=True)
    y = contract(weight, x, backend)
    wanted = problems.matmul(plain.to_dense(), x, len(out_shape))
    assert torch.allclose(y, wanted, rtol=1e-4, atol=1e-5)
    factor = torch.randn_like(wanted)
    found = torch.autograd.grad(y, (candidate, x), factor, materialize_grads=True)
    whole = torch.tensordot(factor, x.detach(), dims=([0], [0]))
    back = torch.autograd.grad(wanted, x, factor, materialize_grads=True)[0]
    assert torch.allclose(found[0], whole, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found[1], back, rtol=1e-4, atol=1e-5)


@fuzz(700, seed=SEEDS, out_shape=shapes(), in_shape=shapes(), n=ENTRIES, kind=KINDS, dtype=FULL, how=each_path)
def test_what_a_weight_is_turned_into(
    seed: int, out_shape: Shape, in_shape: Shape, n: int, kind: str, dtype: torch.dtype, how: str
) -> None:
    weight = weight_of(out_shape, in_shape, n, kind, None, dtype, learns=False).check()
    dense = torch.zeros(weight.shape, dtype=dtype).index_put(tuple(weight.indices.unbind(-1)), weight.values, True)
    r = len(out_shape)

    def same(one: Tensor, other: Tensor = dense) -> bool:
        return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)

    with path(how):
        whole = weight.coalesce()
        assert same(weight.to_dense()) and same(whole.to_dense())
        assert whole.entries == len({tuple(row) for row in weight.indices.tolist()})
        assert same(weight.to_coo().to_dense()) and same(weight.to_csr().to_dense(), dense.reshape(weight.matrix_shape))
        assert same(torch.from_numpy(weight.to_scipy().toarray()), dense.reshape(weight.matrix_shape))
        assert same(weight.transpose().to_dense(), dense.movedim(list(range(r)), list(range(-r, 0))))
        stop = int(torch.randint(1, out_shape[0] + 1, ()))
        assert same(weight.rows(slice(0, stop)).to_dense(), dense[:stop])
        assert same(SparseWeight.from_dense(dense, r).to_dense())
        pattern = weight.pattern
        assert torch.equal(pattern.arrange(weight.row_ids.to(dtype)), pattern.row.to(dtype))
        crow, col, order = pattern.transposed
        assert torch.equal(pattern.col[order.long()].sort(stable=True).values, pattern.col[order.long()])
        assert torch.equal(pattern.row[order.long()], col) and int(crow[-1]) == n


@fuzz(500, seed=SEEDS, shape=shapes(3, 5, 2), n=st.integers(1, 9), b=st.sampled_from([None, 1, 3]),
      index=st.one_of(st.sampled_from(EXTREMES), st.integers(-7, 12)))  # fmt: skip
def test_check_refuses_positions_outside_and_no_others(
    seed: int, shape: Shape, n: int, b: int | None, index: int
) -> None:
    lead = (n,) if b is None else (b, n)
    indices = indices_in(shape, lead)
    column = int(torch.randint(0, len(shape), ()))
    indices.view(-1, len(shape))[int(torch.randint(0, math.prod(lead), ())), column] = index
    weight = SparseWeight(indices, torch.randn(lead), shape[:1], shape[1:])
    if 0 <= index < shape[column]:
        assert weight.check() is weight
    else:
        with pytest.raises(UserError, match="expected 0 <= index < size"):
            weight.check()


WRONG = {
    "another rank": lambda i, v: (i[..., :-1], v),
    "one more value": lambda i, v: (i, torch.cat([v, v[..., :1]], -1)),
    "three dimensions": lambda i, v: (i[None, None], v[None, None]),
    "int32": lambda i, v: (i.int(), v),
    "indices that are no integers": lambda i, v: (i.double(), v),
    "values that are integers": lambda i, v: (i, v.long()),
    "complex values": lambda i, v: (i, v.to(torch.complex64)),
    "boolean indices": lambda i, v: (i.bool(), v),
}


@fuzz(200, seed=SEEDS, shape=shapes(3, 5, 2), n=st.integers(1, 5), wrong=st.sampled_from(sorted(WRONG)))
def test_parts_that_do_not_fit_are_refused(seed: int, shape: Shape, n: int, wrong: str) -> None:
    indices, values = WRONG[wrong](indices_in(shape, (n,)), torch.randn(n))
    with pytest.raises(UserError, match="expected"):
        SparseWeight(indices, values, shape[:1], shape[1:])


@fuzz(400, seed=SEEDS, in_shape=shapes(3, 4), given_shape=st.lists(st.integers(0, 4), max_size=5).map(tuple),
      b=st.sampled_from([None, 2]), backend=BACKENDS, kind=st.sampled_from(["float", "int", "complex"]))  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(
    seed: int, in_shape: Shape, given_shape: Shape, b: int | None, backend: str, kind: str
) -> None:
    weight = weight_of((3,), in_shape, 6, "random", b, torch.float32)
    x = torch.randn(given_shape)
    fits = given_shape[1 : 1 + len(in_shape)] == in_shape and (b is None or given_shape[0] == b)
    if kind != "float":
        x, fits = (x.long() if kind == "int" else x.to(torch.complex64)), False
    if fits:
        assert contract(weight, x, backend).shape == (given_shape[0], 3, *given_shape[1 + len(in_shape) :])
    else:
        with pytest.raises(UserError, match="expected"):
            contract(weight, x, backend)


@fuzz(100, out_shape=shapes(2, 4), bias=st.lists(st.integers(0, 4), max_size=3).map(tuple), backend=BACKENDS,
      b=st.sampled_from([None, 2]))  # fmt: skip
def test_biases_that_do_not_fit_are_refused(out_shape: Shape, bias: Shape, backend: str, b: int | None) -> None:
    weight, x = weight_of(out_shape, (3,), 4, "random", b, torch.float32), torch.randn(2, 3)
    if bias == out_shape:
        assert contract(weight, x, backend, bias=torch.ones(bias)).shape == (2, *out_shape)
    else:
        with pytest.raises(UserError, match="expected"):
            contract(weight, x, backend, bias=torch.ones(bias))
