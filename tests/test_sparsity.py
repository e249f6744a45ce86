"""The experiment `sparsity`: its nets, a quick run, going on after a stop, evaluation, and what it reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.__main__ import main
from experiments.data import digits, standardise
from experiments.runs import Run
from experiments.sparsity import Options, cells_of, recipe_of, train
from experiments.sparsity_nets import RECIPES, Recipe, Task, build, restored, stored, wirings
from experiments.sparsity_report import Cell, errors, grouped, table
from experiments.sparsity_training import Trial, long_training
from tests.page_data import held

DIGITS = Task((8, 8), 10)
SMALL: dict[str, Any] = {"density": (0.2,), "seeds": 1, "epochs": 3, "device": "cpu"}


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("wiring", sorted(RECIPES))
def test_a_net_has_the_entries_that_its_density_says(wiring: str) -> None:
    model = build(wiring, Task((28, 28), 10), 0.05, "er", 100)
    counts = [each.stored_entries() for each in wirings(model).values()]
    assert counts == ([] if wiring == "dense" else [9051, 3340, 919])
    assert model(torch.randn(3, 28, 28)).shape == (3, 10)


def test_the_first_layer_of_gaussians_sees_rows_and_columns() -> None:
    first, second, third = wirings(build("gaussian", Task((28, 28), 10), 0.05, "er", 100)).values()
    assert (first.in_shape, second.in_shape, third.in_shape) == ((28, 28), (300,), (100,))
    per_unit = torch.bincount(first.rounded().indices[:, 0], minlength=300)
    assert per_unit.min() == 30 and per_unit.max() == 31


@pytest.mark.parametrize("wiring", sorted(RECIPES))
def test_the_inference_form_is_the_net(wiring: str) -> None:
    torch.manual_seed(0)
    model = build(wiring, DIGITS, 0.2, "er", 100).eval()
    x = torch.randn(7, 8, 8)
    assert torch.allclose(restored(stored(model), DIGITS)(x), model(x), atol=1e-5)


def trial_of_two(wiring: str, seed: int, recipe: Recipe | None = None, epochs: int = 2) -> Trial:
    """Two nets of different density and seed."""
    torch.manual_seed(seed)
    nets = [build(wiring, DIGITS, density, "er", 26) for density in (0.1, 0.2)]
    return Trial(nets, RECIPES[wiring] if recipe is None else recipe, standardise(digits()), epochs, [3, 4])


@pytest.mark.parametrize("wiring", ["static", "rigl", "set", "snfs", "dsr", "top_k", "dense"])
def test_nets_side_by_side_are_as_alone(wiring: str) -> None:
    """No number of one net depends on the other, and both have the gradients of their own batches."""
    recipe = Recipe(every=5, average_over=2)
    both = trial_of_two(wiring, 0, recipe)
    before = copy.deepcopy(both.nets)
    both.run_epoch()
    for i in (0, 1):
        single = Trial([before[i]], recipe, standardise(digits()), 2, [3 + i])
        single.run_epoch()
        for one, other in zip(stored(both.nets[i]), stored(single.nets[0]), strict=True):
            assert all(torch.allclose(part, other[name], atol=1e-4) for name, part in one.items())


@pytest.mark.parametrize("wiring", ["rigl", "snfs", "top_k", "gaussian"])
def test_going_on_from_a_checkpoint_changes_nothing(wiring: str) -> None:
    """Two epochs in one go, or one, a new process, and the other: the same net bit for bit."""
    states = []
    for stop in (False, True):
        trial = trial_of_two(wiring, 0)
        trial.run_epoch()
        if stop:
            state = trial.state()
            trial = trial_of_two(wiring, 5)
            trial.resume(state)
        trial.run_epoch()
        rates = [explorer.rate for explorer in trial.explorers]
        states.append(trial.model.state_dict() | {"explored": torch.tensor(rates)})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_dynamic_wirings_explore_and_static_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.sparsity_training.LOOK", 10)
    found = {}
    for wiring in ("static", "set"):
        trial = trial_of_two(wiring, 0, Recipe(every=10), epochs=3)
        before = [explorer.rate for explorer in trial.explorers]
        for _ in range(3):
            trial.run_epoch()
        found[wiring] = [explorer.rate / rate for explorer, rate in zip(trial.explorers, before, strict=True)]
    assert found["static"] == [1, 1]
    assert min(found["set"]) > 1.05


def test_a_run_stopped_between_nets_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(wiring=("static", "rigl"), out=tmp_path, **SMALL)
    images = standardise(digits())
    with Run("sparsity", options) as run, monkeypatch.context() as patch:
        calls = []

        def stopping(trial: Trial) -> list[float]:
            calls.append(1)
            if len(calls) == 6:  # in the last epoch of the second net, a checkpoint after the first two
                raise KeyboardInterrupt
            return original(trial)

        original = Trial.run_epoch
        patch.setattr(Trial, "run_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(run.options, images, run)
    options.resume = True
    with Run("sparsity", options) as run:
        calls = []
        monkeypatch.setattr(Trial, "run_epoch", lambda trial: (calls.append(1), original(trial))[1])
        figures, seen = train(run.options, images, run)
    assert len(calls) == 1
    with Run("sparsity", Options(wiring=("rigl",), out=tmp_path / "other", **SMALL)) as run:
        alone, _ = train(run.options, images, run)
    cell = Cell("rigl", 0.2, 0)
    assert figures[cell]["test_error"] == alone[cell]["test_error"]
    assert [step for step, _, _ in seen["rigl"]] == [0, 13, 2 * 13, 3 * 13]
    assert torch.equal(seen["static"][0][1], seen["static"][-1][1])
    assert not torch.equal(seen["static"][0][2], seen["static"][-1][2])


def test_a_quick_run_and_its_evaluation(tmp_path: Path) -> None:
    arguments = ["--wiring", "rigl", "top_k", "gaussian", "dense", "--quick", "--out", str(tmp_path)]
    assert main(["sparsity", *arguments]) == 0
    summary = summary_of(tmp_path)
    rows = {row["wiring"]: row for row in summary["rows"]}
    assert list(rows) == ["rigl", "top_k", "gaussian", "dense"]
    assert set(rows["rigl"]) == {"wiring", "density", "test_error", "spread", "test_errors", "validation_error",
                                 "entries", "stored_numbers", "seconds", "explored"}  # fmt: skip
    assert rows["rigl"]["stored_numbers"] == 2 * rows["rigl"]["entries"] == 2 * round(0.05 * 50_200)
    assert rows["dense"]["stored_numbers"] == 64 * 300 + 300 * 100 + 100 * 10
    assert rows["dense"]["explored"] == 1
    assert (tmp_path / "errors.png").stat().st_size > 10_000
    assert (tmp_path / "pixels.png").stat().st_size > 10_000
    tracks = held(tmp_path / "index.html")["tracks"]
    assert [(track["kind"], track["sizes"]) for track in tracks] == 3 * [("edges", [64, 300])]
    assert all(len(track["steps"]) == 3 and track["counts"][0][0] > 900 for track in tracks)
    assert tracks[1]["counts"][1][1] > 0
    assert (tmp_path / "table.md").read_text().count("\n") == 6
    assert main(["sparsity", "--evaluate", str(tmp_path), "--quick", "--out", str(tmp_path)]) == 0
    again = summary_of(tmp_path / "evaluation")["rows"]
    assert [row["test_error"] for row in again] == [row["test_error"] for row in summary["rows"]]
    assert (tmp_path / "summary.json").exists()


def test_options_take_the_place_of_a_recipe() -> None:
    options = Options(wiring=("rigl", "dense"), lr=0.5, every=7, seed=100, seeds=2)
    recipe = recipe_of(options, "rigl")
    assert (recipe.lr, recipe.every, recipe.batch) == (0.5, 7, RECIPES["rigl"].batch)
    cells = cells_of(options)
    assert cells["rigl"][:3] == [Cell("rigl", 0.01, 100), Cell("rigl", 0.01, 101), Cell("rigl", 0.02, 100)]
    assert cells["dense"] == [Cell("dense", 1.0, 100), Cell("dense", 1.0, 101)]
    assert len(cells["rigl"]) == 6


def test_means_and_spreads() -> None:
    figures = {Cell("set", 0.05, seed): {"test_error": error} for seed, error in enumerate((0.01, 0.02, 0.03))}
    ((key, cells),) = grouped(figures)
    assert key == ("set", 0.05)
    assert errors(cells) == {"test_error": 0.02, "spread": pytest.approx(0.01), "test_errors": [0.01, 0.02, 0.03]}
    assert errors(cells[:1])["spread"] == 0


def test_the_table() -> None:
    row = {"wiring": "set", "density": 0.05, "test_error": 0.0153, "spread": 0.0004, "validation_error": 0.02,
           "stored_numbers": 26620, "seconds": 71.4, "explored": 0.4}  # fmt: skip
    assert table([row]).splitlines() == [
        "| wiring | % of weights | test error % | spread | validation error % | stored numbers | seconds | explored |",
        "|---|---|---|---|---|---|---|---|",
        "| set | 5 | 1.53 | 0.04 | 2.00 | 26,620 | 71 | 0.40 |",
    ]


def test_long_trainings_use_compiled_kernels_and_leave_the_threshold_as_it_was() -> None:
    from ash.backends import compiled

    before = compiled.LEAST_WORK
    with long_training():
        assert compiled.LEAST_WORK == 0 < before
    assert before == compiled.LEAST_WORK


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--density", "0"], "--density 0.0; expected shares above 0 and at most 1"),
        (["--density", "0.5", "1.5"], "--density 1.5"),
        (["--seeds", "0"], "--seeds 0; expected at least 1"),
        (["--lr", "0"], "--lr=0.0; expected a number above 0"),
        (["--fraction", "2"], "--fraction 2.0; expected a share from 0 to 1"),
        (["--evaluate", "nowhere"], "--evaluate nowhere: no such folder; expected that of a run"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sparsity", *arguments, "--quick", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
