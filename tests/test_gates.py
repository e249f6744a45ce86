"""Gates: the wirings' suite in every variant, gates by hand, sparsity term, pruning, bad options."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ash import (
    GateWiring,
    HardConcreteGate,
    Mask,
    SourceBeforeTarget,
    SparseLinear,
    StaticWiring,
    UserError,
    Wiring,
    clear_state,
    contract,
    count,
    gate_penalty,
    parameter_groups,
)
from tests.test_wirings import WiringSuite, inputs, layer_of, pytest_generate_tests, train

__all__ = ["pytest_generate_tests"]

gates = partial(GateWiring, (6,), (6,), dtype=torch.float64)

GATES: dict[str, Callable[[], Wiring]] = {
    "defaults": gates,
    "ones": partial(gates, values="ones"),
    "some entries": partial(gates, 9, init=-1.0, init_std=1.0),
    "linear": partial(gates, gate="linear", init_std=0.2),
    "hard concrete": partial(gates, gate=HardConcreteGate(beta=0.5), init=1.0),
    "admissible, threshold": partial(gates, threshold=0.4, init_std=1.0, admissible=SourceBeforeTarget(6)),
    "rank 5": partial(GateWiring, (2, 3), (2, 1, 4), dtype=torch.float64),
    "one entry": partial(GateWiring, 1, 1, dtype=torch.float64),
}


class TestGates(WiringSuite):
    variants = GATES

    def test_the_sum_of_the_values_is_conserved(self, make: Callable[[], Wiring]) -> None:
        """Here: the weight is gate times value, and its tensor holds nothing else."""
        wiring = make().eval()
        assert isinstance(wiring, GateWiring)
        weight = wiring()
        whole = torch.zeros(wiring.shape, dtype=torch.float64)
        product = wiring.gate.gate(wiring.logits) * wiring.values
        kept = wiring.gate.gate(wiring.logits).abs() > wiring.threshold
        whole[tuple(wiring.indices[kept].unbind(-1))] = product[kept]
        assert torch.equal(weight.to_dense(), whole)
        assert torch.equal(wiring.gates() if wiring.learned_values else product, wiring.gate.gate(wiring.logits))

    def test_evaluation_draws_nothing(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        before = torch.get_rng_state()
        one, other = wiring(), wiring()
        assert torch.equal(torch.get_rng_state(), before)
        assert one.indices.shape == (wiring.stored_entries(), wiring.rank)
        assert torch.equal(one.to_dense(), other.to_dense())
        assert wiring.admissible.contains(one.indices).all()

    def test_loading_a_dense_weight(self, make: Callable[[], Wiring]) -> None:
        wiring = make().eval()
        dense = torch.randn(wiring.shape, dtype=torch.float64)
        if not isinstance(wiring.values, nn.Parameter):
            with pytest.raises(UserError, match="no values to load"):
                wiring.load_dense(dense)
            return
        wiring.load_dense(dense)
        weight = wiring()
        assert torch.allclose(weight.values, dense[tuple(weight.indices.unbind(-1))])
        with pytest.raises(UserError, match="expected"):
            wiring.load_dense(dense.unsqueeze(0))


def given(logits: list[float], **options: Any) -> GateWiring:
    """A row of gates with these logits."""
    return GateWiring(1, len(logits), init=torch.tensor(logits), values="ones", **options)


def test_gates_by_hand() -> None:
    logits = [0.0, math.log(3), -math.log(9)]
    assert torch.allclose(given(logits).gates(), torch.tensor([0.5, 0.75, 0.1]))
    assert torch.equal(given(logits, gate="linear").gates(), torch.tensor(logits))
    # 1.2 · (0.5, 0.75, 0.1) − 0.1
    hard = given([*logits, 9.0, -9.0], gate="hard_concrete").gates()
    assert torch.allclose(hard, torch.tensor([0.5, 0.8, 0.02, 1.0, 0.0]))


@pytest.mark.parametrize("gate", ["sigmoid", "linear", "hard_concrete"])
def test_every_gate_starts_half_open(gate: str) -> None:
    assert torch.equal(GateWiring(3, 3, gate=gate).gates(), torch.full((9,), 0.5))


def test_hard_concrete_draws_follow_their_distribution() -> None:
    """P(gate ≠ 0) is the cost, P(gate = 1) = sigmoid(logit − β·log((1 − γ)/(ζ − 1))); one draw a pass, by the seed."""
    kind = HardConcreteGate()
    logits = torch.full((200_000,), 0.7, dtype=torch.float64)
    drawn = kind.draw(logits)
    assert float((drawn != 0).double().mean()) == pytest.approx(float(kind.cost(logits[0])), abs=0.004)
    full = 1 / (1 + math.exp(-(0.7 - 2 / 3 * math.log(1.1 / 0.1))))
    assert float((drawn == 1).double().mean()) == pytest.approx(full, abs=0.004)
    assert 0 < float(((drawn > 0) & (drawn < 1)).double().mean()) < 1
    wiring = given([0.0] * 50, gate=kind)
    torch.manual_seed(1)
    one, two = wiring().values, wiring().values
    torch.manual_seed(1)
    assert torch.equal(wiring().values, one)
    assert not torch.equal(one, two)


def test_draws_are_differentiable_between_the_ends() -> None:
    logits = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)

    def draw(logits: Tensor) -> Tensor:
        torch.manual_seed(4)
        return HardConcreteGate().draw(logits)

    assert ((draw(logits) > 0) & (draw(logits) < 1)).sum() >= 3
    assert torch.autograd.gradcheck(draw, (logits,))


@pytest.mark.parametrize("gate", ["sigmoid", "linear", "hard_concrete"])
def test_gradients_by_logits_values_and_input(gate: str) -> None:
    wiring = GateWiring(3, 4, gate=gate, dtype=torch.float64, init_std=0.1)

    def product(logits: Tensor, values: Tensor, x: Tensor) -> Tensor:
        torch.manual_seed(2)
        weight = torch.func.functional_call(wiring, {"logits": logits, "values": values}, ())
        return contract(weight, x)

    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    logits, values = (p.detach().clone().requires_grad_() for p in (wiring.logits, wiring.values))
    assert torch.autograd.gradcheck(product, (logits, values, x))


def test_weights_start_as_a_dense_layers_do() -> None:
    for init in (0.0, -3.0, 2.0):
        weight = GateWiring(200, 100, init=init, init_std=0.01).eval()().values.detach()
        assert weight.std() == pytest.approx(0.1 / 3**0.5 * min(1, max(0.0, _sigmoid(init)) / 0.1), rel=0.05)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_ways_to_start() -> None:
    by_hand = torch.arange(9.0).reshape(3, 3)
    mask = Mask(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]))
    wiring = GateWiring(3, 3, init=by_hand, admissible=mask)
    assert wiring.logits.tolist() == [0.0, 2.0, 7.0]
    wiring = GateWiring(3, 3, init=lambda at: torch.where(at[:, 0] == at[:, 1], 1.0, 0.5))
    assert wiring.logits.reshape(3, 3).tolist() == [[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]]
    around = GateWiring(100, 100, init=0.5, init_std=0.2, generator=torch.Generator().manual_seed(3)).logits.detach()
    assert around.mean() == pytest.approx(0.5, abs=0.01)
    assert around.std() == pytest.approx(0.2, rel=0.05)


# --- sparsity and pruning ------------------------------------------------------------------------------


def penalty(model: nn.Module) -> float:
    return float(gate_penalty(model).detach())


def test_the_penalty_by_hand() -> None:
    logits = [0.0, math.log(3)]
    model = nn.ModuleList([given(logits), given([-0.25, 0.5, 4.0], gate="linear")])
    assert penalty(model) == pytest.approx((0.5 + 0.75 + 0.25 + 0.5 + 4.0) / 5)
    hard = given([0.3], gate=HardConcreteGate(beta=0.5, gamma=-0.2, zeta=1.5))
    assert penalty(hard) == pytest.approx(_sigmoid(0.3 - 0.5 * math.log(0.2 / 1.5)))


def test_the_penalty_counts_gates_that_are_alive() -> None:
    wiring = given([0.0, -9.0, 1.0])
    wiring.prune(0.1)
    gate_penalty(wiring).backward()
    assert penalty(wiring) == pytest.approx((0.5 + _sigmoid(1.0)) / 2)
    assert wiring.logits.grad is not None
    assert wiring.logits.grad[1] == 0
    assert (wiring.logits.grad[[0, 2]] > 0).all()
    wiring.prune(1.0)
    assert penalty(wiring) == 0


def test_the_penalty_of_a_model_without_gates() -> None:
    with pytest.raises(UserError, match="no GateWiring in Linear"):
        gate_penalty(nn.Linear(2, 2))


def test_the_penalty_closes_gates() -> None:
    wiring = GateWiring(4, 4, gate="hard_concrete")
    optimizer = torch.optim.Adam(wiring.parameters(), lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        gate_penalty(wiring).backward()
        optimizer.step()
    assert wiring.stored_entries() == 0
    assert penalty(wiring) < 0.01


@pytest.mark.parametrize("gate", ["sigmoid", "hard_concrete"])
def test_pruning_is_for_good_and_the_rest_goes_on(gate: str) -> None:
    layer = SparseLinear(6, 5, wiring=partial(GateWiring, gate=gate, init_std=1.0))
    wiring = layer.wiring
    assert isinstance(wiring, GateWiring)
    before = wiring.gates().detach()
    report = wiring.prune(0.5)
    gone = (before <= 0.5).nonzero().flatten()
    assert 0 < len(gone) < 30
    assert torch.equal(report.moved, gone)
    assert len(wiring.entries()) == wiring.stored_entries() == count(wiring).values == 30 - len(gone)
    removed = wiring.indices[gone]
    with torch.no_grad():
        wiring.logits.fill_(5.0)
    for mode in (True, False):
        dense = layer.train(mode).wiring().to_dense()
        assert (dense[tuple(removed.unbind(-1))] == 0).all()
        assert int((dense != 0).sum()) == 30 - len(gone)
    before_step = wiring.logits.detach().clone()
    layer = layer.train().double()
    train(layer)
    moved = (wiring.logits.detach().float() != before_step).nonzero().flatten()
    assert not set(moved.tolist()) & set(gone.tolist())


def test_pruning_survives_a_checkpoint_and_a_reset_undoes_it() -> None:
    wiring = given([0.0, -9.0, 1.0])
    wiring.prune(0.1)
    other = given([0.0, 0.0, 0.0])
    other.load_state_dict(wiring.state_dict())
    assert torch.equal(other.entries(), wiring.entries())
    assert torch.equal(other.eval()().to_dense(), wiring.eval()().to_dense())
    assert wiring.prune(0.1).moves == 0
    wiring.reset_parameters()
    assert wiring.stored_entries() == 3


def test_the_optimizers_state_of_what_was_pruned_can_be_cleared() -> None:
    layer = layer_of(gates(init_std=1.0))
    optimizer = torch.optim.Adam(layer.parameters())
    layer(inputs(layer.wiring)).square().sum().backward()
    optimizer.step()
    wiring = layer.wiring
    assert isinstance(wiring, GateWiring)
    report = wiring.prune(0.5)
    clear_state(optimizer, wiring, report.moved)
    kept = wiring.alive
    for parameter in (wiring.logits, wiring.values):
        state = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(state != 0, kept)


def test_everything_pruned_is_the_bias() -> None:
    layer = SparseLinear(4, 3, wiring=GateWiring)
    assert isinstance(layer.wiring, GateWiring)
    layer.wiring.prune(1.0)
    x = torch.randn(2, 4, requires_grad=True)
    for mode in (True, False):
        y = layer.train(mode)(x)
        assert torch.equal(y, layer.bias.expand(2, 3))
    y.sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_evaluation_leaves_out_gates_up_to_the_threshold_and_training_does_not() -> None:
    wiring = given([-3.0, 0.0, 3.0], threshold=0.5)
    assert (wiring.train()().to_dense() != 0).tolist() == [[True, True, True]]
    assert (wiring.eval()().to_dense() != 0).tolist() == [[False, False, True]]
    with torch.no_grad():
        wiring.logits.neg_()
    assert (wiring.eval()().to_dense() != 0).tolist() == [[True, False, False]]
    assert wiring.stored_entries() == 1
    assert "entries=1" in repr(wiring)


def test_a_changed_gate_is_seen_where_versions_do_not_tell() -> None:
    """Fused optimizers write to parameters without raising their version."""
    wiring = given([-3.0, 3.0], threshold=0.5).eval()
    assert wiring().col_ids.tolist() == [1]
    wiring.logits.data = torch.tensor([3.0, -3.0])
    assert wiring().col_ids.tolist() == [0]


def test_gates_have_a_group_of_their_own_without_decay() -> None:
    layer = SparseLinear(4, 3, wiring=GateWiring)
    groups = {g["name"]: g for g in parameter_groups(layer, lr=0.1, weight_decay=0.2, gate_lr=0.3)}
    assert groups["gates"]["params"][0] is layer.wiring.logits
    assert (groups["gates"]["weight_decay"], groups["gates"]["lr"]) == (0.0, 0.3)
    assert groups["values"]["params"][0] is layer.wiring.values
    assert groups["values"]["weight_decay"] == 0.2
    assert {g["name"]: g["lr"] for g in parameter_groups(layer, lr=0.1)}["gates"] == 0.1


def test_counts() -> None:
    """A stored entry is its weight and one index; logits and the mask are of training."""
    figures = count(SparseLinear(6, 5, wiring=partial(GateWiring, k=12)))
    assert (figures.values, figures.indices, figures.training_numbers) == (12, 12, 24)
    assert count(SparseLinear(6, 5, wiring=partial(StaticWiring, k=12))).stored_numbers == figures.stored_numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "softmax"}, "unknown gate 'softmax'; expected one of 'hard_concrete', 'linear', 'sigmoid'"),
        ({"values": "emitted"}, "unknown value scheme 'emitted'"),
        ({"init": torch.zeros(5)}, r"initial logits of shape \(5,\); expected a number, \(12,\) or \(3, 4\)"),
        ({"init": math.nan}, "initial logits that are NaN or infinite"),
        ({"init_std": -1.0}, "init_std=-1.0"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"k": 13}, "13 different entries of 12"),
        ({"k": 3, "density": 0.5}, "give one of them"),
        ({"density": 0.0}, "density=0.0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GateWiring(3, 4, **options)


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"gamma": 0.0}, {"zeta": 1.0}])
def test_bad_hard_concrete_gates(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="expected"):
        HardConcreteGate(**options)


def test_a_bad_threshold_for_pruning() -> None:
    with pytest.raises(UserError, match="threshold=-1"):
        given([0.0]).prune(-1.0)
