"""Free layers of the benchmark: the dense oracle, the plan, and a figure of each kind."""

from __future__ import annotations

from typing import Any

import pytest

from ash import jit
from experiments import benchmark_cases, benchmark_free, benchmark_oracle
from experiments.benchmark_case import Case
from experiments.benchmark_free import check_free, free_wiring, plan, tuples

TINY: dict[str, Any] = {"size": 30, "batch": 4, "budget": 0.0, "most": 1}
each_form = pytest.mark.parametrize("fixed", [False, True], ids=["free", "fixed"])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_free, "SMALL", 300)
    monkeypatch.setitem(benchmark_cases.WARM, "batch", 4)
    monkeypatch.setattr(jit, "LEAST_POINTS", 1 << 30)


@each_form
def test_the_oracle_accepts_the_layer(fixed: bool) -> None:
    assert check_free(fixed) <= benchmark_oracle.TOLERANCE


@each_form
def test_the_oracle_finds_a_layer_that_is_off(fixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    right = benchmark_free.linear
    monkeypatch.setattr(benchmark_free, "linear", lambda x, w, b: right(x, 1.01 * w, b))
    with pytest.raises(AssertionError, match="off by"):
        check_free(fixed)


@each_form
def test_a_layer_has_eight_points_a_tuple(fixed: bool) -> None:
    weight = free_wiring(30, tuples(30), fixed)()
    assert weight.indices.shape == (8 * 183, 2)
    rows = weight.indices[:, 0].reshape(183, 8)
    assert bool((rows == rows[:, :1]).all()) == fixed


def test_the_plan() -> None:
    bars = {row.name: row.bar for row, _ in plan(False)}
    assert (bars["free_100000_bare"], bars["free_fixed_100000_bare"]) == (2.5, 2.0)
    assert all(case.size == 16_384 for _, case in plan(False))


@pytest.mark.parametrize("rival", ["bare", "limit"])
@pytest.mark.parametrize("layer", ["free", "free_fixed"])
def test_a_ratio(layer: str, rival: str) -> None:
    result = benchmark_cases.run(Case(layer, "ratio", rival=rival, **TINY))
    assert result["low"] <= result["median"] <= result["high"]
    assert 0 <= result["error"] <= benchmark_oracle.TOLERANCE
