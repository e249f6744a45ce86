"""A weight whose entries are a selection of a dense candidate tensor: to, but not through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ash import SparseWeight, UserError, contract
from tests.problems import matmul

BACKENDS = ("auto", "dense", "torch")


def selection(candidate: Tensor, out_rank: int, k: int) -> SparseWeight:
    """The k largest entries of the candidate, as a top-k wiring hands them over."""
    ids = candidate.detach().abs().flatten().topk(k).indices
    indices = torch.stack(torch.unravel_index(ids, candidate.shape), -1)
    sizes = tuple(candidate.shape)
    values = candidate.flatten()[ids]
    return SparseWeight(indices, values, sizes[:out_rank], sizes[out_rank:], candidate=candidate)


def make(*sizes: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*sizes, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extra", [(), (2, 3)])
def test_gradients_by_a_candidate(backend: str, extra: tuple[int, ...]) -> None:
    """The input's gradient is that of the sparse weight, the candidate's that of the dense one."""
    candidate, x = make(3, 2, 2, 4), torch.randn(5, 2, 4, *extra, dtype=torch.float64, requires_grad=True)
    weight = selection(candidate, 2, 11)
    y = contract(weight, x, backend)
    sparse = weight.to_dense().detach().requires_grad_()
    other = x.detach().requires_grad_()
    expected = matmul(sparse, other, 2)
    assert torch.allclose(y, expected)
    g = torch.randn_like(y)
    (y * g).sum().backward()
    (expected * g).sum().backward()
    assert candidate.grad is not None and x.grad is not None
    assert torch.allclose(x.grad, other.grad)
    assert torch.allclose(candidate.grad, sparse.grad)
    assert (candidate.grad[sparse == 0] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_candidate_of_which_all_entries_are_in_use_is_dense(backend: str) -> None:
    candidate, x = make(3, 4), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def product(candidate: Tensor, x: Tensor) -> Tensor:
        return contract(selection(candidate, 1, 12), x, backend)

    assert torch.allclose(product(candidate, x), x @ candidate.t())
    assert torch.autograd.gradcheck(product, (candidate, x))


def test_no_entry_in_use() -> None:
    candidate, x = make(3, 4), torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    weight = replace(selection(candidate, 1, 12), indices=torch.zeros(0, 2, dtype=torch.int64), values=x.new_zeros(0))
    y = contract(weight, x)
    assert torch.equal(y, torch.zeros(2, 3, dtype=torch.float64))
    y.sum().backward()
    assert torch.equal(candidate.grad, torch.full((3, 4), 2.0, dtype=torch.float64))
    assert torch.equal(x.grad, torch.zeros(2, 4, dtype=torch.float64))


def test_the_tensor_itself_hands_its_gradient_to_the_candidate() -> None:
    candidate = make(4, 3)
    weight = selection(candidate, 1, 5)
    dense = weight.to_dense()
    assert (dense != 0).sum() == 5
    g = torch.randn(4, 3, dtype=torch.float64)
    (dense * g).sum().backward()
    assert torch.equal(candidate.grad, g)


def test_rows_and_transpose_keep_the_candidate() -> None:
    candidate = make(4, 2, 3)
    weight = selection(candidate, 1, 9)
    turned, some = weight.transpose(), weight.rows(slice(1, 3))
    assert torch.equal(turned.to_dense(), weight.to_dense().movedim(0, -1))
    assert torch.equal(some.to_dense(), weight.to_dense()[1:3])
    turned.to_dense().sum().backward()
    some.to_dense().sum().backward()
    expected = torch.ones(4, 2, 3, dtype=torch.float64)
    expected[1:3] += 1
    assert torch.equal(candidate.grad, expected)


def test_a_candidate_of_another_shape() -> None:
    weight = selection(make(4, 3), 1, 5)
    with pytest.raises(UserError, match=r"a candidate tensor for a weight of shape \(4, 3\)"):
        replace(weight, candidate=torch.zeros(3, 4))
    with pytest.raises(UserError, match="weight per instance"):
        SparseWeight(torch.zeros(2, 1, 2, dtype=torch.int64), torch.ones(2, 1), (4,), (3,), candidate=torch.zeros(4, 3))
