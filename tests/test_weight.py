"""Sparse weights: every conversion against the dense tensor, values and gradients."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ash import SparseWeight, UserError
from ash.checks import BackendUnavailable

SHAPES = [((4,), (5,)), ((3, 2), (4,)), ((3,), (2, 2, 3)), ((1,), (1,)), ((2, 1), (1, 3))]


def draw(out_shape: tuple[int, ...], in_shape: tuple[int, ...], n: int = 9, b: int | None = None) -> SparseWeight:
    """Random entries; with so few positions some stand twice."""
    lead = (n,) if b is None else (b, n)
    indices = torch.stack([torch.randint(0, s, lead) for s in (*out_shape, *in_shape)], -1)
    return SparseWeight(indices, torch.randn(lead, dtype=torch.float64, requires_grad=True), out_shape, in_shape)


def plainly(weight: SparseWeight) -> Tensor:
    """The dense tensor, entry by entry."""
    if weight.per_instance:
        return torch.stack([plainly(weight.instance(i)) for i in range(len(weight.values))])
    dense = torch.zeros(weight.shape, dtype=weight.values.dtype)
    for index, value in zip(weight.indices.tolist(), weight.values.tolist(), strict=True):
        dense[tuple(index)] += value
    return dense


@pytest.mark.parametrize(("out_shape", "in_shape"), SHAPES)
@pytest.mark.parametrize("b", [None, 3])
@pytest.mark.parametrize("n", [0, 9])
def test_to_dense(out_shape: tuple[int, ...], in_shape: tuple[int, ...], b: int | None, n: int) -> None:
    weight = draw(out_shape, in_shape, n, b)
    assert torch.allclose(weight.to_dense(), plainly(weight))


def _matrix(weight: SparseWeight) -> Tensor:
    return weight.to_dense().reshape(weight.matrix_shape)


CONVERSIONS: dict[str, Callable[[SparseWeight], Tensor]] = {
    "coo": lambda w: w.to_coo().to_dense().reshape(w.matrix_shape),
    "csr": lambda w: w.to_csr().to_dense(),
    "scipy": lambda w: torch.from_numpy(w.to_scipy().toarray()),
    "coalesce": lambda w: _matrix(w.coalesce()),
    "transpose": lambda w: _matrix(w.transpose()).t(),
    "from_dense": lambda w: _matrix(SparseWeight.from_dense(w.to_dense(), len(w.out_shape))),
}


@pytest.mark.parametrize("name", CONVERSIONS)
@pytest.mark.parametrize(("out_shape", "in_shape"), SHAPES)
@pytest.mark.parametrize("n", [0, 9])
def test_conversions_mean_the_same_tensor(
    name: str, out_shape: tuple[int, ...], in_shape: tuple[int, ...], n: int
) -> None:
    weight = draw(out_shape, in_shape, n)
    assert torch.allclose(CONVERSIONS[name](weight), _matrix(weight))


@pytest.mark.parametrize("name", ["coo", "csr", "coalesce", "transpose", "from_dense"])
def test_gradients_pass_through_the_conversions(name: str) -> None:
    weight = draw((3, 2), (4,))
    factor = torch.randn(6, 4, dtype=torch.float64)
    expected = torch.autograd.grad((factor * _matrix(weight)).sum(), weight.values)[0]
    actual = torch.autograd.grad((factor * CONVERSIONS[name](weight)).sum(), weight.values)[0]
    assert torch.allclose(actual, expected)


@pytest.mark.torch_sparse
@pytest.mark.parametrize(("out_shape", "in_shape"), SHAPES)
def test_to_torch_sparse(out_shape: tuple[int, ...], in_shape: tuple[int, ...]) -> None:
    pytest.importorskip("torch_sparse", reason="torch-sparse is not installed", exc_type=ImportError)
    weight = draw(out_shape, in_shape)
    assert torch.allclose(weight.to_torch_sparse().to_dense(), _matrix(weight))


def test_to_torch_sparse_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_sparse", None)
    with pytest.raises(BackendUnavailable, match="pip install"):
        draw((3,), (3,)).to_torch_sparse()


def test_coo_of_a_weight_per_instance() -> None:
    weight = draw((3,), (2, 2), b=4)
    assert torch.allclose(weight.to_coo().to_dense(), weight.to_dense())


def test_coalesce_stores_every_position_once_in_order() -> None:
    whole = draw((2,), (3,), n=20).coalesce()
    flat = (whole.row_ids * 3 + whole.col_ids).tolist()
    assert flat == sorted(set(flat))


@pytest.mark.parametrize("block", [slice(0, 2), slice(1, None), slice(None), slice(3, 4)])
def test_rows_are_rows(block: slice) -> None:
    weight = draw((4, 2), (3,), n=12)
    assert torch.allclose(weight.rows(block).to_dense(), weight.to_dense()[block])


def test_instances() -> None:
    weight = draw((3,), (4,), b=2)
    for i in range(2):
        assert torch.allclose(weight.instance(i).to_dense(), weight.to_dense()[i])
    shared = draw((3,), (4,))
    assert shared.instance(7) is shared


def test_ids_and_shapes() -> None:
    weight = SparseWeight(torch.tensor([[1, 0, 2, 3]]), torch.ones(1), (2, 3), (4, 5))
    assert weight.shape == (2, 3, 4, 5)
    assert weight.matrix_shape == (6, 20)
    assert weight.row_ids.tolist() == [3]
    assert weight.col_ids.tolist() == [13]


def test_float16_values_keep_their_type() -> None:
    weight = SparseWeight(torch.tensor([[0, 1], [0, 1]]), torch.ones(2, dtype=torch.bfloat16), (2,), (2,))
    assert weight.to_dense().dtype == weight.coalesce().values.dtype == torch.bfloat16
    assert weight.to_dense()[0, 1] == 2


@pytest.mark.parametrize("way", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_copies(way: Callable[[SparseWeight], SparseWeight]) -> None:
    leaf = SparseWeight(torch.tensor([[0, 1]]), torch.ones(1), (2,), (2,))
    assert leaf.pattern.nnz == 1
    assert torch.equal(way(leaf).to_dense(), leaf.to_dense())


def test_check_finds_positions_outside() -> None:
    fine = draw((3,), (4,))
    assert fine.check() is fine
    with pytest.raises(UserError, match=r"entry \[3, 0\]"):
        SparseWeight(torch.tensor([[0, 0], [3, 0]]), torch.ones(2), (3,), (4,)).check()
    with pytest.raises(UserError, match=r"entry \[0, -1\]"):
        SparseWeight(torch.tensor([[[0, 0]], [[0, -1]]]), torch.ones(2, 1), (3,), (4,)).check()


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="rank 2; expected"):
        SparseWeight(torch.zeros(3, 3, dtype=torch.int64), torch.ones(3), (2,), (2,))
    with pytest.raises(UserError, match="expected"):
        SparseWeight(torch.zeros(2, 2, 3, 2, dtype=torch.int64), torch.ones(2, 2, 3), (2,), (2,))


@pytest.mark.usefixtures("unchecked")
def test_other_types_are_refused() -> None:
    for indices, values in ((torch.int32, torch.float32), (torch.float64, torch.float32), (torch.int64, torch.int64)):
        with pytest.raises(UserError, match="expected torch.int64, and floating-point numbers"):
            SparseWeight(torch.zeros(3, 2, dtype=indices), torch.ones(3, dtype=values), (2,), (2,))


def test_what_needs_a_shared_weight_says_so() -> None:
    weight = draw((3,), (4,), b=2)
    for use in (lambda: weight.coalesce(), lambda: weight.pattern, lambda: weight.rows(slice(1))):
        with pytest.raises(UserError, match="take one instance first"):
            use()


@pytest.mark.parametrize("block", [slice(0, 4, 2), slice(2, 2), slice(9, None)])
def test_slices_that_are_no_blocks_are_refused(block: slice) -> None:
    with pytest.raises(UserError, match="non-empty slice with step 1"):
        draw((4,), (3,)).rows(block)
