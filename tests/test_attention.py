"""The attention experiment: its nets and their cost, whole runs, resuming, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ash.checks import UserError
from experiments.__main__ import main
from experiments.attention import Options, build, check, enlarge
from experiments.attention_models import FullNet, GlimpseNet, ViewNet, flops
from experiments.attention_training import Plan, look

SMALL = ("--quick", "--epochs", "1", "--timing", "0", "--canvas", "50", "--side", "8", "--spacing", "2")


def start(out: Path, *arguments: object) -> int:
    return main(["attention", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attention")
    assert start(out, *SMALL, "--timing", "100") == 0
    return out


def test_a_run_leaves_its_figures_and_pictures(finished: Path) -> None:
    summary = content(finished)
    for key in ("test_accuracy", "test_accuracy_sampled", "baseline_full", "baseline_down"):
        assert 0 <= summary[key] <= 1
    assert set(summary["flops"]) == {"glimpses", "full", "view"}
    assert summary["flops_share"] == pytest.approx(summary["flops"]["glimpses"] / summary["flops"]["full"])
    assert summary["step_ratio"] > 0
    assert set(summary["step_seconds"]) == {"100"} or len(summary["step_seconds"]) == 2
    for name in ("glimpses.png", "accuracy.png"):
        assert (finished / name).stat().st_size > 2000
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["net"] for line in lines] == ["glimpses", "full", "view"]


def test_pixels_read_are_those_of_view_and_glimpses(finished: Path) -> None:
    summary = content(finished)
    assert 25**2 + 8**2 <= summary["pixels_read"] <= 25**2 + 2 * 8**2
    assert summary["pixels_share"] == pytest.approx(summary["pixels_read"] / 50**2)


def test_flops_of_the_view_net_by_hand() -> None:
    net = ViewNet(10, (2, 3, 4))
    multiply_adds = 10 * 10 * 25 * 2 + 5 * 5 * 18 * 3 + 5 * 5 * 27 * 3 + 3 * 3 * 27 * 4 + 40
    assert flops(net, torch.zeros(1, 20, 20), torch.zeros(1, 10, 10)) == 2 * multiply_adds


def test_by_default_glimpses_cost_at_most_15_percent() -> None:
    options = Options()
    nets = build(options, 10, 100)
    canvas, view = torch.zeros(1, 100, 100), torch.zeros(1, 25, 25)
    costs = {name: flops(net, canvas, view) for name, net in nets.items()}
    assert costs["glimpses"] <= 0.15 * costs["full"]
    assert costs["glimpses"] <= costs["view"] <= 1.1 * costs["glimpses"]
    assert options.view**2 + options.glimpses * options.side**2 <= 0.15 * options.canvas**2


def glimpse_net() -> GlimpseNet:
    return GlimpseNet(40, 10, 2, 6, 1.0, 10, 1.0)


def test_the_classes_depend_on_pixels_of_the_glimpses_only() -> None:
    net = glimpse_net().eval()
    canvas, view = torch.rand(2, 40, 40), torch.rand(2, 10, 10)
    before = net(canvas, view)
    boxes = net.boxes(view).flatten(1, 2)
    elsewhere = torch.ones(2, 40, 40, dtype=torch.bool)
    for i in range(2):
        elsewhere[i, boxes[i, :, 0], boxes[i, :, 1]] = False
    assert torch.equal(net(torch.where(elsewhere, 9.0, canvas), view), before)
    assert not torch.equal(net(torch.where(elsewhere, canvas, 9.0), view), before)


def test_the_nets_give_log_probabilities_and_logits() -> None:
    canvas, view = torch.rand(3, 40, 40), torch.rand(3, 10, 10)
    told = glimpse_net()(canvas, view)
    torch.testing.assert_close(told.exp().sum(1), torch.ones(3))
    assert FullNet(10)(canvas, view).shape == ViewNet(10)(canvas, view).shape == (3, 10)


def test_the_hint_trains_the_locator_and_the_glimpses_do() -> None:
    for which in ("hint", "classes"):
        net = glimpse_net().train()
        told = net(torch.rand(3, 40, 40), torch.rand(3, 10, 10))
        (net.hint() if which == "hint" else told).square().sum().backward()
        weight = net.locator.heat.head.weight.grad
        assert weight is not None
        assert weight[0].abs().sum() > 0
        assert (weight[1:].abs().sum() > 0) == (which == "classes")  # only pixels tell where exactly


def test_a_view_is_made_of_averages() -> None:
    canvases = torch.randint(0, 256, (2, 20, 20), dtype=torch.uint8)
    x, view = look(canvases, 5)
    torch.testing.assert_close(x, canvases.float() / 255)
    torch.testing.assert_close(view[1, 2, 3], 2 * x[1, 8:12, 12:16].mean())


def test_the_rate_rises_and_falls() -> None:
    plan = Plan(2, 10, 1e-2, 0.5, 0.5, 0)
    rates = [plan.rate(step, 1000) for step in range(200)]
    assert rates[0] < rates[20] < rates[49]
    assert max(rates) <= 1e-2
    assert rates[-1] < 1e-5
    assert plan.freeze_at(1000) == 100


def test_enlarged_digits_keep_their_range() -> None:
    small = torch.tensor([[[0, 16], [8, 4]]], dtype=torch.uint8)
    large = enlarge(small)
    assert large.shape == (1, 6, 6)
    assert large[0, 0, -1] == 240
    assert large[0, -1, 0] == 120


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--view", "30"), "--view 30 of a canvas of 100; expected a number that divides it"),
        (("--nets", "glimpses", "other"), "--nets glimpses other; expected different ones of"),
        (("--freeze", "1.5"), "--freeze 1.5; expected a share"),
        (("--scale-end", "3"), "--scale-end 3.0; expected at most --scale 1.0"),
        (("--canvas", "20", "--view", "10"), "--canvas 20; expected"),
        (("--side", "0"), "--side=0; expected a number above 0"),
        (("--data-dir", "nowhere"), "nowhere is no folder"),
    ],
)
def test_wrong_use_is_said_plainly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert start(tmp_path, "--quick", *flags) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_cache_ends_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "state.json").write_text("{}")
    assert start(tmp_path, *SMALL, "--cache", cache) == 2
    assert "--regenerate" in capsys.readouterr().err


def test_glimpses_larger_than_the_canvas_are_refused() -> None:
    options = Options(side=50, spacing=3.0)
    check(options)
    with pytest.raises(UserError, match="choose a smaller side or spacing"):
        build(options, 10, 100)
