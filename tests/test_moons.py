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
from torch import nn

from ash import RigLWiring, SparseLinear, StaticWiring, strip_dead_units
from experiments import moons_training
from experiments.__main__ import main
from experiments.moons import row, table
from experiments.moons_options import PRESETS, WIRINGS, Options
from experiments.moons_training import Result, evaluate, make_net, moons, plain, stored, train

KEYS = {"reached_99", "mean_accuracy", "stripped", "rows", "experiment", "seed", "steps", "seconds"}


def start(out: Path, *arguments: object) -> int:
    return main(["moons", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


def net_of(wiring: str, seed: int = 0, **options: Any) -> nn.Sequential:
    resolved = Options(**options).resolved()
    x, _ = moons(resolved.points, resolved.noise, seed)
    torch.manual_seed(seed)
    return make_net(resolved, wiring, x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("wiring", "parameters"), [*((name, 101) for name in WIRINGS[:-1]), ("dense", 337)])
def test_every_net_but_the_dense_one_stores_101_parameters(wiring: str, parameters: int) -> None:
    net = net_of(wiring)
    assert stored(net) == parameters
    x, _ = moons(100, 0.1, 0)
    net.eval()
    torch.testing.assert_close(evaluate(plain(net), x), net(x))


def test_each_neuron_has_two_or_four_random_inputs_and_as_published_the_first_ones() -> None:
    for defects in (False, True):
        net = net_of("static", defects=defects)
        drawn = net[2].wiring.indices
        assert drawn[:, 0].tolist() == [i // 2 for i in range(32)]
        assert all(a != b for a, b in drawn[:, 1].reshape(16, 2).tolist())
        assert (set(drawn[:, 1].tolist()) == {0, 1}) == defects
        assert (net[4].wiring.indices.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]) == defects


def test_the_start_is_he_uniform_over_edges_and_its_lines_pass_through_points() -> None:
    net = net_of("rigl")
    x, _ = moons(100, 0.1, 0)
    for layer, bound in ((net[0].weight, math.sqrt(3)), (net[2].wiring.values, math.sqrt(3))):
        assert 0.8 * bound < layer.abs().max() <= bound
    assert net[4].wiring.values.abs().max() <= 0.5 * math.sqrt(1.5)
    nearest = net[0](x).detach().abs().min(dim=0).values
    torch.testing.assert_close(nearest, torch.zeros(16), atol=1e-5, rtol=0)
    assert not net[2].bias.any()
    candidates = net_of("top_k")[2].wiring.candidate
    assert 0.9 * math.sqrt(3) < candidates.abs().max() <= math.sqrt(3)


def test_the_demo_starts_small_with_biases_zero() -> None:
    net = net_of("static", init="uniform")
    assert all(p.abs().max() <= 0.1 for p in net.parameters())
    assert not any(net[i].bias.any() for i in (0, 2, 4))


@pytest.mark.parametrize("defects", [False, True])
def test_the_demo_grows_on_the_gradient_of_all_points_or_of_the_last(defects: bool) -> None:
    options = Options(defects=defects, rewiring="demo", init="he").resolved()
    x, y = moons(20, 0.1, 3)
    net = net_of("rigl")
    wiring = net[2].wiring
    before = {tuple(entry) for entry in wiring.indices.tolist()}
    hidden = net[1](net[0](x)).detach()
    weight = wiring.rounded().to_dense().detach().requires_grad_()
    last = slice(-1, None) if defects else slice(None)
    score = net[4](net[3](hidden @ weight.t() + net[2].bias)).squeeze(1)
    (1 - y * score).relu()[last].mean().backward()
    gradient = weight.grad.abs().clone()
    gradient[tuple(wiring.indices.t())] = -1
    smallest = {tuple(wiring.indices[i].tolist()) for i in wiring.values.detach().abs().topk(9, largest=False).indices}
    moons_training._as_in_the_demo(options, net, torch.Generator(), 19, x, y)
    assert {tuple(entry) for entry in wiring.indices.tolist()} == before
    moons_training._as_in_the_demo(options, net, torch.Generator(), 20, x, y)
    after = {tuple(entry) for entry in wiring.indices.tolist()}
    assert before - after == smallest  # floor(0.3 · (1 − 0.9 · 20/400) · 32) = 9 edges
    grown = torch.tensor(sorted(after - before))
    if gradient.max() > 0:
        assert gradient[tuple(grown.t())].min() == gradient.flatten().topk(9).values.min()
    assert (wiring.values == 0).sum() == 9
    assert not wiring.collecting


def test_a_seed_decides_all_and_stripping_keeps_the_outputs() -> None:
    options = Options(steps=41).resolved()
    one, other = (train(options, "set", 5) for _ in range(2))
    assert one.accuracy == other.accuracy and one.loss == other.loss
    x, y = moons(100, 0.1, 5)
    for whole, again in zip(one.layers, other.layers, strict=True):
        assert np.array_equal(whole[0], again[0])
    torch.testing.assert_close(evaluate(one.stripped, x), evaluate(one.layers, x), atol=1e-5, rtol=1e-5)
    assert one.accuracy == float(((evaluate(one.layers, x).squeeze(1) > 0) == (y > 0)).double().mean())
    assert one.sizes[0] == 2 and one.sizes[-1] == 1 and all(n <= 16 for n in one.sizes)


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


def test_a_run_goes_on_after_the_wirings_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = ("--wiring", "set", "static", "--quick")
    assert start(whole, *given) == 0
    trained, real = [], moons_training.train

    def stop(options: Options, wiring: str, seed: int) -> Result:
        trained.append((wiring, seed))
        if len(trained) == 4:
            raise RuntimeError("stopped")
        return real(options, wiring, seed)

    monkeypatch.setattr("experiments.moons.train", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        start(broken, *given)
    assert start(broken, *given, "--resume") == 0
    assert trained[4:] == [("static", 0), ("static", 1)]
    assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


def test_nets_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    assert start(tmp_path, "--seeds", 2, "--steps", 24, "--processes", 2) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    here = [train(Options(steps=24).resolved(), "rigl", seed) for seed in range(2)]
    assert [line["accuracy"] for line in lines] == [result.accuracy for result in here]


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
    assert start(tmp_path, "--processes", 1, *given) == 2
    assert message in capsys.readouterr().err


def test_nets_are_made_of_the_wirings_that_they_are_named_after() -> None:
    assert type(net_of("rigl")[2].wiring) is RigLWiring
    assert type(net_of("static")[4].wiring) is StaticWiring
    assert not any(isinstance(module, SparseLinear) for module in net_of("dense"))
    assert strip_dead_units(net_of("dense"))(torch.zeros(1, 2)).shape == (1, 1)
    assert dataclasses.replace(Options(), wiring=("all",)).resolved().wiring == WIRINGS
