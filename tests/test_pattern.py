"""Flattened positions and CSR structures, against numpy and scipy."""

import math

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from ash import UserError, jit, pattern
from ash.pattern import ArrangedPattern, CSRPattern, check_ravel, compress, ravel, unravel

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple)


@given(SHAPES, st.data())
def test_ravel_is_numpys(shape: tuple[int, ...], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 20))
    points = torch.stack([torch.randint(0, s, (n,)) for s in shape], -1)
    expected = np.ravel_multi_index(tuple(points.numpy().T), shape)
    assert ravel(points, shape).tolist() == expected.tolist()
    assert torch.equal(unravel(ravel(points, shape), shape), points)


@pytest.mark.parametrize("shape", [(2**31, 2**32 - 1), (2**62, 1, 1), (3, 5, 2**59), (10**6, 10**6, 10**6)])
def test_ravel_is_exact_up_to_the_end_of_int64(shape: tuple[int, ...]) -> None:
    check_ravel(shape)
    corners = torch.tensor([[0] * len(shape), [s - 1 for s in shape]])
    ids = ravel(corners, shape)
    assert ids.tolist() == [0, math.prod(shape) - 1]
    assert torch.equal(unravel(ids, shape), corners)


def test_ravel_of_any_leading_shape() -> None:
    points = torch.randint(0, 3, (4, 5, 2))
    assert ravel(points, (3, 3)).shape == (4, 5)
    assert unravel(ravel(points, (3, 3)), (3, 3)).shape == (4, 5, 2)
    assert unravel(torch.zeros(4, dtype=torch.int64), ()).shape == (4, 0)


def test_too_many_positions_are_refused() -> None:
    check_ravel((2**63 - 1,))
    with pytest.raises(UserError, match="expected at most 2\\^63 - 1"):
        check_ravel((2**32, 2**31))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40))
def test_the_structure_is_scipys(rows: int, cols: int, n: int) -> None:
    row, col = torch.randint(0, rows, (n,)), torch.randint(0, cols, (n,))
    values = torch.randn(n, dtype=torch.float64)
    found = CSRPattern(row, col, (rows, cols))
    matrix = scipy.sparse.csr_matrix((found.arrange(values), found.col, found.crow), shape=(rows, cols))
    expected = scipy.sparse.coo_matrix((values, (row, col)), shape=(rows, cols)).toarray()
    np.testing.assert_allclose(matrix.toarray(), expected)
    assert torch.equal(found.row.double(), found.arrange(row.double()))
    assert found.nnz == n


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40))
def test_the_transpose_is_the_transpose(rows: int, cols: int, n: int) -> None:
    found = CSRPattern(torch.randint(0, rows, (n,)), torch.randint(0, cols, (n,)), (rows, cols))
    values = torch.randn(n, dtype=torch.float64)
    crow, col, order = found.transposed
    straight = scipy.sparse.csr_matrix((values, found.col, found.crow), shape=(rows, cols))
    turned = scipy.sparse.csr_matrix((values[order], col, crow), shape=(cols, rows))
    np.testing.assert_allclose(turned.toarray(), straight.toarray().T)


def test_duplicates_stay_separate_and_in_order() -> None:
    found = CSRPattern(torch.tensor([1, 0, 1, 1]), torch.tensor([2, 1, 0, 2]), (2, 3))
    assert found.crow.tolist() == [0, 1, 4]
    assert found.col.tolist() == [1, 2, 0, 2]
    assert found.arrange(torch.tensor([10.0, 11.0, 12.0, 13.0])).tolist() == [11, 10, 12, 13]


def test_entries_given_row_by_row_stay_as_they_are() -> None:
    found = CSRPattern(torch.tensor([0, 0, 2]), torch.tensor([2, 1, 0]), (3, 3))
    values = torch.randn(3)
    assert found.arrange(values) is values
    assert found.crow.tolist() == [0, 2, 2, 3]
    assert found.col.tolist() == [2, 1, 0]


def test_index_type_is_int32_where_everything_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    row, col = torch.tensor([0, 4]), torch.tensor([2, 3])
    assert CSRPattern(row, col, (5, 4)).crow.dtype == torch.int32
    monkeypatch.setattr(pattern, "INT32_MAX", 4)
    wide = CSRPattern(row, col, (5, 4))
    assert [t.dtype for t in (wide.crow, wide.col, wide.row, *wide.transposed)] == [torch.int64] * 6


@pytest.mark.parametrize("small", [True, False])
def test_index_arrays_are_contiguous_whatever_they_are_made_of(monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    """Positions of a matrix are columns of its indices, and lie apart in memory."""
    if not small:
        monkeypatch.setattr(pattern, "INT32_MAX", 0)
    for indices in (torch.tensor([[0, 3], [1, 1], [2, 0]]), torch.tensor([[2, 3], [1, 1], [0, 0]])):
        rows, cols = ravel(indices[:, :1], (3,)), ravel(indices[:, 1:], (4,))
        found = CSRPattern(rows, cols, (3, 4))
        assert found.col.is_contiguous() and found.crow.is_contiguous() and found.row.is_contiguous()
        dense = torch.sparse_csr_tensor(found.crow, found.col, torch.ones(3), (3, 4)).to_dense()
        assert dense.nonzero().tolist() == sorted(indices.tolist())


def test_columns_of_more_positions_than_memory_holds() -> None:
    """Nothing is made that is as long as a matrix of 10^10 rows and columns."""
    rows, cols = torch.tensor([3, 10**10 - 1, 0]), torch.tensor([7, 10**9, 7])
    columns, order = CSRPattern(rows, cols, (10**10, 10**10)).columns
    assert columns.tolist() == [7, 7, 10**9]
    assert order.tolist() == [0, 2, 1]


@pytest.mark.skipif(not jit.available(), reason="numba is not installed")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@given(st.integers(1, 9), st.lists(st.integers(0, 8), min_size=1, max_size=40))
def test_counting_gives_the_order_of_a_stable_sort(dtype: torch.dtype, more: int, ids: list[int]) -> None:
    rows = torch.tensor(ids, dtype=dtype)
    count = max(ids) + more
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jit, "LEAST_POINTS", 0)
        order, ends = compress(rows, count)
        patched.setattr(jit, "enabled", False)
        sorted_order, sorted_ends = compress(rows, count)
    assert order.dtype == ends.dtype == sorted_ends.dtype == dtype
    assert order.tolist() == sorted_order.tolist()
    assert ends.tolist() == sorted_ends.tolist()


def test_a_pattern_of_known_arrays() -> None:
    """Entries (2, 0), (0, 1), (2, 3), (0, 0): row 0 holds the second and the fourth, row 2 the others."""
    crow, col, where = (torch.tensor(ids, dtype=torch.int32) for ids in ([0, 2, 2, 4], [1, 0, 0, 3], [2, 0, 3, 1]))
    known = ArrangedPattern(crow, col, where, (3, 4))
    made = CSRPattern(torch.tensor([2, 0, 2, 0]), torch.tensor([0, 1, 3, 0]), (3, 4))
    assert known.order is not None and known.order.tolist() == [1, 3, 0, 2]
    assert known.arrange(torch.arange(4.0)).tolist() == [1.0, 3.0, 0.0, 2.0]
    for name in ("crow", "col", "row"):
        assert torch.equal(getattr(known, name), getattr(made, name))
    for name in ("transposed", "columns"):
        pairs = zip(getattr(known, name), getattr(made, name), strict=True)
        assert all(one.tolist() == other.tolist() for one, other in pairs)
    assert ArrangedPattern(crow, col, None, (3, 4)).order is None
