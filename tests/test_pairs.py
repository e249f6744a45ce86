"""Learned functions of pairs against their dense meaning; equivariance; the steepness of a unit."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from ash import HyperWiring, UserError
from ash.pairs import PairHypernetwork, SharpLinear


def test_a_sharp_layer_is_a_linear_one_with_its_steepness_apart() -> None:
    layer = SharpLinear(3, 5, gain=2.0, centre=0.5)
    plain = nn.Linear(3, 5)
    with torch.no_grad():
        plain.weight.copy_(layer.weight())
        plain.bias.copy_(layer.offset() - layer.weight().sum(1) * 0.5)
    x = torch.rand(7, 3)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.weight().norm(dim=1), torch.full((5,), 2.0))
    with torch.no_grad():
        before = layer(x)
        layer.log_gain += 1.0
    torch.testing.assert_close(layer(x), before * torch.e)


def test_the_length_of_a_direction_means_nothing() -> None:
    layer, x = SharpLinear(2, 4), torch.rand(3, 2)
    before = layer(x).detach()
    with torch.no_grad():
        layer.direction *= 7.0
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_pairs_against_a_loop(shape: tuple[int, ...]) -> None:
    network = PairHypernetwork(shape, 8, 3, hidden=5, centre=0.5)
    x = torch.rand(2, *shape)
    elements = x.reshape(2, 4, -1)
    rows = []
    for i in range(4):
        pairs = [torch.cat([elements[:, i], elements[:, j]], -1) for j in range(4)]
        rows.append(network.head(sum(network.pair(pair).tanh() for pair in pairs)))
    expected = torch.stack(rows, 1).reshape(2, 8, 3)
    torch.testing.assert_close(network(x), expected)


def test_a_wiring_of_pairs_is_equivariant() -> None:
    factory = partial(PairHypernetwork, hidden=4)
    wiring = HyperWiring(5, 5, 10, hypernetwork=factory, values="ones", scales="scheduled", means="direct").double()
    x, order = torch.rand(3, 5, dtype=torch.float64), torch.randperm(5)
    here, there = wiring.tuples(x).means, wiring.tuples(x[:, order]).means
    torch.testing.assert_close(here.reshape(3, 5, 2, 2)[:, order], there.reshape(3, 5, 2, 2))
    assert wiring.groups == 5 and wiring.offset.shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": (4, 3, 2), "k": 4}, "a set of shape"),
        ({"in_shape": (4,), "k": 6}, "k=6 tuples for 4 elements"),
        ({"in_shape": (4,), "k": 4, "hidden": 0}, "hidden=0"),
        ({"in_shape": (4,), "k": 4, "sharpness": 0.0}, "gain=0.0"),
    ],
)
def test_what_does_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PairHypernetwork(width=1, **options)  # type: ignore[arg-type]
