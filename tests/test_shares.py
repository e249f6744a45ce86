"""Streamed shares against the whole table, values and gradients."""

import itertools
from dataclasses import dataclass
from typing import Any

import problems
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ash import shares
from ash.kernels import Kernel, get_kernel
from ash.shares import point_weights

NU = {"gaussian": None, "student_t": 1.0, "student_t(3)": 3.0}
SHAPES = {"tuple": (4, 1, 5), "chunk": (2, 3, 12), "all": (1, 5, 20), "one point": (3, 1, 1)}


@dataclass
class Case:
    """One set of contexts: c contexts of t tuples that see p points each."""

    points: Tensor
    alive: Tensor
    anchors: Tensor
    residuals: Tensor
    scales: Tensor
    values: Tensor
    groups: tuple[Tensor, Tensor] | None
    extent: int

    def streamed(self, kernel: Kernel) -> Tensor:
        learned = (self.residuals, self.scales, self.values)
        return point_weights(kernel, self.points, self.alive, self.anchors, *learned, self.groups, self.extent)

    def reference(self, nu: float | None) -> Tensor:
        means = self.anchors.double() + self.residuals.double()
        return problems.point_weights(self.points, self.alive, means, self.scales, self.values, nu, self.groups)

    @property
    def learned(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.residuals, self.scales, self.values


def make(
    shape: tuple[int, int, int],
    q: int = 2,
    *,
    per_column: bool = False,
    dead: bool = False,
    grouped: bool = False,
    size: int = 9,
    spread: float = 3.0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Points within `spread` of the tuples; the first points of a context live and belong to all groups."""
    c, t, p = shape
    anchors = torch.randint(0, size, (c, 1, q)).expand(c, t, q) + torch.randint(-2, 3, (c, t, q))
    points = anchors[:, :1] + (torch.randn(c, p, q) * spread).round().long()
    scales = 0.5 + 2 * torch.rand(c, t, q if per_column else 1, dtype=dtype)
    groups = None
    if grouped:
        groups = torch.arange(p).remainder(2).expand(c, p), torch.arange(t).remainder(min(2, p)).expand(c, t)
    alive = torch.rand(c, p) > 0.4 if dead else torch.ones(c, p, dtype=torch.bool)
    alive[:, :2] = True
    return Case(
        points,
        alive,
        anchors,
        (torch.rand(c, t, q, dtype=dtype) - 0.5).requires_grad_(),
        scales.requires_grad_(),
        torch.randn(c, t, dtype=dtype).requires_grad_(),
        groups,
        size,
    )


OPTIONS = [
    dict(zip(("per_column", "dead", "grouped"), on, strict=True)) for on in itertools.product((False, True), repeat=3)
]


def describe(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    return "+".join(name for name, on in value.items() if on) or "plain"


@pytest.mark.parametrize("name", NU)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", OPTIONS, ids=describe)
@pytest.mark.parametrize("q", [0, 1, 2, 3])
def test_values_and_gradients_are_the_references(
    name: str, shape: tuple[int, int, int], options: dict[str, Any], q: int
) -> None:
    if q == 0 and options["per_column"]:
        options = {**options, "per_column": False}
    case = make(shape, q, **options)
    found, expected = case.streamed(get_kernel(name)), case.reference(NU[name])
    assert torch.allclose(found, expected)
    assert (found[~case.alive] == 0).all()
    factor = torch.randn_like(expected)
    actual = torch.autograd.grad((found * factor).sum(), case.learned)
    wanted = torch.autograd.grad((expected * factor).sum(), case.learned, materialize_grads=True)
    for one, other in zip(actual, wanted, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("name", NU)
@pytest.mark.parametrize("shape", [(2, 1, 4), (1, 3, 6)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=describe)
def test_gradcheck(name: str, shape: tuple[int, int, int], options: dict[str, Any]) -> None:
    case, kernel = make(shape, **options), get_kernel(name)

    def weights(residuals: Tensor, scales: Tensor, values: Tensor) -> Tensor:
        return Case(case.points, case.alive, case.anchors, residuals, scales, values, case.groups, 9).streamed(kernel)

    assert torch.autograd.gradcheck(weights, case.learned)


@pytest.mark.parametrize("block", [1, 7, 40])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_blocks_of_any_size_give_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], block: int
) -> None:
    case = make(shape, dead=True, grouped=True)
    whole = case.streamed(get_kernel("student_t"))
    gradients = torch.autograd.grad(whole.square().sum(), case.learned)
    monkeypatch.setattr(shares, "BLOCK", block)
    assert len(list(shares.blocks(*shape))) > 1 or block >= shape[0] * shape[1] * shape[2]
    parts = case.streamed(get_kernel("student_t"))
    assert torch.allclose(parts, whole)
    for one, other in zip(torch.autograd.grad(parts.square().sum(), case.learned), gradients, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("block", [1, 5, 16, 1000])
@pytest.mark.parametrize(
    "shape", [(3, 1, 4), (2, 5, 3), (1, 1, 1), (0, 1, 4), (3, 0, 4), (2, 3, 0), (7, 2, 2)], ids=str
)
def test_blocks_cover_the_table_once(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], block: int) -> None:
    monkeypatch.setattr(shares, "BLOCK", block)
    covered = torch.zeros(shape[:2])
    for c, t in shares.blocks(*shape):
        covered[c, t] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("name", NU)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("sigma", [1e-20, 1e-8, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("per_column", [False, True])
def test_no_scale_gives_a_nan(name: str, shape: tuple[int, int, int], sigma: float, per_column: bool) -> None:
    case = make(shape, per_column=per_column, spread=1e6, size=10**7, dtype=torch.float32)
    case.scales.data.fill_(sigma)
    weights = case.streamed(get_kernel(name))
    assert weights.isfinite().all()
    assert torch.allclose(weights.sum(-1), case.values.sum(-1), atol=1e-4)
    for gradient in torch.autograd.grad((weights * torch.randn_like(weights)).sum(), case.learned):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NU)
@pytest.mark.parametrize("t", [1, 2])
def test_no_nan_where_every_point_is_far(name: str, t: int) -> None:
    case = make((2, t, 4), 4, size=10**9, dtype=torch.float32)
    case.points[:] = case.anchors[:, :1] + 10**9 - torch.randint(0, 10**8, case.points.shape)
    case.scales.data.fill_(1e-20)
    weights = case.streamed(get_kernel(name))
    assert torch.allclose(weights.sum(-1), case.values.sum(-1), atol=1e-4)
    for gradient in torch.autograd.grad(weights.square().sum(), case.learned):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [100, shares.COARSE + 1, 10**7, shares.EXACT + 1, 10**9], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_keeps_its_precision_at_any_extent(size: int, shape: tuple[int, int, int]) -> None:
    c, t, p = shape
    anchors = torch.randint(0, size, (c, t, 2))
    points = torch.randint(0, size, (c, p, 2))
    for first, step in ((0, 0), (t, 1)):  # two points close to every tuple, between which its residual decides
        near = min(t, p - first)
        points[:, first : first + near] = anchors[:, :near] + step
    residuals = torch.rand(c, t, 2) - 0.5
    alive = torch.ones(c, p, dtype=torch.bool)
    leaves = (residuals, torch.full((c, t, 1), 0.7), torch.randn(c, t))
    case = Case(points, alive, anchors, *(leaf.requires_grad_() for leaf in leaves), None, size)
    found, expected = case.streamed(get_kernel("student_t")), case.reference(1.0)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-6)
    actual = torch.autograd.grad(found.square().sum(), case.learned)
    wanted = torch.autograd.grad(expected.square().sum(), case.learned)
    for one, other in zip(actual, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tells_far_points_apart(dtype: torch.dtype) -> None:
    points = torch.tensor([[[3000], [3001], [3002], [5000]]])
    case = Case(
        points,
        torch.ones(1, 4, dtype=torch.bool),
        torch.tensor([[[0], [3001]]]),
        torch.zeros(1, 2, 1, dtype=dtype),
        torch.full((1, 2, 1), 0.25, dtype=dtype),
        torch.tensor([[0.0, 1.0]], dtype=dtype),
        None,
        6000,
    )
    found = case.streamed(get_kernel("gaussian"))
    assert found.dtype == dtype
    assert found.argmax() == 1
    assert torch.allclose(found.double(), case.reference(None), atol=1e-2)


def test_autocast_conserves_the_values() -> None:
    case = make((1, 40, 60), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = case.streamed(get_kernel("student_t"))
    assert torch.equal(weights, case.streamed(get_kernel("student_t")))


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor):
                self.seen = max(self.seen, each.numel())
        return result


def largest_tensor() -> int:
    case = make((1, 200, 1600), dtype=torch.float32)
    with Largest() as largest:
        case.streamed(get_kernel("student_t")).sum().backward()
    return largest.seen


@pytest.mark.parametrize(("extent", "dtype"), [
    (100, torch.float32), (2**12, torch.float32), (2**24, torch.float32), (2**24 + 1, torch.float64),
])  # fmt: skip
def test_a_table_takes_the_narrowest_numbers_that_hold_its_positions(extent: int, dtype: torch.dtype) -> None:
    points, anchors = torch.randint(0, 9, (2, 5, 2)), torch.randint(0, 9, (2, 3, 2))
    residuals, scales, alive = torch.zeros(2, 3, 2), torch.ones(2, 3, 1), torch.ones(2, 5, dtype=torch.bool)
    table = shares._table(points, alive, anchors, residuals, scales, None, extent)
    assert table.points.dtype == table.anchors.dtype == table.inverse.dtype == dtype
    alone = shares._table(points, alive, anchors[:, :1], residuals[:, :1], scales[:, :1], None, extent)
    assert alone.points.dtype == torch.float32
    assert alone.residuals is None and (table.residuals is None) == (extent != 2**24)


def test_there_are_no_second_derivatives() -> None:
    case = make((1, 2, 5))
    first = torch.autograd.grad(case.streamed(get_kernel("gaussian")).square().sum(), case.learned, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(each.sum() for each in first).backward()


def test_the_table_is_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "BLOCK", 4096)
    assert largest_tensor() <= max(4096, 2 * 1600)
    monkeypatch.setattr(shares, "BLOCK", 10**9)
    assert largest_tensor() == 200 * 1600
