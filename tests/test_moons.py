"""The moons experiment: its nets, its start, the demo's rewiring by hand, whole runs, pictures, resuming, errors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ash import RigLWiring, StaticWiring
from experiments.__main__ import main
from experiments.moons import row, table
from experiments.moons_nets import DenseBank, evaluate, make_nets, moons, singles, stored, strip
from experiments.moons_options import PRESETS, WIRINGS, Options
from experiments.moons_training import Result, as_in_the_demo, hinge, train

KEYS = {"reached_99", "mean_accuracy", "stripped", "rows", "experiment", "seed", "steps", "seconds"}


def start(out: Path, *arguments: object) -> int:
    return main(["moons", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


SEEDS = (0, 7)


def points() -> tuple[Tensor, Tensor]:
    x, y = zip(*(moons(100, 0.1, seed) for seed in SEEDS), strict=True)
    return torch.stack(x), torch.stack(y)


def nets_of(wiring: str, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return make_nets(Options(**options).resolved(), wiring, points()[0], SEEDS)


@pytest.mark.parametrize(("wiring", "parameters"), [*((name, 101) for name in WIRINGS[:-1]), ("dense", 337)])
def test_every_net_but_the_dense_one_stores_101_parameters(wiring: str, parameters: int) -> None:
    nets = nets_of(wiring).eval()
    assert stored(nets) == parameters
    x, _ = points()
    together = nets(x)
    assert together.shape == (2, 100, 1)
    for layers, own_x, scores in zip(singles(nets), x, together, strict=True):
        torch.testing.assert_close(evaluate(layers, own_x), scores)
        edges = sum(int((weight != 0).sum()) + len(bias) for weight, bias in layers)
        assert edges <= parameters and (edges == parameters or wiring == "gaussian")  # tuples may share an entry


def test_each_neuron_has_two_or_four_random_inputs_and_as_published_the_first_ones() -> None:
    for defects in (False, True):
        nets = nets_of("static", defects=defects)
        drawn = nets[2].wirings[1].indices
        assert drawn[:, 0].tolist() == [i // 2 for i in range(32)]
        assert all(a != b for a, b in drawn[:, 1].reshape(16, 2).tolist())
        assert (set(drawn[:, 1].tolist()) == {0, 1}) == defects
        assert (nets[4].wirings[0].indices.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]) == defects
        assert torch.equal(nets[2].wirings[0].indices, drawn) == defects


def test_the_start_is_he_uniform_over_edges_and_its_lines_pass_through_points() -> None:
    nets = nets_of("rigl")
    for values in (nets[0].weight[0], nets[2].wirings[0].values):
        assert 0.8 * math.sqrt(3) < values.abs().max() <= math.sqrt(3)
    assert nets[4].wirings[0].values.abs().max() <= 0.5 * math.sqrt(1.5)
    nearest = nets[0](points()[0]).detach().abs().min(dim=1).values
    torch.testing.assert_close(nearest, torch.zeros(2, 16), atol=1e-5, rtol=0)
    assert not nets[2].bias.any()
    candidates = nets_of("top_k")[2].wirings[0].candidate
    assert 0.9 * math.sqrt(3) < candidates.abs().max() <= math.sqrt(3)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_demo_starts_small_with_biases_zero(wiring: str) -> None:
    nets = nets_of(wiring, init="uniform").eval()
    for layers in singles(nets):
        assert all(0 < np.abs(weight).max() <= 0.2 and not bias.any() for weight, bias in layers)


@pytest.mark.parametrize("wiring", ["rigl", "static", "top_k", "dense"])
def test_a_net_trains_beside_others_as_it_does_alone(wiring: str) -> None:
    options = Options(steps=45).resolved()
    alone, beside = train(options, wiring, [7])[0], train(options, wiring, [3, 7])[1]
    assert (alone.seed, beside.seed) == (7, 7)
    for one, other in zip(alone.layers, beside.layers, strict=True):
        assert np.array_equal(one[0] != 0, other[0] != 0)
        assert np.allclose(one[0], other[0], atol=1e-4) and np.allclose(one[1], other[1], atol=1e-4)


def test_gaussian_edges_feel_the_points_of_their_own_net_alone() -> None:
    nets = nets_of("gaussian")
    x, y = points()
    hinge(nets(x), y)[0].backward()
    for layer in (2, 4):
        for gradient in (nets[layer].wiring.values.grad, nets[layer].wiring.means.offset.grad):
            mine, other = gradient.reshape(2, -1)
            assert mine.any() and not other.any()


@pytest.mark.parametrize("defects", [False, True])
def test_the_demo_grows_on_the_gradient_of_all_points_or_of_the_last(defects: bool) -> None:
    options = Options(defects=defects, rewiring="demo").resolved()
    x, y = points()
    nets = nets_of("rigl")
    wiring = nets[2].wirings[1]
    before = {tuple(entry) for entry in wiring.indices.tolist()}
    layers = [[torch.tensor(part) for part in layer] for layer in singles(nets)[1]]
    weight = layers[1][0].requires_grad_()
    last = slice(-1, None) if defects else slice(None)
    hinge(evaluate(layers, x[1, last]), y[1, last]).backward()
    gradient = weight.grad.abs().clone()
    gradient[tuple(wiring.indices.t())] = -1
    smallest = {tuple(wiring.indices[i].tolist()) for i in wiring.values.detach().abs().topk(9, largest=False).indices}
    as_in_the_demo(options, nets, torch.Generator(), 19, x, y)
    assert {tuple(entry) for entry in wiring.indices.tolist()} == before
    as_in_the_demo(options, nets, torch.Generator(), 20, x, y)
    after = {tuple(entry) for entry in wiring.indices.tolist()}
    assert before - after == smallest  # floor(0.3 · (1 − 0.9 · 20/400) · 32) = 9 edges
    grown = torch.tensor(sorted(after - before))
    assert gradient[tuple(grown.t())].min() >= gradient.flatten().topk(9).values.min() - 1e-7
    assert (wiring.values == 0).sum() == 9
    assert not wiring.collecting


def test_a_seed_decides_all_and_stripping_keeps_the_outputs() -> None:
    options = Options(steps=41).resolved()
    (one,), (other,) = (train(options, "set", [5]) for _ in range(2))
    assert one.accuracy == other.accuracy and one.loss == other.loss
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(one.layers, other.layers, strict=True))
    x, y = moons(100, 0.1, 5)
    scores = evaluate(one.layers, x)
    torch.testing.assert_close(evaluate(one.stripped, x), scores, atol=1e-6, rtol=1e-5)
    assert one.accuracy == float(((scores.squeeze(1) > 0) == (y > 0)).double().mean())
    assert one.loss == pytest.approx(float((1 - y * scores.squeeze(1)).relu().mean()))
    assert one.sizes[0] == 2 and one.sizes[-1] == 1 and all(n <= 16 for n in one.sizes)


def test_stripping_takes_units_away_that_no_path_passes() -> None:
    first = (np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype="f"), np.array([0.0, 0.5, 3.0], dtype="f"))
    last = (np.array([[0.0, 4.0, 2.0]], dtype="f"), np.array([1.0], dtype="f"))
    (weight, bias), (head, shift) = strip([first, last])
    assert (weight.tolist(), bias.tolist()) == ([[0.0, 2.0]], [0.5])
    assert (head.tolist(), shift.tolist()) == ([[4.0]], [7.0])  # the constant unit gave 2 · relu(3)


def test_rows_count_seeds_and_name_those_below() -> None:
    layers = [(np.ones((3, 2)), np.zeros(3)), (np.array([[1.0, 0.0, 2.0]]), np.zeros(1))]
    results = [Result(7 + i, a, 0.1 * i, 101, layers, layers) for i, a in enumerate((1.0, 0.99, 0.98, 1.0))]
    figures = row("rigl", False, results)
    assert (figures["reached_99"], figures["reached_100"], figures["below_99"]) == (0.75, 0.5, [9])
    assert figures["mean_accuracy"] == pytest.approx(0.9925)
    assert figures["stripped"]["first"] == [2, 3, 1]
    assert figures["stripped"]["parameters"] == 6 + 3 + 2 + 1
    line = table([figures | {"seconds": 3.0}]).splitlines()[-1]
    assert line == "| rigl | 75 | 50 | 99.25 | 98 | 101 | 2-3-1 | 3 |"


def test_a_quick_run_of_all_wirings_leaves_table_and_pictures(tmp_path: Path) -> None:
    assert start(tmp_path, "--wiring", "all", "--quick") == 0
    summary = content(tmp_path)
    assert summary.keys() >= KEYS
    assert [each["wiring"] for each in summary["rows"]] == list(WIRINGS)
    assert {each["parameters"] for each in summary["rows"]} == {101, 337}
    assert summary["reached_99"] == summary["rows"][0]["reached_99"]
    for name in ("topology.png", "boundaries.png", "accuracy.png", "moons.md"):
        assert (tmp_path / name).stat().st_size > 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(WIRINGS)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without pictures, which take most of a short one's time."""
    monkeypatch.setattr("experiments.moons.draw", lambda *_: None)


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_judges_the_nets_of_a_run_again(tmp_path: Path) -> None:
    assert start(tmp_path, "--wiring", "gaussian", "rigl", "--seed", 3, "--quick") == 0
    assert start(tmp_path, "--evaluate", tmp_path) == 0
    trained, judged = content(tmp_path)["rows"], content(tmp_path / "evaluation")["rows"]
    names = ("wiring", "defects", "reached_99", "mean_accuracy", "least", "below_99")
    assert judged == [{name: row[name] for name in names} for row in trained]
    assert start(tmp_path / "other", "--evaluate", tmp_path / "nowhere") == 2


@pytest.mark.usefixtures("undrawn")
def test_a_run_goes_on_after_the_wirings_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = ("--wiring", "set", "static", "--quick")
    assert start(whole, *given) == 0
    trained: list[tuple[str, list[int]]] = []

    def stop(options: Options, wiring: str, seeds: Any) -> list[Result]:
        trained.append((wiring, list(seeds)))
        if len(trained) == 2:
            raise RuntimeError("stopped")
        return train(options, wiring, seeds)

    monkeypatch.setattr("experiments.moons.train", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        start(broken, *given)
    assert start(broken, *given, "--resume") == 0
    assert trained == [("set", [0, 1]), ("static", [0, 1]), ("static", [0, 1])]
    assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


@pytest.mark.usefixtures("undrawn")
def test_seeds_are_trained_some_at_a_time_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.moons.TOGETHER", 2)
    assert start(tmp_path, "--seed", 5, "--seeds", 3, "--steps", 2, "--wiring", "dense") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [5, 6, 7]


@pytest.mark.usefixtures("undrawn")
def test_the_preset_is_the_demo_as_published_and_mended(tmp_path: Path) -> None:
    options = PRESETS["blog"](Options())
    assert (options.optimizer, options.lr, options.init, options.l2, options.every) == ("sgd", 1.0, "uniform", 1e-4, 20)
    assert start(tmp_path, "--preset", "blog", "--quick") == 0
    rows = content(tmp_path)["rows"]
    assert [(each["wiring"], each["defects"]) for each in rows] == [
        ("rigl", True), ("rigl", False), ("static", True), ("static", False)]


@pytest.mark.parametrize(("given", "message"), [
    (("--seeds", 0), "--seeds=0"),
    (("--fraction", 1.5), "--fraction 1.5"),
    (("--every", 0), "--every=0"),
    (("--points", 1), "--points 1"),
    (("--freeze", 2), "--freeze 2"),
    (("--every", 500), "expected end >= 500"),
])
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, given: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, *given) == 2
    assert message in capsys.readouterr().err


def test_nets_are_made_of_the_wirings_that_they_are_named_after() -> None:
    assert {type(each) for each in nets_of("rigl")[2].wirings} == {RigLWiring}
    assert {type(each) for each in nets_of("static")[4].wirings} == {StaticWiring}
    assert {type(each) for each in nets_of("dense")[::2]} == {DenseBank}
    assert dataclasses.replace(Options(), wiring=("all",)).resolved().wiring == WIRINGS
