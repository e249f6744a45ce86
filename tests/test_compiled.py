"""The compiled kernels against the dense product: odd batches, empty rows, duplicates, both index types."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ash import SparseWeight, contract
from ash.backends import compiled

pytestmark = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")

KINDS = [(torch.float64, torch.int32), (torch.float64, torch.int64), (torch.float32, torch.int32)]
each_kind = pytest.mark.parametrize(("dtype", "index"), KINDS, ids=str)
ROWS, COLUMNS, ENTRIES = 11, 13, 60


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def matrix(dtype: torch.dtype, index: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(values, crow, col, row): the first and the last rows are empty, one position stands twice."""
    row = torch.randint(2, ROWS - 2, (ENTRIES,)).sort().values
    row[1], col = row[0], torch.randint(COLUMNS, (ENTRIES,))
    col[1] = col[0]
    crow = torch.zeros(ROWS + 1, dtype=torch.int64)
    crow[1:] = row.bincount(minlength=ROWS).cumsum(0)
    return torch.randn(ENTRIES, dtype=dtype), crow.to(index), col.to(index), row


def dense(values: Tensor, row: Tensor, col: Tensor) -> Tensor:
    return values.new_zeros(ROWS, COLUMNS).index_put((row, col.long()), values, accumulate=True)


def products(b: int, dtype: torch.dtype, index: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Found and wanted results of the three operators, the first without a bias and with one."""
    values, crow, col, row = matrix(dtype, index)
    x, g = torch.randn(b, COLUMNS, dtype=dtype), torch.randn(b, ROWS, dtype=dtype)
    full = dense(values, row, col)
    return [
        (compiled.rows_matmul(values, crow, col, x), x @ full.t()),
        (compiled.rows_matmul(values, crow, col, x, None, None, None, values[:ROWS]), x @ full.t() + values[:ROWS]),
        (compiled.rows_matmul_back(values, crow, col, g, COLUMNS), g @ full),
        (compiled.rows_sddmm(g, x, crow, col), (g.t() @ x)[row, col.long()]),
    ]


@each_kind
@pytest.mark.parametrize("b", [0, 1, 7, 15, 16, 17, 31, 32, 33, 70, 129])
def test_batches_of_any_size(b: int, dtype: torch.dtype, index: torch.dtype) -> None:
    for found, wanted in products(b, dtype, index):
        assert found.shape == wanted.shape
        assert found.is_contiguous()
        assert torch.allclose(found, wanted, atol=1e-4 if dtype == torch.float32 else 1e-10)


def test_more_rows_and_columns_than_a_strip() -> None:
    n = 2500
    ids = torch.randperm(n)
    x = torch.randn(20, n, dtype=torch.float64)
    values = torch.randn(n, dtype=torch.float64)
    crow, col = torch.arange(n + 1, dtype=torch.int32), ids.int()
    assert torch.allclose(compiled.rows_matmul(values, crow, col, x), values * x[:, ids])
    back = torch.zeros_like(x).index_copy(1, ids, values * x)
    assert torch.allclose(compiled.rows_matmul_back(values, crow, col, x, n), back)
    assert torch.allclose(compiled.rows_sddmm(x, x, crow, col), (x * x[:, ids]).sum(0))


def test_no_entries() -> None:
    empty, crow, col = torch.zeros(0), torch.zeros(ROWS + 1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    x, g = torch.randn(3, COLUMNS), torch.randn(3, ROWS)
    assert compiled.rows_matmul(empty, crow, col, x).tolist() == [[0.0] * ROWS] * 3
    bias = torch.arange(ROWS).float()
    assert compiled.rows_matmul(empty, crow, col, x, None, None, None, bias).tolist() == [bias.tolist()] * 3
    assert compiled.rows_matmul_back(empty, crow, col, g, COLUMNS).tolist() == [[0.0] * COLUMNS] * 3
    assert compiled.rows_sddmm(g, x, crow, col).shape == (0,)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_kept(number: float) -> None:
    values, crow, col, row = matrix(torch.float64, torch.int32)
    x = torch.randn(17, COLUMNS, dtype=torch.float64)
    x[16, col[0]] = number
    y = compiled.rows_matmul(values, crow, col, x)
    assert not y[16, row[0]].isfinite()
    assert y[:16].isfinite().all()


@pytest.mark.parametrize("narrow", [False, True])
def test_rows_of_a_block_are_as_wide_as_batch_and_columns_allow(monkeypatch: pytest.MonkeyPatch, narrow: bool) -> None:
    """256 bytes or 128: 64 or 32 numbers in float32, 32 or 16 in float64."""
    if narrow:
        monkeypatch.setattr(compiled, "WIDE_BLOCK", 0)
    for dtype, b in ((torch.float32, 128), (torch.float64, 64)):
        parts, spaces = compiled._spaces(torch.zeros(b, COLUMNS, dtype=dtype), COLUMNS)
        assert spaces[0][0].shape == (COLUMNS, b // 4 if narrow else b // 2)
        assert parts == [(0, b // 2), (b // 2, b)]
        assert all(torch.allclose(found, wanted, atol=1e-4) for found, wanted in products(b, dtype, torch.int32))


def transpose(crow: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = col.long().argsort(stable=True)
    return torch.searchsorted(col[order], torch.arange(COLUMNS + 1)).int(), row[order].int(), order.int()


def test_derivatives_by_differences() -> None:
    values, crow, col, row = matrix(torch.float64, torch.int32)
    turned = transpose(crow, row, col)
    values, x, g = (
        leaf.requires_grad_() for leaf in (values, torch.randn(3, COLUMNS).double(), torch.randn(3, ROWS).double())
    )
    bias = torch.randn(ROWS).double().requires_grad_()
    for function, leaves in (
        (lambda v, x: compiled.rows_matmul(v, crow, col, x), (values, x)),
        (lambda v, x: compiled.rows_matmul(v, crow, col, x, *turned), (values, x)),
        (lambda v, x, b: compiled.rows_matmul(v, crow, col, x, *turned, b), (values, x, bias)),
        (lambda v, g: compiled.rows_matmul_back(v, crow, col, g, COLUMNS), (values, g)),
        (lambda g, x: compiled.rows_sddmm(g, x, crow, col), (g, x)),
    ):
        assert gradcheck(function, leaves)
        assert gradgradcheck(function, leaves)


def test_operators_are_well_made() -> None:
    values, crow, col, row = matrix(torch.float64, torch.int32)
    x = torch.randn(17, COLUMNS, dtype=torch.float64, requires_grad=True)
    g = torch.randn(17, ROWS, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    bias = torch.randn(ROWS, dtype=torch.float64, requires_grad=True)
    for operator, arguments in (
        (compiled.rows_matmul, (values, crow, col, x)),
        (compiled.rows_matmul, (values, crow, col, x, *transpose(crow, row, col))),
        (compiled.rows_matmul, (values, crow, col, x, None, None, None, bias)),
        (compiled.rows_matmul_back, (values, crow, col, g, COLUMNS)),
        (compiled.rows_sddmm, (g, x, crow, col)),
    ):
        assert set(torch.library.opcheck(operator.overload, arguments).values()) == {"SUCCESS"}


def test_where_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(64, 1000)
    assert compiled.serves(1_000_000, x)
    assert compiled.serves(1_000_000, x.double())
    assert not compiled.serves(10, x)
    assert not compiled.serves(10**6, x[:8])
    assert not compiled.serves(1_000_000, x.t())
    assert not compiled.serves(1_000_000, x.half())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert not compiled.serves(1_000_000, x)


def test_a_structure_that_serves_again_is_sorted_by_columns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LEAST_WORK", 0)
    indices, values = torch.randint(30, (200, 2)), torch.randn(200)
    weight, found = SparseWeight(indices, values, (30,), (30,)), []
    for i in range(3):
        x = torch.ones(20, 30).requires_grad_(i < 2)
        y = contract(weight, x, "torch")
        assert ("transposed" in vars(weight.pattern)) == (i > 0)
        if i < 2:
            found.append(torch.autograd.grad(y.sum(), x)[0])
    expected = torch.zeros(30).index_add(0, indices[:, 1], values).expand(20, 30)
    assert all(torch.allclose(each, expected, atol=1e-5) for each in found)


@pytest.mark.parametrize("without", ["switched off", "numba missing"])
def test_a_layer_takes_them_and_does_without(monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    """The transpose's structure is sorted only for the library's product."""
    monkeypatch.setattr(compiled, "LEAST_WORK", 0)
    indices, x = torch.randint(300, (5000, 2)), torch.randn(64, 300, requires_grad=True)
    fast, plain = (SparseWeight(indices, torch.ones(5000), (300,), (300,)) for _ in range(2))
    found = contract(fast, x)
    found.sum().backward()
    assert "transposed" not in vars(fast.pattern)
    if without == "switched off":
        monkeypatch.setattr(compiled, "enabled", False)
    else:
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.setattr(compiled, "available", lambda: False)
    assert torch.allclose(found, contract(plain, x), atol=1e-4)
    assert "transposed" in vars(plain.pattern)
