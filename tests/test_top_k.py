"""`TopKWiring`: the common suite, its closed forms, and small choices worked out by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ash import Anneal, Mask, SourceBeforeTarget, SparseLayer, SparseLinear, UserError, Wiring, contract, jit
from ash.wirings.choice import TopKBudget, equal_shares, largest, largest_per_group
from ash.wirings.top_k import TopKWiring
from tests.test_wirings import WiringSuite, pytest_generate_tests

__all__ = ["pytest_generate_tests"]

top_k = partial(TopKWiring, 6, 6, dtype=torch.float64)
UPPER = torch.triu(torch.ones(6, 6), 1).bool()

TOP_K: dict[str, Callable[[], Wiring]] = {
    "k": partial(top_k, 9),
    "admissible": partial(top_k, 10, admissible=SourceBeforeTarget(6)),
    "per output": partial(top_k, 13, per_output=True),
    "per output, admissible": partial(top_k, 9, per_output=True, admissible=SourceBeforeTarget(6)),
    "2 of 3": partial(top_k, n_of_m=(2, 3)),
    "no update": partial(top_k, 9, update=False),
    "schedule": partial(top_k, density=Anneal(1.0, 0.2, 100, "cubic")),
    "budget": lambda: top_k(budget=TopKBudget(0.3)),
    "rank 5": partial(TopKWiring, (2, 3), (2, 1, 4), 11, dtype=torch.float64),
    "one entry": partial(TopKWiring, 1, 1, 1, dtype=torch.float64),
}


class TestTopK(WiringSuite):
    variants = TOP_K

    def test_loading_a_dense_weight(self, make: Callable[[], Wiring]) -> None:
        """The candidates are the given weights, and the largest of them exist."""
        wiring = make().eval()
        dense = torch.randn(wiring.shape, dtype=torch.float64)
        wiring.load_dense(dense)
        weight = wiring()
        assert torch.equal(weight.values, dense[tuple(weight.indices.unbind(-1))])
        with pytest.raises(UserError, match="expected"):
            wiring.load_dense(dense.unsqueeze(0))


class TestTargetedDropout(TestTopK):
    variants = {
        "layer": partial(top_k, 9, dropout=0.5),
        "per output": partial(top_k, 12, dropout=0.3, per_output=True),
        "admissible": partial(top_k, 5, dropout=0.9, admissible=SourceBeforeTarget(6)),
    }

    def test_the_sum_of_the_values_is_conserved(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        assert torch.allclose(wiring().to_dense().sum(), wiring.values.sum())


def by_hand(**options: Any) -> TopKWiring:
    """2 x 4 candidates 1 −8 3 0 / −2 7 −4 5."""
    wiring = TopKWiring(2, 4, **options)
    wiring.load_dense(torch.tensor([[1.0, -8, 3, 0], [-2, 7, -4, 5]]))
    return wiring


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 3}, [[0.0, -8, 0, 0], [0, 7, 0, 5]]),
        ({"density": 0.5}, [[0.0, -8, 0, 0], [0, 7, -4, 5]]),
        ({"k": 4, "per_output": True}, [[0.0, -8, 3, 0], [0, 7, 0, 5]]),
        ({"k": 5, "per_output": True}, [[1.0, -8, 3, 0], [0, 7, 0, 5]]),
        ({"n_of_m": (1, 2)}, [[0.0, -8, 3, 0], [0, 7, 0, 5]]),
        ({"n_of_m": (3, 4)}, [[1.0, -8, 3, 0], [0, 7, -4, 5]]),
        ({"k": 2, "admissible": Mask(torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0]]))}, [[0.0, 0, 3, 0], [-2, 0, 0, 0]]),
        (
            {"k": 4, "per_output": True, "admissible": Mask(torch.tensor([[1, 1, 1, 1], [0, 0, 1, 0]]))},
            [[1.0, -8, 3, 0], [0, 0, -4, 0]],
        ),
        (
            {"n_of_m": (1, 2), "admissible": Mask(torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1]]))},
            [[0.0, 0, 3, 0], [-2, 0, 0, 5]],
        ),
    ],
)  # fmt: skip
def test_choices_by_hand(options: dict[str, Any], expected: list[list[float]]) -> None:
    wiring = by_hand(**options)
    assert wiring().to_dense().tolist() == expected
    assert wiring.eval()().to_dense().tolist() == expected
    assert wiring.stored_entries() == sum(value != 0 for row in expected for value in row)


def test_a_candidate_that_grows_replaces_another() -> None:
    wiring = by_hand(k=2)
    assert wiring().indices.tolist() == [[0, 1], [1, 1]]
    with torch.no_grad():
        wiring.candidate[1, 0] = -9.0
    weight = wiring()
    assert weight.indices.tolist() == [[0, 1], [1, 0]]
    assert weight.pattern.col.tolist() == [1, 0]
    assert weight.values.tolist() == [-8, -9]


@pytest.fixture(params=[1 << 15, 0], ids=["plain", "compiled"])
def _paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "LEAST_POINTS", request.param)


@pytest.mark.usefixtures("_paths")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.data())
def test_the_largest_by_sorting(scores: list[int], data: st.DataObject) -> None:
    """Whatever the guess, and with ties: as many as asked for, of the scores that sorting gives, in order."""
    k = data.draw(st.integers(1, len(scores)))
    bar = data.draw(st.one_of(st.none(), st.floats(-5, 5)))
    score = torch.tensor(scores, dtype=torch.float64)
    places, border = largest(score, k, bar)
    assert score[places].sort().values.tolist() == sorted(scores)[-k:]
    assert border == sorted(scores)[-k]
    assert places.tolist() == sorted(set(places.tolist()))
    ties = (score == border).nonzero().squeeze(-1).tolist()
    assert [place for place in places.tolist() if place in ties] == ties[: len(set(places.tolist()) & set(ties))]


@pytest.mark.usefixtures("_paths")
def test_the_largest_of_many_step_by_step() -> None:
    """The bar of the last choice finds the next one, also where all scores have jumped below or above it."""
    score, bar = torch.rand(50_000, generator=torch.Generator().manual_seed(0)), None
    for factor in (1.0, 0.99, 1.01, 0.1, 30.0):
        score = score * factor
        places, border = largest(score, 700, bar)
        assert torch.equal(places, score.topk(700).indices.sort().values)
        bar = 0.97 * border


def test_the_largest_of_groups() -> None:
    score = torch.tensor([[3.0, 1, 2], [5, 6, 4]])
    assert largest_per_group(score, torch.tensor([1, 2])).tolist() == [0, 3, 4]
    assert largest_per_group(score, torch.tensor([0, 0])).tolist() == []
    assert equal_shares(7, torch.tensor([3, 3, 3])).tolist() == [3, 2, 2]
    assert equal_shares(7, torch.tensor([1, 9, 9])).tolist() == [1, 3, 3]


# --- closed forms ------------------------------------------------------------------------------------------


def gradients(layer: SparseLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output and the gradients by weight candidates and input, of a fixed function of the output."""
    x = x.clone().requires_grad_()
    y = layer(x)
    factor = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    weight, given = torch.autograd.grad((y.square() * factor).sum(), [layer.wiring.candidate, x])
    return y, weight, given


def dense_twin(layer: SparseLinear, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of `nn.Linear` with the given weight."""
    weight, x = weight.detach().clone().requires_grad_(), x.clone().requires_grad_()
    y = nn.functional.linear(x, weight, layer.bias)
    factor = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, *torch.autograd.grad((y.square() * factor).sum(), [weight, x])


@pytest.mark.parametrize("lead", [(), (5,), (2, 1, 3)])
def test_all_entries_are_the_dense_layer(lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = SparseLinear(7, 4, dtype=torch.float64, wiring=partial(TopKWiring, k=28))
    x = torch.randn(*lead, 7, dtype=torch.float64)
    for one, other in zip(gradients(layer, x), dense_twin(layer, layer.wiring.candidate, x), strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("lead", [(), (5,), (2, 1, 3)])
@pytest.mark.parametrize("backend", ["torch", "dense"])
def test_gradient_to_but_not_through(lead: tuple[int, ...], backend: str) -> None:
    """The weight's gradient is dense, given what comes from above; the input's is the sparse weight's."""
    torch.manual_seed(0)
    layer = SparseLinear(7, 4, dtype=torch.float64, wiring=partial(TopKWiring, k=6), backend=backend)
    x = torch.randn(*lead, 7, dtype=torch.float64)
    sparse = layer.wiring().to_dense()
    assert (sparse != 0).sum() == 6
    _, weight, given = found = gradients(layer, x)
    for one, other in zip(found, dense_twin(layer, sparse, x), strict=True):
        assert torch.allclose(one, other)
    assert (weight[sparse == 0] != 0).any()
    assert given.shape == x.shape


@pytest.mark.parametrize("extra", [(), (3,), (2, 2)])
def test_extra_dimensions(extra: tuple[int, ...]) -> None:
    layer = SparseLayer((2, 3), 4, wiring=partial(TopKWiring, k=5), dtype=torch.float64)
    x = torch.randn(3, 2, 3, *extra, dtype=torch.float64)
    y = layer(x).sub(layer.bias.reshape(4, *[1] * len(extra)))
    flat = x.flatten(1, 2).flatten(2) if extra else x.flatten(1, 2).unsqueeze(-1)
    expected = torch.einsum("oi,bie->boe", layer.wiring().to_dense().flatten(1), flat)
    assert torch.allclose(y.reshape(expected.shape), expected)
    g = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, layer.wiring.candidate, g)
    assert torch.allclose(gradient.flatten(1), torch.einsum("boe,bie->oi", g.reshape(expected.shape), flat))


def test_gradcheck_where_the_choice_does_not_change() -> None:
    wiring = TopKWiring(4, 3, 12, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def product(candidate: Tensor, x: Tensor) -> Tensor:
        weight = torch.func.functional_call(wiring, {"candidate": candidate})
        return contract(weight, x, "torch")

    assert torch.autograd.gradcheck(product, (wiring.candidate, x))


def test_without_update_gradient_reaches_the_entries_in_use_only() -> None:
    for options in ({"update": False}, {"dropout": 1.0}):
        wiring = by_hand(k=3, **options)
        contract(wiring(), torch.ones(1, 4)).sum().backward()
        assert wiring.candidate.grad.tolist() == [[0.0, 1, 0, 0], [0, 1, 0, 1]]


def test_inadmissible_candidates_stay_zero_and_get_no_gradient() -> None:
    usable = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    wiring = by_hand(k=2, admissible=Mask(usable))
    assert wiring.candidate.tolist() == [[0, -8, 3, 0], [-2, 7, -4, 0]]
    contract(wiring(), torch.ones(1, 4)).sum().backward()
    assert torch.equal(wiring.candidate.grad, usable.float())
    wiring.reset_parameters()
    assert torch.equal(wiring.candidate != 0, usable.bool())


# --- targeted dropout, frozen choices, schedules -------------------------------------------------------------


def test_targeted_dropout_drops_of_the_smallest_in_training_and_all_in_evaluation() -> None:
    wiring = TopKWiring(20, 20, 100, dropout=0.75)
    dense, kept = wiring.candidate.detach(), torch.zeros(20, 20)
    for _ in range(200):
        thin = wiring().to_dense()
        assert (thin != 0).sum() == 100 + 75
        assert torch.equal(thin[thin != 0], dense[thin != 0])  # with their signs
        kept += thin != 0
    strong = wiring.eval()().to_dense() != 0
    assert strong.sum() == 100
    assert (kept[strong] == 200).all()
    assert (kept[~strong] / 200).mean() == pytest.approx(0.25)
    assert (kept[~strong] / 200).std() < 0.06  # of a fair toss sqrt(0.25 · 0.75 / 200) = 0.03


def test_dropout_gives_gradient_to_what_takes_part() -> None:
    wiring = TopKWiring(5, 8, 10, dropout=0.5)
    weight = wiring()
    contract(weight, torch.ones(1, 8)).sum().backward()
    assert torch.equal(wiring.candidate.grad, (weight.to_dense() != 0).float())


def test_a_frozen_choice_stays_and_its_values_learn() -> None:
    wiring = by_hand(k=3)
    wiring.freeze()
    with torch.no_grad():
        wiring.candidate.mul_(torch.tensor([[1.0, 0.1, 1, 1], [9, 1, 1, 1]]))
    weight = wiring()
    assert weight.indices.tolist() == [[0, 1], [1, 1], [1, 3]]
    contract(weight, torch.ones(1, 4)).sum().backward()
    assert wiring.candidate.grad.tolist() == [[0.0, 1, 0, 0], [0, 1, 0, 1]]
    other = TopKWiring(2, 4, k=3)
    other.load_state_dict(wiring.state_dict())
    assert torch.equal(other().to_dense(), wiring().to_dense())
    other.load_state_dict(by_hand(k=3).state_dict())
    assert other().to_dense().tolist() == by_hand(k=3)().to_dense().tolist()


def test_the_lottery_takes_the_choice_to_the_initial_values() -> None:
    wiring = TopKWiring(6, 9, 8)
    initial = wiring.candidate.detach().clone()
    with torch.no_grad():
        wiring.candidate.copy_(torch.randn(6, 9))
    wiring.freeze()
    chosen = wiring().indices
    wiring.rewind()
    weight = wiring()
    assert torch.equal(wiring.candidate, initial)
    assert torch.equal(weight.indices, chosen)
    assert torch.equal(weight.values, initial[tuple(chosen.unbind(-1))])
    wiring.reset_parameters()
    assert not bool(wiring.frozen)


def test_a_density_schedule() -> None:
    """1 − (1 − s)³ of the way is done at the share s of the steps: after half of them 7/8."""
    wiring = TopKWiring(10, 10, density=Anneal(1.0, 0.2, 100, "cubic"))
    counts = []
    for step in (0, 50, 100, 200):
        wiring.advance(step)
        counts.append((wiring.stored_entries(), len(wiring().values)))
    assert counts == [(100, 100), (30, 30), (20, 20), (20, 20)]
    copied = pickle.loads(pickle.dumps(wiring))
    assert copied.stored_entries() == 20


def test_the_chosen_start_with_the_variance_of_a_sparse_layer() -> None:
    """Uniform in ±1/√f has the variance 1/(3 f), with f = 30 entries for each output."""
    for options in ({"density": 0.1}, {"density": 0.1, "per_output": True}):
        values = TopKWiring(200, 300, **options)().values
        assert float(values.square().mean()) == pytest.approx(1 / 90, rel=0.02)
    everything = TopKWiring(200, 300, density=1.0).candidate.detach()
    assert float(everything.abs().max()) == pytest.approx(300**-0.5, rel=0.001)


# --- one budget for several wirings --------------------------------------------------------------------------


def sharing(density: float = 0.5) -> tuple[TopKBudget, TopKWiring, TopKWiring]:
    budget = TopKBudget(density)
    one, other = TopKWiring(2, 3, budget=budget), TopKWiring(1, 4, budget=budget)
    one.load_dense(torch.tensor([[9.0, -1, 2], [3, -8, 0]]))
    other.load_dense(torch.tensor([[-7.0, 4, 6, 0.5]]))
    return budget, one, other


def test_a_budget_by_hand() -> None:
    """The five largest of ten are 9, 8, 7, 6 and 4."""
    budget, one, other = sharing()
    assert budget.k == 5
    assert one().to_dense().tolist() == [[9, 0, 0], [0, -8, 0]]
    assert other().to_dense().tolist() == [[-7, 4, 6, 0]]
    with torch.no_grad():
        one.candidate[0, 2] = 5.0
    assert one().to_dense().tolist() == [[9, 0, 5], [0, -8, 0]]
    assert other().to_dense().tolist() == [[-7, 0, 6, 0]]
    assert (one.stored_entries(), other.stored_entries()) == (3, 2)


def test_a_budget_may_leave_a_wiring_without_entries() -> None:
    _, one, other = sharing(0.2)
    other.load_dense(torch.zeros(1, 4))
    assert one.stored_entries() == 2
    y = contract(other(), torch.ones(2, 4))
    assert torch.equal(y, torch.zeros(2, 1))


def test_a_budget_chooses_once_a_pass_also_after_fused_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused optimizers write to parameters without raising their version."""
    budget, one, other = sharing()
    calls, choose = [], budget._choose
    monkeypatch.setattr(budget, "_choose", lambda: (calls.append(1), choose()))
    optimizer = torch.optim.SGD([one.candidate, other.candidate], lr=20.0, fused=True)
    for step in range(3):
        y = contract(one(), torch.ones(1, 3)).sum() + contract(other(), torch.tensor([[0.0, 1, 0, 0]])).sum()
        optimizer.zero_grad()
        y.backward()
        optimizer.step()
        assert len(calls) == step + 1
    whole = torch.cat([one.candidate.abs().flatten(), other.candidate.abs().flatten()])
    expected = whole >= whole.topk(5).values.min()
    assert torch.equal(one().to_dense().flatten() != 0, expected[:6])
    assert torch.equal(other().to_dense().flatten() != 0, expected[6:])


def test_copies_share_a_copied_budget() -> None:
    layers = nn.ModuleList(sharing()[1:])
    for way in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        one, other = way(layers)
        assert one.budget is other.budget
        assert one.budget is not layers[0].budget
        assert one.budget.members[1] is other
        one.load_dense(torch.zeros(2, 3))
        assert one.stored_entries() + other.stored_entries() == 5
    assert layers[0].stored_entries() == 2


def test_a_budget_with_a_schedule() -> None:
    budget, one, other = sharing(Anneal(1.0, 0.5, 10, "linear"))
    assert one.stored_entries() + other.stored_entries() == 10
    one.advance(10)
    other.advance(10)
    assert one.stored_entries() + other.stored_entries() == 5


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0; expected at least 1"),
        ({"k": 25}, "k=25 of 24 admissible entries; ask for at most 24"),
        ({"k": 3, "density": 0.5}, "k and density are given; give one of them"),
        ({"density": 0.0}, "density=0.0; expected a number above 0 and at most 1"),
        ({"density": Anneal(1.5, 0.5, 10)}, "density=1.5"),
        ({"k": 3, "n_of_m": (1, 2)}, "k and n_of_m are given"),
        ({"n_of_m": (3, 2)}, r"n_of_m=\(3, 2\); expected \(n, m\) with 1 <= n <= m"),
        ({"n_of_m": (1, 4)}, r"n_of_m=\(1, 4\) for 6 inputs; expected a multiple of 4"),
        ({"per_output": True, "n_of_m": (1, 2)}, "per_output with a budget or n_of_m"),
        ({"dropout": 1.5}, "dropout=1.5; expected a share from 0 to 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TopKWiring(4, 6, **options).stored_entries()


@pytest.mark.parametrize("density", [1.5, 0.0, float("nan"), Anneal(1.5, 0.5, 10)])
def test_budgets_that_cannot_be(density: Any) -> None:
    with pytest.raises(UserError, match="of a TopKBudget; expected a number above 0 and at most 1"):
        TopKBudget(density)


def test_repr_names_the_options() -> None:
    assert "n_of_m=(1, 2)" in repr(TopKWiring(4, 6, n_of_m=(1, 2)))
    assert "update=False" in repr(TopKWiring(4, 6, update=False))
    assert "dropout=0.9" in repr(TopKWiring(4, 6, dropout=0.9))
    assert "TopKBudget(density=0.5, members=1)" in repr(TopKWiring(4, 6, budget=TopKBudget(0.5)))
