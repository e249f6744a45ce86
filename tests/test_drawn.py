"""Weights per instance that are drawn on the way, against their own points and weights, stored."""

from __future__ import annotations

import math
from typing import Any

import problems
import pytest
import torch
from draws import B, each_case, inputs, make, stored
from torch.autograd import gradcheck

from ash import Context, Sampling, SourceBeforeTarget, contract, jit
from ash.drawn import DrawnWeight
from ash.jit.tuples import quantiles
from ash.kernels import get_kernel

pytestmark = pytest.mark.skipif(not jit.available(), reason="numba is not installed")


@pytest.fixture(autouse=True)
def _at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "LEAST_POINTS", 0)
    monkeypatch.setattr(jit, "PIECE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@each_case
@pytest.mark.parametrize("extra", [(), (2, 3)], ids=["", "channels"])
def test_product_and_gradients_are_those_of_the_stored_weight(case: dict[str, Any], extra: tuple[int, ...]) -> None:
    draw, learned = make(**case)
    weight = draw(learned)
    assert isinstance(weight, DrawnWeight)
    x = inputs(weight, extra)
    y, wanted = contract(weight, x), contract(stored(weight), x)
    assert torch.allclose(y, wanted)
    g = torch.randn_like(y)
    found, due = (torch.autograd.grad(each, (x, *learned), g, retain_graph=True) for each in (y, wanted))
    for one, other in zip(found, due, strict=True):
        assert torch.allclose(one, other)


@each_case
def test_the_weight_is_that_of_the_whole_table(case: dict[str, Any]) -> None:
    """Every tuple's value is spread over its own points, each counted once, and none of it is lost."""
    draw, (means, scales, values) = make(**case)
    weight = draw((means, scales, values))
    assert weight is not None
    weight.check()
    k = values.shape[1]
    points = weight.indices.unflatten(1, (k, -1))[..., list(weight.template.learned)].flatten(0, 1)
    alive = torch.tensor([problems.first_copies([tuple(p) for p in some]) for some in points.tolist()])
    tuples = (part.detach().flatten(0, 1).unsqueeze(1) for part in (means, scales, values))
    nu = {"gaussian": None, "student_t(2.5)": 2.5}.get(case.get("kernel", ""), 1.0)
    expected = problems.point_weights(points, alive, *tuples, nu)
    assert torch.allclose(weight.values.reshape(expected.shape), expected)
    assert torch.allclose(weight.values.sum(1), values.sum(1))


def test_gradients_by_differences() -> None:
    draw, learned = make(k=4, b=B)
    x = inputs(draw(learned))  # type: ignore[arg-type]
    assert gradcheck(lambda *parts: contract(draw(parts[1:]), parts[0]), (x, *learned))  # type: ignore[arg-type]


def test_a_gradient_of_the_input_has_derivatives() -> None:
    """A penalty on the gradient by x reaches the values and x by way of the stored weight."""
    draw, learned = make()
    weight = draw(learned)
    assert weight is not None
    x = inputs(weight)
    found = []
    for each in (weight, stored(weight)):
        slope = torch.autograd.grad(contract(each, x).square().sum(), x, create_graph=True)[0]
        found.append(torch.autograd.grad(slope.square().sum(), (x, *learned)))
    assert all(torch.allclose(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_of_less_precision(dtype: torch.dtype) -> None:
    draw, learned = make(dtype=torch.float32)
    weight = draw(learned)
    assert weight is not None
    x = inputs(weight, dtype=dtype)
    y = contract(weight, x)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == dtype  # type: ignore[union-attr]
    atol = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(y.float(), contract(weight, x.float(), "dense"), atol=atol)


def test_a_view_of_the_input() -> None:
    draw, learned = make()
    weight = draw(learned)
    assert weight is not None
    x = torch.randn(6, B, dtype=torch.float64).t()
    assert not x.is_contiguous()
    assert torch.allclose(contract(weight, x), contract(weight, x, "dense"))


def test_an_empty_batch() -> None:
    draw, learned = make(b=0)
    assert draw(learned) is None or contract(draw(learned), torch.zeros(0, 6)).shape == (0, 5)  # type: ignore[arg-type]


def test_the_draw_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, learned = make(k=300)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        weight = draw(learned)
        assert weight is not None
        found.append((weight.indices, contract(weight, torch.ones(B, 6, dtype=torch.float64))))
    assert all(torch.equal(found[0][0], indices) and torch.allclose(found[0][1], y) for indices, y in found)


def test_nothing_is_stored_until_it_is_asked_for() -> None:
    draw, learned = make()
    weight = draw(learned)
    assert weight is not None
    contract(weight, inputs(weight)).sum().backward()
    assert not {"indices", "values"} & vars(weight).keys()
    assert weight.per_instance
    assert "DrawnWeight" in repr(weight)
    assert weight.transpose().indices.shape == weight.indices.shape


@pytest.mark.parametrize(
    "options",
    [
        {"context": Context("all")},
        {"admissible": SourceBeforeTarget(6), "out": (6,)},
        {"sampling": Sampling(global_samples=40)},
        {"kernel": type("Own", (type(get_kernel("gaussian")),), {})()},
        {"out": (1 << 25,)},
    ],
    ids=["context", "admissible", "many points", "kernel", "size"],
)
def test_where_it_is_not_to_be_had(options: dict[str, Any]) -> None:
    draw, learned = make(**options)
    assert draw(learned) is None


def test_it_is_left_to_torch_where_kernels_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, learned = make()
    monkeypatch.setattr(jit, "LEAST_POINTS", 1 << 30)
    assert draw(learned) is None
    monkeypatch.setattr(jit, "LEAST_POINTS", 0)
    monkeypatch.setattr(jit, "available", lambda: False)
    assert draw(learned) is None
    monkeypatch.undo()
    monkeypatch.setattr(jit, "enabled", False)
    assert draw(learned) is None


def test_quantiles_are_those_of_a_normal_distribution_of_variance_one() -> None:
    knots = quantiles()
    low, high = knots[:-1], knots[1:]
    assert math.isclose(float(((low**2 + low * high + high**2) / 3).mean()), 1.0, rel_tol=1e-12)
    assert 3.6 < float(knots[-1]) < 3.7
    assert torch.equal(knots, -knots.flip(0))
    assert torch.allclose(torch.special.ndtr(knots[1:-1]), torch.arange(1, len(low)).double() / len(low))


@pytest.mark.parametrize("extra", [(), (2, 3)], ids=["", "channels"])
def test_an_input_that_wants_no_gradient_gets_none_and_changes_none(extra: tuple[int, ...]) -> None:
    draw, learned = make()
    weight = draw(learned)
    assert weight is not None
    x = inputs(weight, extra)
    g = torch.randn_like(contract(weight, x))
    due = torch.autograd.grad(contract(weight, x), learned, g, retain_graph=True)
    found = torch.autograd.grad(contract(weight, x.detach()), learned, g)
    assert all(torch.equal(one, other) for one, other in zip(found, due, strict=True))
