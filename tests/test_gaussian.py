"""`GaussianWiring`: what happens between the steps of an optimizer, and what the options do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import problems
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.func import functional_call

from ash import (
    Anneal,
    Context,
    Factors,
    GaussianWiring,
    Sampling,
    SourceBeforeTarget,
    SparseLinear,
    Template,
    UserError,
    block_structure,
)
from ash.pattern import ravel

GUIDED = Sampling(guided_samples=2, kept_samples=1)


def linear(size: int = 8, k: int = 8, bias: bool = True, **options: Any) -> SparseLinear:
    return SparseLinear(size, size, bias, wiring=partial(GaussianWiring, k=k, **options))


def wiring_of(layer: SparseLinear) -> GaussianWiring:
    assert isinstance(layer.wiring, GaussianWiring)
    return layer.wiring


def step(layer: SparseLinear, optimizer: torch.optim.Optimizer, target: Tensor | None = None) -> Tensor:
    """One step on random inputs; the loss."""
    x = torch.randn(16, layer.in_features)
    optimizer.zero_grad()
    loss = (layer(x) - (x if target is None else x @ target.t())).square().sum()
    loss.backward()
    optimizer.step()
    return loss.detach()


# --- settling --------------------------------------------------------------------------------------------


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "Adam": partial(torch.optim.Adam, lr=0.1),
    "for each": partial(torch.optim.Adam, lr=0.1, foreach=True),
    "one by one": partial(torch.optim.AdamW, lr=0.1, foreach=False),
    "fused": partial(torch.optim.Adam, lr=0.1, fused=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("means", ["anchored", "direct", "sigmoid"])
def test_every_optimizer_step_is_noticed_once(make: Callable[..., torch.optim.Optimizer], means: str) -> None:
    layer = linear(means=means)
    wiring, optimizer = wiring_of(layer), make(layer.parameters())
    for count in range(1, 4):
        step(layer, optimizer)
        layer(torch.randn(2, 8))
        layer.eval()(torch.randn(2, 8))
        layer.train().state_dict()
        assert wiring.step == count


def test_anchors_take_up_the_offsets() -> None:
    layer = linear(size=100, k=30)
    wiring, optimizer = wiring_of(layer), torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(5):
        step(layer, optimizer)
        before = wiring.tuples().means.detach()
        assert (wiring.means.offset != 0).any()
        wiring.settle()
        assert (wiring.means.offset == 0).all()
        assert torch.allclose(wiring.tuples().means.clamp(0, 99), before.clamp(0, 99), atol=1e-5)


def test_a_step_is_proportional_to_the_scale() -> None:
    wiring = GaussianWiring(1000, 1000, 2, positions=torch.full((2, 2), 500.0), scale=4.0)
    with torch.no_grad():
        wiring.log_scale[1] = math.log(40.0)
        wiring.means.offset += 0.1
    before = wiring.tuples().means
    wiring.settle()
    moved = wiring.tuples().means - 500
    assert torch.allclose(before, wiring.tuples().means)
    assert torch.allclose(moved, torch.tensor([[0.4, 0.4], [4.0, 4.0]], dtype=torch.float64), atol=1e-4)


def test_scales_decay_and_keep_their_bounds() -> None:
    wiring = GaussianWiring(64, 64, 3, scale=4.0, scale_floor=0.5, scale_ceiling=8.0, scale_decay=0.25)
    with torch.no_grad():
        wiring.log_scale += torch.tensor([[0.1], [-9.0], [9.0]])
    wiring.settle()
    expected = torch.tensor([[4.0 * math.exp(0.1 - 0.25)], [0.5], [8.0]])
    assert torch.allclose(wiring.scales(), expected)
    wiring.settle()
    assert torch.allclose(wiring.scales(), expected)


def test_bounds_follow_their_schedules() -> None:
    floor, ceiling = Anneal(1.0, 0.1, 10), Anneal(4.0, 0.4, 10)
    wiring = GaussianWiring(64, 64, 2, scale=2.0, scale_floor=floor, scale_ceiling=ceiling)
    for count in range(1, 13):
        with torch.no_grad():
            wiring.log_scale.copy_(torch.tensor([[-9.0 - count], [9.0 + count]]))
        wiring.settle()
        assert torch.allclose(wiring.scales().flatten(), torch.tensor([floor(count), ceiling(count)]))


def test_a_floor_that_falls_to_zero_is_none() -> None:
    wiring = GaussianWiring(64, 64, 2, scale_floor=Anneal(1.0, 0.0, 1, "linear"))
    with torch.no_grad():
        wiring.log_scale.fill_(-9.0)
    wiring.settle()
    assert torch.allclose(wiring.log_scale, torch.full((2, 1), -9.0))


def test_a_floor_above_the_ceiling_wins_in_the_course_of_a_schedule() -> None:
    wiring = GaussianWiring(64, 64, 2, scale_floor=1.0, scale_ceiling=Anneal(4.0, 0.1, 1))
    with torch.no_grad():
        wiring.log_scale += 0.01
    wiring.settle()
    assert torch.allclose(wiring.scales(), torch.ones(2, 1))


def test_fixed_scales() -> None:
    layer = linear(scale=2.0)
    wiring = wiring_of(layer)
    wiring.log_scale.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    step(layer, optimizer)
    wiring.settle()
    assert (wiring.means.offset == 0).all()
    assert torch.allclose(wiring.scales(), torch.full((8, 1), 2.0))


# --- saving and copying ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"sampling": GUIDED}, {"scale_decay": 0.01, "subset": 0.5}], ids=str)
@pytest.mark.parametrize("means", ["anchored", "direct", "sigmoid"])
def test_training_goes_on_bit_for_bit(options: dict[str, Any], means: str) -> None:
    def start() -> tuple[SparseLinear, torch.optim.Optimizer]:
        layer = linear(means=means, scale_floor=Anneal(0.5, 0.1, 4), **options)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1)

    layer, optimizer = start()
    torch.manual_seed(1)
    for _ in range(3):
        step(layer, optimizer)
    saved = copy.deepcopy((layer.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    for _ in range(3):
        step(layer, optimizer)
    again, other = start()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    for _ in range(3):
        step(again, other)
    assert problems.Snapshot(again) == problems.Snapshot(layer)


def test_saving_does_not_disturb() -> None:
    results = []
    for saves in (False, True):
        torch.manual_seed(1)
        layer = linear(scale_decay=0.01, sampling=GUIDED)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for _ in range(4):
            step(layer, optimizer)
            if saves:
                layer.state_dict()
                copy.deepcopy(layer)
        results.append(problems.Snapshot(layer))
    assert results[0] == results[1]


def test_a_copy_in_the_midst_of_training_does_what_its_origin_does() -> None:
    layer = linear(scale_decay=0.01, scale_floor=Anneal(0.5, 0.1, 4), sampling=GUIDED)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(3):
        step(layer, optimizer)
    other = copy.deepcopy(layer)  # before the last step has settled
    for each in (layer, other):
        torch.manual_seed(2)
        for _ in range(2):
            step(each, torch.optim.SGD(each.parameters(), lr=0.01))
    assert problems.Snapshot(other) == problems.Snapshot(layer)


def test_loading_is_no_step() -> None:
    layer, other = linear(), linear()
    step(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    other.load_state_dict(layer.state_dict())
    other(torch.randn(2, 8))
    assert wiring_of(other).step == wiring_of(layer).step == 1


def test_a_change_of_type_is_no_step() -> None:
    layer = linear(scale_decay=0.5)
    layer(torch.randn(2, 8))
    layer.double()(torch.randn(2, 8).double())
    assert wiring_of(layer).step == 0


# --- functional calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_functional_call_changes_nothing_and_computes_the_same(training: bool) -> None:
    layer = linear().train(training)
    before = problems.Snapshot(layer)
    x = torch.randn(5, 8)
    parameters = {name: value.detach().clone() for name, value in layer.named_parameters()}
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    assert torch.equal(functional_call(layer, parameters, (x,)), expected)
    parameters["wiring.means.offset"] += 3.0
    torch.manual_seed(1)
    assert not torch.equal(functional_call(layer, parameters, (x,)), expected)
    assert problems.Snapshot(layer) == before
    torch.manual_seed(1)
    assert torch.equal(layer(x), expected)


def test_evaluation_notices_every_change_of_the_means() -> None:
    wiring = GaussianWiring(50, 50, 8).eval()
    for _ in range(3):
        with torch.no_grad():
            wiring.means.offset.add_(torch.randn(8, 2))
        weight = wiring()
        assert torch.equal(weight.indices, wiring.rounded_indices())
        assert weight.pattern is wiring().pattern
    wiring.means.place(torch.arange(8), torch.full((8, 2), 7.0, dtype=torch.float64))
    assert (wiring().indices == 7).all()


@pytest.mark.parametrize("name", ["wiring.means.offset", "wiring.log_scale"])
def test_functional_calls_in_evaluation_do_not_see_each_others_means(name: str) -> None:
    layer = linear(size=50, scale=4.0, bias=False).eval()
    parameters = {key: value.detach().clone() for key, value in layer.named_parameters()}
    parameters["wiring.means.offset"] = torch.randn(8, 2)
    found = []
    for _ in range(4):
        changed = {**parameters, name: torch.randn_like(parameters[name])}
        found.append(functional_call(layer, changed, (torch.eye(50),)).t())
        sigma = changed["wiring.log_scale"].exp()
        means = wiring_of(layer).means
        where = (means.anchor + means.fraction + sigma * changed["wiring.means.offset"]).round().long().clamp(0, 49)
        expected = torch.zeros(50, 50).index_put(tuple(where.unbind(-1)), parameters["wiring.values"], accumulate=True)
        assert torch.allclose(found[-1], expected, atol=1e-6)
    assert not torch.equal(found[0], found[1])


def test_functional_gradients_are_the_gradients() -> None:
    layer, x = linear(), torch.randn(5, 8)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    torch.manual_seed(1)
    found = torch.func.grad(loss)(parameters)
    torch.manual_seed(1)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad, atol=1e-6)


# --- freezing, subsets, instances ------------------------------------------------------------------------


def test_a_frozen_wiring_trains_its_values_alone() -> None:
    layer = linear()
    wiring = wiring_of(layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    step(layer, optimizer)
    wiring.freeze()
    rounded = wiring.rounded_indices()
    values = wiring.values.detach().clone()
    x = torch.randn(3, 8)
    assert torch.equal(layer.train()(x), layer.eval()(x))
    for _ in range(3):
        step(layer.train(), optimizer)
    assert torch.equal(wiring.rounded_indices(), rounded)
    assert not torch.equal(wiring.values, values)
    assert wiring.frozen_entries().all()
    other = linear()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.train()(x), layer(x))


def test_only_the_subset_learns() -> None:
    layer = linear(k=8, subset=0.25)
    layer(torch.randn(4, 8)).square().sum().backward()
    wiring = wiring_of(layer)
    assert wiring.values.grad is not None
    assert (wiring.values.grad != 0).sum() <= 2
    weight = wiring(None)
    assert weight.values.shape == (2 * 8 + 6,)


def test_the_rest_of_a_subset_takes_part_rounded() -> None:
    wiring = GaussianWiring(50, 50, 10, subset=0.1)
    weight = wiring()
    rest = {tuple(entry) for entry in weight.indices[8:].tolist()}
    assert rest <= {tuple(entry) for entry in wiring.rounded_indices().tolist()}


def test_every_tuple_has_its_turn() -> None:
    layer = linear(k=8, subset=0.5)
    turns = torch.zeros(8)
    for _ in range(20):
        layer.zero_grad()
        layer(torch.randn(4, 8)).square().sum().backward()
        gradient = wiring_of(layer).values.grad
        assert gradient is not None
        turns += gradient != 0
    assert (turns > 0).all()


def test_instances_draw_their_own_points() -> None:
    wiring = GaussianWiring(50, 50, 10, per_instance=True)
    weight = wiring(torch.randn(3, 50))
    assert weight.per_instance
    assert weight.values.shape == (3, 80)
    assert not torch.equal(weight.indices[0], weight.indices[1])
    with pytest.raises(UserError, match="without an input"):
        wiring()


# --- guided samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "sign"), [("ones", -1), ("learned", 0)])
def test_proposals_are_the_largest_entries_of_the_gradient(values: str, sign: int) -> None:
    layer = linear(size=9, k=5, values=values, sampling=GUIDED)
    wiring = wiring_of(layer)
    assert wiring.wants_factors
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)
    x, kept = torch.randn(6, 9), []
    y = layer(x)
    y.register_hook(kept.append)
    y.square().sum().backward()
    assert wiring.search.count == 0  # they wait for the step
    optimizer.step()
    wiring.settle()
    gradient = Factors(x, kept[0]).dense()
    score = gradient.abs() if sign == 0 else sign * gradient
    expected = score.flatten().topk(10).indices
    assert wiring.search.count == 10
    assert set(ravel(wiring.search.proposals, (9, 9)).tolist()) == set(expected.tolist())
    drawn = ravel(wiring(x).indices, (9, 9))
    assert torch.isin(expected, drawn).all()


def test_with_a_template_proposals_go_to_tuples_that_can_use_them() -> None:
    template = Template.per_output((6,), (50,), 1)
    wiring = GaussianWiring(6, 50, template=template, sampling=Sampling(False, 0, 0, 2))
    layer = SparseLinear(50, 6, wiring=wiring)
    kept: list[Tensor] = []
    x = torch.randn(4, 50)
    y = layer(x)
    y.register_hook(kept.append)
    y.square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1e-3).step()
    best = Factors(x, kept[0]).dense().abs().flatten().topk(12).indices
    drawn = ravel(wiring(x).indices, (6, 50)).reshape(6, 2)
    for row, entries in enumerate(drawn):
        suited = best[best // 50 == row]
        assert torch.isin(entries, suited).sum() >= min(2, len(suited))


KEPT = Sampling(global_samples=3, local_samples=1, kept_samples=2)


@pytest.mark.parametrize("subset", [None, 0.5])
def test_a_tuple_keeps_its_points_where_the_loss_asked_most_for_its_value(subset: float | None) -> None:
    made = GaussianWiring(9, 7, 6, sampling=KEPT, subset=subset)
    with torch.no_grad():
        made.values.copy_(torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.5]))
    before = made.search.kept.clone()
    gradient = torch.randn(9, 7)
    points: list[Tensor] = []
    keep = made.search.keep

    def watch(which: Tensor, drawn: Tensor, wanted: Tensor) -> None:
        points.extend((which, drawn))
        keep(which, drawn, wanted)

    made.search.keep = watch  # type: ignore[method-assign]
    (made().to_dense() * gradient).sum().backward()
    with torch.no_grad():
        made.means.offset.add_(0.01)
    assert torch.equal(made.search.kept, before), "the points change with the parameters, not before"
    made.settle()
    which, drawn = points
    assert len(which) == (6 if subset is None else 3)
    for place, i in enumerate(which.tolist()):
        wanted = sorted((-gradient[tuple(p)] * made.values[i].sign()).item() for p in drawn[place])
        found = sorted((-gradient[tuple(p)] * made.values[i].sign()).item() for p in made.search.kept[i])
        assert found == pytest.approx(wanted[-2:])
    others = [i for i in range(6) if i not in which.tolist()]
    assert torch.equal(made.search.kept[others], before[others])


def test_kept_points_are_among_the_next_points_and_none_are_forgotten_in_a_copy() -> None:
    layer = linear(size=9, sampling=KEPT)
    step(layer, torch.optim.Adam(layer.parameters(), lr=0.01))
    wiring = wiring_of(layer)
    drawn = wiring.train()().indices.reshape(wiring.k, -1, 2)
    assert int(wiring.search.kept.min()) >= 0
    assert torch.equal(drawn[:, -2:], wiring.search.kept)
    assert torch.equal(copy.deepcopy(wiring).search.kept, wiring.search.kept)
    wiring.reset_parameters()
    assert int(wiring.search.kept.max()) == -1


def test_nothing_is_kept_for_instances() -> None:
    layer = linear(sampling=KEPT, per_instance=True)
    step(layer, torch.optim.Adam(layer.parameters(), lr=0.01))
    layer(torch.randn(4, 8)).sum().backward()
    assert wiring_of(layer).search.kept.numel() == 0


def test_proposals_are_admissible() -> None:
    layer = linear(k=8, sampling=GUIDED, admissible=block_structure([5, 3]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)
    step(layer, optimizer)
    wiring = wiring_of(layer)
    wiring.settle()
    found = wiring.search.proposals[: int(wiring.search.count)]
    assert len(found) == 15  # as many as there are
    assert wiring.admissible.contains(found).all()


def test_nobody_proposes_for_instances_or_in_evaluation() -> None:
    assert not GaussianWiring(4, 4, 3, per_instance=True, sampling=GUIDED).wants_factors
    assert not GaussianWiring(4, 4, 3, sampling=GUIDED).eval().wants_factors
    assert not GaussianWiring(4, 4, 3).wants_factors


# --- what it learns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [problems.identity(4), problems.permutation(4, 3)], ids=["identity", "permutation"])
def test_gradient_descent_finds_a_small_permutation(target: Tensor) -> None:
    wiring = GaussianWiring(4, 4, 4, values="ones", context="all", sampling=GUIDED, scale_decay=0.005)
    layer = SparseLinear(4, 4, bias=False, wiring=wiring)
    groups = [{"params": [wiring.means.offset], "lr": 0.1}, {"params": [wiring.log_scale], "lr": 0.03}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
    for _ in range(400):
        step(layer, optimizer, target)
        if torch.equal(layer.wiring.rounded().to_dense(), target):
            break
    assert torch.equal(layer.eval().wiring().to_dense(), target)


def test_a_wider_kernel_reaches_further() -> None:
    """A mean that sees its target from afar moves towards it."""
    for kernel in ("gaussian", "student_t"):
        wiring = GaussianWiring(1, 200, 1, kernel=kernel, positions=torch.tensor([[0.0, 60.0]]), scale=20.0)
        x = torch.zeros(1, 200)
        x[:, 120:] = 1.0
        gradients = []
        for _ in range(50):
            wiring.zero_grad()
            weight = wiring()
            (-(weight.to_dense() * x).sum()).backward()
            assert wiring.means.offset.grad is not None
            gradients.append(wiring.means.offset.grad[0, 1] * wiring.values.detach().sign())
        assert torch.stack(gradients).mean() < 0


# --- options ---------------------------------------------------------------------------------------------


def test_means_start_where_they_are_told() -> None:
    where = torch.tensor([[0.0, 3.0], [2.5, 1.25]])
    wiring = GaussianWiring(4, 5, 2, positions=where)
    assert torch.allclose(wiring.tuples().means, where.double())


def test_means_start_uniform_over_the_admissible_set() -> None:
    wiring = GaussianWiring(10, 10, 500, admissible=SourceBeforeTarget(10))
    assert SourceBeforeTarget(10).contains(wiring.rounded_indices()).all()
    free = GaussianWiring(10, 10, 2000).tuples().means
    assert torch.allclose(free.mean(0), torch.full((2,), 4.5, dtype=torch.float64), atol=0.3)
    assert free.min() < 0.2
    assert free.max() > 8.8


def test_default_scales() -> None:
    assert torch.allclose(GaussianWiring(64, 16, 3).scales(), torch.full((3, 1), 4.0))
    assert torch.allclose(GaussianWiring(1, 1, 3).scales(), torch.full((3, 1), 0.5))
    assert GaussianWiring(64, 16, 3, scale_per_column=True).scales().shape == (3, 2)


def test_initial_values() -> None:
    assert (GaussianWiring(9, 9, 4, values="ones").values == 1).all()
    assert GaussianWiring(9, 9, 4000, value_std=0.2).values.std().item() == pytest.approx(0.2, rel=0.1)
    assert not list(GaussianWiring(9, 9, 4, values="ones").named_parameters(recurse=False))[1:]


def test_the_template_says_how_many() -> None:
    wiring = GaussianWiring(5, 6, template=Template.per_output((5,), (6,), 3))
    assert wiring.k == 15
    assert torch.equal(wiring.rounded_indices()[:, 0], torch.arange(5).repeat_interleave(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "laplace"}, "unknown kernel 'laplace'"),
        ({"context": "row"}, "unknown context 'row'"),
        ({"means": "tanh"}, "unknown parametrisation"),
        ({"values": "zeros"}, "unknown value scheme 'zeros'"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale_floor": -1.0}, "scale_floor=-1.0"),
        ({"scale_floor": 2.0, "scale_ceiling": 1.0}, "floor <= ceiling"),
        ({"scale_decay": -0.1}, "scale_decay=-0.1"),
        ({"subset": 0.0}, "subset=0.0"),
        ({"subset": 1.5}, "subset=1.5"),
        ({"positions": torch.zeros(3, 1)}, "expected \\(k, q\\) = \\(3, 2\\)"),
        ({"positions": torch.tensor([[0.0, 0.0], [0.0, torch.inf], [0.0, 0.0]])}, "positions that are NaN or infinite"),
        ({"template": Template(2, (0,), torch.zeros(2, 1).long())}, "k=3 with a template for 2 tuples"),
        ({"template": Template(2, (0,), torch.tensor([[0], [1], [4]]))}, "expected 0 to 3"),
        ({"template": Template(3, (0,), torch.zeros(3, 1).long())}, "expected the same rank"),
        (
            {
                "template": Template(2, (0,), torch.tensor([[1], [0], [2]])),
                "admissible": SourceBeforeTarget(4),
            },
            "leave no entry of SourceBeforeTarget",
        ),
        ({"sampling": Sampling(local_region=(2, 2, 2))}, "for 2 learned columns"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, TypeCheckError), match=message):
        GaussianWiring(4, 4, 3, **options)


def test_contexts_by_name_or_whole() -> None:
    context = Context("chunk", 3)
    assert GaussianWiring(4, 4, 3, context=context).context is context
    assert GaussianWiring(4, 4, 3, context="all").context == Context("all")
