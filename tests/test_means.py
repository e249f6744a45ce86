"""Parametrisations of the means: places, bounds, precision."""

import pytest
import torch

from ash import UserError, jit
from ash.means import Anchored, get_means

NAMES = ["anchored", "direct", "sigmoid"]
each = pytest.mark.parametrize("name", NAMES)


def position(means: torch.nn.Module, scales: torch.Tensor) -> torch.Tensor:
    anchors, residuals = means(scales)
    return anchors.double() + residuals.detach().double()


@each
def test_tuples_come_where_they_are_placed(name: str) -> None:
    means = get_means(name)(4, (20, 300))
    where = torch.tensor([[0.0, 299.0], [7.25, 100.5], [19.0, 0.0]], dtype=torch.float64)
    means.place(torch.tensor([3, 0, 2]), where)
    found = position(means, torch.ones(4, 1))[[3, 0, 2]]
    assert torch.allclose(found, where, atol=0.04)  # a sigmoid reaches the ends at infinity only


@each
def test_means_stay_in_the_tensor(name: str) -> None:
    means, scales = get_means(name)(50, (7, 1)), torch.full((50, 1), 2.0)
    for _ in range(3):
        with torch.no_grad():
            means.offset.add_(torch.randn(50, 2) * 20)
        means.settle(scales)
        found = position(means, scales)
        assert ((found >= 0) & (found <= torch.tensor([6, 0]))).all()


@each
def test_settling_twice_is_settling_once(name: str) -> None:
    means, scales = get_means(name)(5, (40, 40)), torch.full((5, 1), 0.7)
    with torch.no_grad():
        means.offset.copy_(torch.rand(5, 2) * 9)
    means.settle(scales)
    before = position(means, scales)
    means.settle(scales)
    assert torch.equal(position(means, scales), before)


@each
def test_gradients_reach_the_parameter(name: str) -> None:
    means = get_means(name)(3, (9, 9))
    means.place(torch.arange(3), torch.full((3, 2), 4.2, dtype=torch.float64))
    means(torch.full((3, 1), 2.0))[1].sum().backward()
    assert means.offset.grad is not None
    assert (means.offset.grad > 0).all()


def test_an_anchored_mean_follows_its_offset_in_units_of_its_scale() -> None:
    means, scales = Anchored(2, (100,)), torch.tensor([[0.5], [8.0]])
    means.place(torch.arange(2), torch.tensor([[20.25], [50.0]], dtype=torch.float64))
    with torch.no_grad():
        means.offset.fill_(-0.5)
    expected = torch.tensor([[20.0], [46.0]], dtype=torch.float64)
    assert torch.equal(position(means, scales), expected)
    means.settle(scales)
    assert torch.equal(position(means, scales), expected)
    assert (means.offset == 0).all()
    assert means.fraction.abs().max() <= 0.5


def test_scales_get_no_gradient_through_the_means() -> None:
    means, scales = Anchored(1, (100,)), torch.ones(1, 1, requires_grad=True)
    with torch.no_grad():
        means.offset.fill_(2.0)
    assert torch.autograd.grad(means(scales)[1].sum(), scales, allow_unused=True) == (None,)


def test_an_anchored_mean_keeps_its_precision_far_out() -> None:
    size, scales = 2**40, torch.ones(1, 1)
    means = Anchored(1, (size,))
    means.place(torch.tensor([0]), torch.tensor([[size - 1000.25]], dtype=torch.float64))
    for _ in range(500):
        with torch.no_grad():
            means.offset.add_(1e-3)
        means.settle(scales)
    assert position(means, scales).item() == pytest.approx(size - 999.75, abs=1e-3)


def test_an_unknown_parametrisation() -> None:
    with pytest.raises(UserError, match="unknown parametrisation of means 'anchor'.*Did you mean 'anchored'"):
        get_means("anchor")


@pytest.mark.skipif(not jit.available(), reason="numba is not installed")
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_pass_settles_as_torch_does(
    dtype: torch.dtype, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle, beyond both ends, on the very ends, and where a half is rounded to even."""
    where = torch.tensor([[3.5, 17.0], [0.0, 40.0], [6.0, 0.4], [2.25, 39.75], [1.0, 20.0], [0.0, 40.0]])
    moves = torch.tensor([[1.0, -0.5], [-9.0, 30.0], [0.25, -0.4], [0.5, 0.5], [0.25, 0.75], [0.0, 0.0]])
    scales, found = torch.full((6, columns), 2.0, dtype=dtype), []
    for least in (0, 1 << 30):
        monkeypatch.setattr(jit, "LEAST_POINTS", least)
        means = Anchored(6, (7, 41), dtype=dtype)
        means.place(torch.arange(6), where.double())
        with torch.no_grad():
            means.offset.copy_(moves)
        versions = [tensor._version for tensor in (means.offset, means.anchor, means.fraction)]
        means.settle(scales)
        assert all(t._version > v for t, v in zip((means.offset, means.anchor, means.fraction), versions, strict=True))
        found.append((means.anchor, means.fraction, means.offset.detach()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[0][0].tolist() == [[6, 16], [0, 40], [6, 0], [3, 40], [1, 22], [0, 40]]
    assert not found[0][2].any()
