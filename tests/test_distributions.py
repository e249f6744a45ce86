"""Counts of entries per layer: small cases worked out by hand, and what holds for all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ash import UserError
from ash.distributions import DISTRIBUTIONS, LayerSize, allot, share_out

LENET = {"a": LayerSize(300, 784), "b": LayerSize(100, 300), "c": LayerSize(10, 100)}


def test_uniform_by_hand() -> None:
    """5 % of 235,200, 30,000 and 1,000."""
    assert allot(LENET, 0.05, "uniform") == {"a": 11760, "b": 1500, "c": 50}


def test_er_by_hand() -> None:
    """Sums of sizes 6, 4, 2 and 12 are the proportions of 12 of 24 entries."""
    layers = {"a": LayerSize(2, 4), "b": LayerSize(2, 2), "c": LayerSize(1, 1), "d": LayerSize(11, 1)}
    assert allot(layers, 0.5, "er") == {"a": 3, "b": 2, "c": 1, "d": 6}


def test_a_layer_that_would_overflow_is_full_and_the_rest_goes_to_the_others() -> None:
    """LeNet at 5 %: 13,310 entries in proportion 1,084 : 400 : 110; c gets 918.507 of 1,000, which fits. At
    10 % 26,620: c would get 1,837 and is full; 25,620 are divided 1,084 : 400."""
    assert allot(LENET, 0.05, "er") == {"a": 9051, "b": 3340, "c": 919}
    assert allot(LENET, 0.10, "er") == {"a": 18714, "b": 6906, "c": 1000}


def test_kernels_by_hand() -> None:
    """er sees channels only: (4 + 2) · 9 = 54 of 72 and (6 + 6) of 36; erk 4 + 2 + 3 + 3 = 12 and 12."""
    layers = {"conv": LayerSize(4, 2, (3, 3)), "linear": LayerSize(6, 6)}
    assert allot(layers, 22 / 108, "er") == {"conv": 18, "linear": 4}
    assert allot(layers, 22 / 108, "erk") == {"conv": 11, "linear": 11}
    assert allot(LENET, 0.02, "er") == allot(LENET, 0.02, "erk")


def test_dense_layers_count_and_the_others_share_what_they_leave() -> None:
    """10 of 20 entries: b takes its 4, 6 remain for a and c, of 8 weights each."""
    layers = {"a": LayerSize(2, 4), "b": LayerSize(2, 2), "c": LayerSize(4, 2)}
    assert allot(layers, 0.5, "uniform", dense=["b"]) == {"a": 3, "b": 4, "c": 3}
    assert allot(layers, 1.0, "uniform", dense=["a", "b", "c"]) == {"a": 8, "b": 4, "c": 8}


def test_remainders_are_rounded_by_size() -> None:
    """7 in proportion 1 : 2 : 4 with a total of 5: 0.71, 1.43, 2.86 → 1, 1, 3."""
    assert share_out([1, 2, 4], [10, 10, 10], 5) == [1, 1, 3]
    assert share_out([1, 1], [9, 9], 3) == [2, 1]
    assert share_out([0, 1], [9, 2], 5) == [3, 2]
    assert share_out([5], [3], 9) == [3]
    assert share_out([1, 1, 1], [4, 0, 4], 0, 1) == [1, 0, 1]


def test_every_layer_keeps_an_entry() -> None:
    assert allot(LENET, 1e-9) == {"a": 1, "b": 1, "c": 1}
    assert allot(LENET, 1.0) == {name: layer.weights for name, layer in LENET.items()}


def test_a_distribution_may_be_a_function() -> None:
    counts = allot(LENET, 0.01, lambda layer: 1.0)
    assert counts == {"a": 888, "b": 887, "c": 887}


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (3,), (3, 3), (1, 1)]))


@settings(max_examples=50)
@given(st.lists(sizes, min_size=1, max_size=8), st.floats(0.001, 1), st.sampled_from(sorted(DISTRIBUTIONS)))
def test_totals_are_exact_and_bounds_kept(
    drawn: list[tuple[int, int, tuple[int, ...]]], density: float, name: str
) -> None:
    layers = [LayerSize(*size) for size in drawn]
    named = {str(i): layer for i, layer in enumerate(layers)}
    counts = allot(named, density, name)
    assert list(counts) == list(named)
    assert sum(counts.values()) == max(len(layers), round(density * sum(layer.weights for layer in layers)))
    assert all(1 <= counts[key] <= layer.weights for key, layer in named.items())
    wanted = {key: counts[key] / DISTRIBUTIONS[name](layer) for key, layer in named.items()}
    free = [key for key, layer in named.items() if 1 < counts[key] < layer.weights]
    for key in free:  # within the rounding of one entry all free layers have the same factor
        slack = max(1 / DISTRIBUTIONS[name](layer) for layer in layers)
        assert max(wanted[other] for other in free) - wanted[key] <= 2 * slack


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_bad_density(density: float) -> None:
    with pytest.raises(UserError, match="expected a number above 0 and at most 1"):
        allot(LENET, density)


def test_bad_names() -> None:
    with pytest.raises(UserError, match="unknown distribution 'erdos'; expected one of 'er', 'erk', 'uniform'"):
        allot(LENET, 0.1, "erdos")
    with pytest.raises(UserError, match=r"dense layers \['z'\]; expected names among \['a', 'b', 'c'\]"):
        allot(LENET, 0.1, dense=["z"])
    with pytest.raises(UserError, match="no layers"):
        allot({}, 0.1)
    with pytest.raises(UserError, match=r"density=0.1 with \['a'\] dense leaves 0 entries for 2 other layers"):
        allot(LENET, 0.1, dense=["a"])
