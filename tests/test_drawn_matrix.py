"""Shared weights that are drawn into their CSR arrays, against their own points and weights, stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draws import B, each_case, inputs, make, stored
from torch import Tensor
from torch.autograd import gradcheck

from ash import GaussianWiring, Sampling, SparseLinear, SparseWeight, Template, contract, jit
from ash.backends import compiled
from ash.drawn import DrawnMatrix
from ash.pattern import pointers

pytestmark = pytest.mark.skipif(not jit.available(), reason="numba is not installed")
N, K = 12, 30


@pytest.fixture(autouse=True)
def _at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "LEAST_POINTS", 0)
    monkeypatch.setattr(jit, "PIECE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def drawn(**case: Any) -> tuple[DrawnMatrix, tuple[Tensor, ...]]:
    draw, learned = make(b=None, **case)
    weight = draw(learned)
    assert isinstance(weight, DrawnMatrix)
    return weight, learned


@each_case
@pytest.mark.parametrize("extra", [(), (2, 3)], ids=["", "channels"])
def test_product_and_gradients_are_those_of_the_stored_weight(case: dict[str, Any], extra: tuple[int, ...]) -> None:
    weight, learned = drawn(**case)
    x = inputs(weight, extra)
    y, wanted = (contract(each, x, "torch") for each in (weight, stored(weight)))
    assert torch.allclose(y, wanted)
    g = torch.randn_like(y)
    found, due = (torch.autograd.grad(each, (x, *learned), g, retain_graph=True) for each in (y, wanted))
    assert all(torch.allclose(one, other) for one, other in zip(found, due, strict=True))


@each_case
def test_the_arrays_are_the_points_sorted_stably_by_row(case: dict[str, Any]) -> None:
    weight, _ = drawn(**case)
    pattern = weight.pattern
    order = torch.sort(weight.row_ids, stable=True).indices
    assert torch.equal(pattern.crow, pointers(weight.row_ids, weight.matrix_shape[0]).int())
    assert torch.equal(pattern.col, weight.col_ids[order].int())
    assert torch.allclose(weight.arranged(), weight.values[order])
    assert torch.equal(order if pattern.order is None else pattern.order, order)
    assert torch.equal(pattern.arrange(weight.col_ids.double()), pattern.col.double())
    assert weight.entries == pattern.nnz == len(weight.values)


@pytest.mark.parametrize("ids", [[0, 0, 1, 4], [4, 0, 1, 1]], ids=["in order", "in any order"])
def test_tuples_that_come_row_by_row_stay_where_they_are(ids: list[int]) -> None:
    template = Template(2, [0], torch.tensor(ids).unsqueeze(-1))
    weight, _ = drawn(template=template, k=4, sampling=Sampling(local_samples=0))
    assert (weight.pattern.order is None) == (ids == sorted(ids))
    assert weight.pattern.crow.tolist() == [4 * sum(i < row for i in ids) for row in range(6)]


def test_gradients_by_differences() -> None:
    draw, learned = make(k=4, b=None)
    assert gradcheck(lambda *parts: draw(parts).arranged(), learned)  # type: ignore[arg-type]


def test_a_gradient_of_the_input_has_derivatives() -> None:
    weight, learned = drawn()
    x = inputs(weight)
    found = []
    for each in (weight, stored(weight)):
        slope = torch.autograd.grad(contract(each, x, "torch").square().sum(), x, create_graph=True)[0]
        found.append(torch.autograd.grad(slope.square().sum(), (x, *learned)))
    assert all(torch.allclose(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("template", [None, Template.per_output((5,), (6,), 60)], ids=["free", "outputs fixed"])
def test_the_draw_does_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, template: Template | None
) -> None:
    draw, learned = make(k=300, b=None, template=template)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        weight = draw(learned)
        arrays = weight.arranged(), weight.pattern.crow, weight.pattern.col
        found.append((*arrays, *torch.autograd.grad(arrays[0].square().sum(), learned)))
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))


def test_nothing_is_stored_by_tuples_until_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LEAST_WORK", 0)
    weight, _ = drawn()
    x = torch.randn(compiled.LEAST_BATCH, 6, dtype=torch.float64, requires_grad=True)
    y = contract(weight, x, "torch")
    y.sum().backward()
    assert not {"indices", "values"} & vars(weight).keys()
    assert not weight.per_instance
    assert "DrawnMatrix" in repr(weight)
    assert torch.allclose(y, contract(weight, x, "dense"))


def test_what_other_hosts_make_of_it() -> None:
    weight, learned = drawn(columns=2)
    plain = stored(weight)
    for one, other in (
        (weight.transpose().to_dense(), plain.to_dense().t()),
        (weight.coalesce().to_dense(), plain.to_dense()),
        (weight.rows(slice(1, 4)).to_dense(), plain.to_dense()[1:4]),
        (weight.to_csr().to_dense(), plain.to_dense()),
        (weight.instance(0).to_dense(), plain.to_dense()),
    ):
        assert torch.allclose(one, other)
    assert torch.autograd.grad(weight.to_dense().square().sum(), learned[2])[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_of_less_precision(dtype: torch.dtype) -> None:
    weight, learned = drawn(dtype=dtype)
    x = inputs(weight, dtype=torch.float32)
    contract(weight, x, "torch").sum().backward()
    assert weight.arranged().dtype == weight.values.dtype == dtype
    assert all(part.grad is not None and part.grad.dtype == dtype for part in learned)
    assert torch.allclose(contract(weight, x, "torch"), contract(weight, x, "dense"), atol=0.05)


def test_a_graph_that_is_kept_gives_the_same_again() -> None:
    weight, learned = drawn()
    loss = contract(weight, inputs(weight), "torch").square().sum()
    one, other = (torch.autograd.grad(loss, learned, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- in a free wiring -------------------------------------------------------------------------------


def free(**options: Any) -> GaussianWiring:
    return GaussianWiring(N, N, K, dtype=torch.float64, **options)


@pytest.mark.parametrize("options", [{}, {"template": Template.per_output((N,), (N,), 3), "scale_per_column": True}])
def test_a_free_wiring_draws_the_points_that_it_stores_elsewhere(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wiring = GaussianWiring(N, N, None if options else K, dtype=torch.float64, **options)
    found = []
    for freely in (True, False):
        monkeypatch.setattr(GaussianWiring, "_draws_freely", lambda self, freely=freely: freely)
        torch.manual_seed(3)
        weight = wiring()
        gradients = torch.autograd.grad(weight.values.pow(2).sum(), wiring.parameters())
        found.append((weight.indices, weight.values, *gradients))
        assert isinstance(weight, DrawnMatrix) == freely
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"sampling": Sampling(guided_samples=1)}, {"sampling": Sampling(kept_samples=1)}, {"context": "all"}],
    ids=["guided", "kept", "context"],
)
def test_where_the_points_have_to_be_looked_at(options: dict[str, Any]) -> None:
    assert type(free(**options)()) is SparseWeight


def test_a_subset_is_drawn_and_the_rest_rounded() -> None:
    wiring = free(subset=0.5)
    weight = wiring()
    assert weight.entries == K // 2 * 8 + K // 2
    loss = contract(weight, torch.randn(B, N, dtype=torch.float64), "torch").square().sum()
    grad = torch.autograd.grad(loss, wiring.values)[0]
    assert 0 < int((grad != 0).sum()) <= K // 2


def test_per_instance_draws_are_fused() -> None:
    wiring = free(per_instance=True)
    x = torch.randn(B, N, dtype=torch.float64)
    weight = wiring(x)
    y = contract(weight, x)
    assert "values" not in vars(weight)
    assert torch.allclose(y, contract(weight, x, "dense"))


def test_function_transforms_draw_in_torch() -> None:
    """A transform hides the memory of what it differentiates by, also where that is the scales alone."""
    layer = SparseLinear(N, N, False, wiring=free())
    x = torch.randn(B, N, dtype=torch.float64)

    def loss(log_scale: Tensor) -> Tensor:
        named = {"wiring.log_scale": log_scale}
        return torch.func.functional_call(layer, named, (x,)).square().sum()

    assert torch.func.grad(loss)(layer.wiring.log_scale.detach()).abs().sum() > 0
