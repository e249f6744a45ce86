"""The benchmark's crossover with dense: where the search ends, and how the choice is judged."""

from __future__ import annotations

import pytest
import torch

from experiments import benchmark_crossover, benchmark_oracle
from experiments.benchmark_case import Case
from experiments.benchmark_crossover import LAYERS, crossover, measure_auto, plan

CASE = Case("crossover", "ratio", 1024, budget=0.0, most=1)


def pretend(monkeypatch: pytest.MonkeyPatch, power: float, middle: float) -> None:
    """Sparse steps that take (density / middle) ** power times as long as dense ones."""
    monkeypatch.setattr(benchmark_crossover, "ratio", lambda case, density, linear=False: (density / middle) ** power)


@pytest.mark.parametrize("middle", [0.002, 0.03, 0.5])
def test_the_search_ends_at_the_crossover(monkeypatch: pytest.MonkeyPatch, middle: float) -> None:
    pretend(monkeypatch, 0.5, middle)
    assert crossover(CASE) == pytest.approx(middle, rel=0.06)


def test_no_crossover(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1, 1e-4)
    assert crossover(CASE) == 0.0
    pretend(monkeypatch, 1, 2.0)
    assert crossover(CASE) == 1.0


def test_a_choice_is_judged_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024² is chosen to be dense from a density of 0.6 on; at 0.3 / 1.5 and 0.3 · 1.5 it is sparse."""
    pretend(monkeypatch, 1, 0.3)
    found = measure_auto(CASE)
    assert found["low"] == pytest.approx(1 / 1.5, rel=0.1)
    assert found["median"] == found["high"] == pytest.approx(1.5, rel=0.1)
    pretend(monkeypatch, 1, 0.65)
    assert measure_auto(CASE)["median"] < 1
    pretend(monkeypatch, 1, 1e-4)
    assert measure_auto(CASE)["median"] == pytest.approx(0.1 / 1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_figure_of_a_tiny_layer(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    monkeypatch.setattr(benchmark_oracle, "BATCH", 8)
    monkeypatch.setattr(benchmark_crossover, "HALVINGS", 1)
    state = torch.get_rng_state()
    case = Case(layer, "ratio", 40, batch=4, budget=0.0, most=1)
    assert LAYERS[layer].check(case) < 1e-3
    assert torch.equal(torch.get_rng_state(), state)
    measure = LAYERS[layer].measure
    assert measure is not None
    found = measure(case)
    assert 0 <= found["low"] <= found["median"] <= found["high"]


def test_rows_have_layers_and_one_bar_for_each_size() -> None:
    pairs = plan(False)
    assert {case.layer for _, case in pairs} == set(LAYERS)
    assert [row.bar for row, _ in pairs if row.name.endswith("_auto")] == [1.15] * len(benchmark_crossover.SIZES)
    assert len({row.name for row, _ in pairs}) == len(pairs) == 3 * len(benchmark_crossover.SIZES)
