"""Parameter groups, and clearing an optimizer's state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from ash import (
    DSRWiring,
    GaussianWiring,
    RigLWiring,
    SETWiring,
    SNFSWiring,
    SparseLinear,
    StaticWiring,
    TopKWiring,
    Wiring,
    clear_state,
    parameter_groups,
)


def model() -> nn.Module:
    return nn.Sequential(
        SparseLinear(6, 5, wiring=partial(GaussianWiring, k=7)),
        nn.BatchNorm1d(5),
        SparseLinear(5, 4, bias=False, wiring=partial(StaticWiring, k=6)),
    )


def test_every_parameter_is_in_one_group() -> None:
    net = model()
    groups = parameter_groups(net, lr=0.5, mean_lr=0.1, scale_lr=0.2, value_lr=0.3, weight_decay=0.4)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in net.parameters())
    by_name = {group["name"]: group for group in groups}
    assert {n: len(g["params"]) for n, g in by_name.items()} == {"means": 1, "scales": 1, "values": 2, "other": 3}
    assert {n: g["lr"] for n, g in by_name.items()} == {"means": 0.1, "scales": 0.2, "values": 0.3, "other": 0.5}


def test_weight_decay_leaves_means_and_scales_alone() -> None:
    decays = {g["name"]: g["weight_decay"] for g in parameter_groups(model(), weight_decay=0.4)}
    assert decays == {"means": 0.0, "scales": 0.0, "values": 0.4, "other": 0.4}


def test_values_follow_the_general_rate_unless_told() -> None:
    rates = {g["name"]: g["lr"] for g in parameter_groups(model(), lr=0.7)}
    assert rates["values"] == rates["other"] == 0.7


def test_a_shared_layer_counts_once_and_a_dense_model_has_one_group() -> None:
    layer = SparseLinear(5, 5, wiring=partial(GaussianWiring, k=7))
    assert sum(len(g["params"]) for g in parameter_groups(nn.Sequential(layer, layer))) == 4
    assert [g["name"] for g in parameter_groups(nn.Linear(3, 2))] == ["other"]


@pytest.mark.parametrize("make", [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam, torch.optim.AdamW])
def test_state_of_moved_tuples_is_cleared_and_that_of_others_kept(make: partial[torch.optim.Optimizer]) -> None:
    layer = SparseLinear(6, 5, wiring=partial(GaussianWiring, k=7))
    optimizer = make(parameter_groups(layer, lr=0.1))
    layer(torch.randn(9, 6)).square().sum().backward()
    optimizer.step()
    wiring = layer.wiring
    before = {p: {n: v.clone() for n, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
              for p in wiring.parameters()}  # fmt: skip
    clear_state(optimizer, wiring, torch.tensor([1, 4]))
    rest = [0, 2, 3, 5, 6]
    for p, state in before.items():
        for name, value in state.items():
            now = optimizer.state[p][name]
            if value.shape == p.shape:
                assert now[[1, 4]].abs().sum() == 0
                assert torch.equal(now[rest], value[rest])
            else:
                assert torch.equal(now, value)
    assert any(v.shape == p.shape for p, state in before.items() for v in state.values())


def state_numbers(kind: Callable[..., Wiring], make: Callable[..., torch.optim.Optimizer], size: int) -> int:
    """Numbers of the optimizer's state for 12 entries of a (size × size) weight, step counts apart."""
    layer = SparseLinear(size, size, bias=False, wiring=partial(kind, k=12))
    optimizer = make(parameter_groups(layer))
    layer(torch.randn(9, size)).square().sum().backward()
    optimizer.step()
    states = optimizer.state_dict()["state"].values()
    return sum(v.numel() for state in states for v in state.values() if isinstance(v, torch.Tensor) and v.dim())


OPTIMIZERS = [
    (1, partial(torch.optim.SGD, momentum=0.9)),
    (2, torch.optim.Adam),
    (2, partial(torch.optim.AdamW, fused=True)),
]
each_optimizer = pytest.mark.parametrize(("states", "make"), OPTIMIZERS, ids=["SGD", "Adam", "fused AdamW"])


NUMBERS = {StaticWiring: 1, SETWiring: 1, RigLWiring: 1, SNFSWiring: 4, DSRWiring: 4, GaussianWiring: 4}
"""For each entry: its value, with room for three more where layers give entries away; of a tuple two means and a scale
besides."""


@each_optimizer
@pytest.mark.parametrize("kind", NUMBERS)
def test_state_is_of_the_stored_entries_alone(
    kind: type[Wiring], states: int, make: Callable[..., torch.optim.Optimizer]
) -> None:
    assert [state_numbers(kind, make, size) for size in (30, 90)] == [states * 12 * NUMBERS[kind]] * 2


@each_optimizer
def test_state_of_dense_candidates_is_dense(states: int, make: Callable[..., torch.optim.Optimizer]) -> None:
    """All candidates learn, in use or not: that is how the top k are found."""
    assert state_numbers(TopKWiring, make, 6) == states * 36
