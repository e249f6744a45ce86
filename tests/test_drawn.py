"""Weights per instance that are drawn on the way, against their own points and weights, stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import problems
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ash import Context, Everything, IndexTuples, Sampling, SourceBeforeTarget, SparseWeight, Template, contract, jit
from ash.drawn import DrawnWeight, draw_weight
from ash.jit.tuples import quantiles
from ash.kernels import Kernel, get_kernel
from ash.sampling import generator_from

pytestmark = pytest.mark.skipif(not jit.available(), reason="numba is not installed")
CPU = torch.device("cpu")
B = 3
CASES: dict[str, dict[str, Any]] = {
    "a matrix": {},
    "a Gaussian": {"kernel": "gaussian"},
    "a general power": {"kernel": "student_t(2.5)"},
    "rank 4": {"out": (3, 4), "ins": (2, 5), "k": 7},
    "one column": {"out": (4,), "ins": (1,), "template": Template(2, [1], torch.zeros(6, 1).long()), "k": 6},
    "outputs fixed": {"out": (2, 3), "ins": (4, 5), "template": Template.per_output((2, 3), (4, 5), 2), "k": 12},
    "inputs fixed": {"template": Template.per_input((5,), (6,), 1), "k": 6},
    "sizes of one": {"out": (1, 3), "ins": (4, 1)},
    "more tuples than a block": {"k": 150},
    "a scale for each column": {"columns": 2},
    "windows": {"sampling": Sampling(local_samples=3, local_region=(2, 4))},
    "no corners": {"sampling": Sampling(corners=False, global_samples=3, guided_samples=2, kept_samples=1)},
    "large columns": {"out": (1 << 17,), "ins": (6,)},
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "LEAST_POINTS", 0)
    monkeypatch.setattr(jit, "PIECE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def make(
    out: tuple[int, ...] = (5,),
    ins: tuple[int, ...] = (6,),
    k: int = 9,
    template: Template | None = None,
    kernel: str | Kernel = "student_t",
    columns: int = 1,
    sampling: Sampling | None = None,
    dtype: torch.dtype = torch.float64,
    b: int = B,
    **options: Any,
) -> tuple[Callable[[tuple[Tensor, Tensor, Tensor]], DrawnWeight | None], tuple[Tensor, Tensor, Tensor]]:
    """(means, scales, values) → a draw, always the same; and such tuples, with gradients."""
    template = Template(len(out) + len(ins)) if template is None else template
    sizes = template.sizes((*out, *ins))
    means = torch.rand(b, k, len(sizes), dtype=torch.float64) * (torch.tensor(sizes, dtype=torch.float64) - 1)
    learned = (means.to(dtype), 0.5 + torch.rand(b, k, columns, dtype=dtype), torch.randn(b, k, dtype=dtype))
    anchors = means.round().long()
    fixed = template.indices if template.columns else torch.zeros(k, 0, dtype=torch.int64)

    def draw(parts: tuple[Tensor, Tensor, Tensor]) -> DrawnWeight | None:
        tuples = IndexTuples(anchors, parts[0] - anchors.to(dtype), *parts[1:])
        given: dict[str, Any] = {"context": Context("tuple"), "admissible": Everything((*out, *ins)), **options}
        return draw_weight(
            tuples, fixed, out, ins, sampling=sampling or Sampling(), kernel=get_kernel(kernel), template=template,
            generator=generator_from(5, CPU), **given,
        )  # fmt: skip

    for part in learned:
        part.requires_grad_()
    return draw, learned


def stored(weight: SparseWeight) -> SparseWeight:
    return SparseWeight(weight.indices, weight.values, weight.out_shape, weight.in_shape)


def inputs(weight: SparseWeight, extra: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, *weight.in_shape, *extra, dtype=dtype, requires_grad=True)


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
