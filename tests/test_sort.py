"""The sorting experiment: loss and judge against dense oracles, the sorters, the whole of it for a few steps."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ash import UserError
from experiments.__main__ import main
from experiments.runs import restore
from experiments.sort_options import BLOG_FRAMES, PRESETS, Options
from experiments.sorting_task import (
    Sorter,
    channels,
    is_sorting,
    judge,
    make_layer,
    make_optimizer,
    nearest_gaps,
    sorting_loss,
)

CPU = torch.device("cpu")
KINDS = [
    ("mlp", "inputs"),
    ("mlp", "outputs"),
    ("mlp", "none"),
    ("set", "inputs"),
    ("pairs", "inputs"),
    ("comparator", "inputs"),
    ("pairs", "outputs"),
]


def options(**given: Any) -> Options:
    return Options(**{"size": 4, "quick": True, **given}).resolved()


def permutations(x: torch.Tensor) -> torch.Tensor:
    return torch.eye(x.shape[1])[x.argsort(1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 1}, "--size 1"),
        ({"batch": 0}, "--batch 0"),
        ({"scale_start": -1.0}, "--scale-start -1.0"),
        ({"gap_floor": -1.0}, "--gap-floor"),
        ({"hidden": ()}, "--hidden"),
        ({"template": "none", "hypernetwork": "set"}, "use --hypernetwork mlp"),
        ({"template": "outputs", "hypernetwork": "comparator"}, "use mlp, set or pairs"),
    ],
)
def test_impossible_options(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(**given)


def test_what_is_given_stays() -> None:
    assert options(hidden=(3,), batch=7, channels=(1.0,)).hidden == (3,)
    assert options(batch=7).batch == 7 and options(size=32, hypernetwork="set").batch == 64
    assert Options(steps=9).resolved().steps == 9 and options(steps=1000).steps == 30


def test_the_blogs_preset_is_the_blogs_setting() -> None:
    preset = PRESETS["blog"](Options()).resolved()
    assert (preset.size, preset.batch, preset.template, preset.kernel) == (3, 64, "none", "gaussian")
    assert preset.frames == BLOG_FRAMES == (7000, 7050, 7100, 7150) and preset.steps == 7150


def test_gaps_and_channels() -> None:
    ordered = torch.tensor([[0.1, 0.2, 0.5, 0.9]])
    torch.testing.assert_close(nearest_gaps(ordered), torch.tensor([[0.1, 0.1, 0.3, 0.4]]))
    both = channels(ordered, (3.0,))
    torch.testing.assert_close(both, torch.stack([ordered, (3 * ordered).sin(), (3 * ordered).cos()], -1))


@pytest.mark.parametrize(("hypernetwork", "template"), KINDS)
def test_a_sorter_emits_a_tuple_for_each_number(hypernetwork: str, template: str) -> None:
    layer = make_layer(options(hypernetwork=hypernetwork, template=template))
    x = torch.rand(6, 4)
    rounded = layer.wiring.rounded_indices(x)  # type: ignore[operator]
    assert rounded.shape == (6, 4, 2)
    if template != "none":
        column = {"inputs": 1, "outputs": 0}[template]
        assert torch.equal(rounded[..., column], torch.arange(4).expand(6, 4))
    loss = sorting_loss(layer, x, options(hypernetwork=hypernetwork, template=template))
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("hypernetwork", ["set", "pairs", "comparator"])
def test_sorters_of_sets_are_equivariant(hypernetwork: str) -> None:
    wiring = make_layer(options(hypernetwork=hypernetwork)).wiring
    x, order = torch.rand(5, 4), torch.randperm(4)
    here, there = (wiring.tuples(z).means for z in (x, x[:, order]))  # type: ignore[operator]
    torch.testing.assert_close(here[:, order], there, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", ["reverse", "forward", "both"])
@pytest.mark.parametrize("gap_floor", [0.0, 1e-2])
def test_the_loss_against_the_dense_matrix(loss: str, gap_floor: float) -> None:
    chosen = options(loss=loss, channels=(3.0,), gap_floor=gap_floor)
    layer = make_layer(chosen).eval()
    x = torch.rand(6, 4)
    dense = layer.wiring(x).to_dense()
    ordered, order = x.sort(1)
    given, wanted = channels(x, (3.0,)), channels(ordered, (3.0,))
    unit = nearest_gaps(ordered) + gap_floor if gap_floor else torch.ones_like(x)
    forward = ((dense @ given - wanted).abs().mean(-1) / unit).mean()
    back = (dense.mT @ wanted - given).abs().mean(-1)
    reverse = (back / unit.gather(1, order.argsort(1))).mean()
    expected = {"forward": forward, "reverse": reverse, "both": forward + reverse}[loss]
    torch.testing.assert_close(sorting_loss(layer, x, chosen), expected)


def test_only_the_permutation_is_exact() -> None:
    x = torch.rand(3, 5)
    truth = permutations(x)
    torch.testing.assert_close((truth @ x.unsqueeze(-1)).squeeze(-1), x.sort(1).values)
    assert is_sorting(truth, x).all() and is_sorting(truth * 0.6, x).all()
    twice = truth.clone()
    twice[0, 0] *= 2
    assert is_sorting(twice, x).tolist() == [False, True, True]
    assert not is_sorting(truth.flip(1), x).any()


class Perfect(torch.nn.Module):
    """Emits the rank of every number: what a trained sorter comes to."""

    groups = 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argsort(1).argsort(1).float().unsqueeze(-1) - 2.5


def test_the_judge_finds_a_perfect_sorter_perfect() -> None:
    layer = make_layer(options(size=6, hypernetwork="pairs", scale_start=0.01, scale_end=0.01))
    layer.wiring.hypernetwork = Perfect()
    figures = judge(layer, torch.rand(1500, 6))
    assert figures["exact"] == figures["exact_sampled"] == 1.0
    assert figures["mse_rounded"] == 0.0 and figures["mse_sampled"] < 1e-12 and layer.training


def test_steepness_takes_larger_steps() -> None:
    chosen = options(hypernetwork="pairs")
    layer = make_layer(chosen)
    rates = {id(p): g["rate"] for g in make_optimizer(layer, chosen).param_groups for p in g["params"]}
    assert len(rates) == len(list(layer.parameters()))
    found = {name: rates[id(p)] for name, p in layer.named_parameters()}
    assert {name.endswith("log_gain"): rate for name, rate in found.items()} == {True: 30.0, False: 1.0}


def test_a_comparator_learns_to_sort_within_seconds() -> None:
    chosen = Options(size=4, hypernetwork="comparator", steps=250, batch=64, learning_rate=1e-2).resolved()
    sorter = Sorter(chosen, CPU)
    before = judge(sorter.layer, sorter.validation)["exact"]
    for step in range(250):
        sorter.train_step(step)
    assert before < 0.2 and judge(sorter.layer, sorter.validation)["exact"] > 0.8


def test_the_state_holds_everything() -> None:
    torch.manual_seed(1)
    one = Sorter(options(), CPU)
    for step in range(3):
        one.train_step(step)
    state = copy.deepcopy(one.state()["training"])
    one.train_step(3)
    expected = [p.detach().clone() for p in one.layer.parameters()]
    restore(state, one.layer, one.optimizer)
    one.train_step(3)
    for found, wanted in zip(one.layer.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_the_whole_experiment(tmp_path: Path) -> None:
    arguments = ["sort", "--size", "3", "--quick", "--out", str(tmp_path), "--device", "cpu", "--frames", "10", "20"]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"exact", "exact_sampled", "mse_rounded", "mse_sampled", "stored_numbers", "training_seconds"} <= {*summary}
    assert summary["steps"] == 30 and summary["stored_numbers"] == summary["hypernetwork_parameters"] + 3
    pictures = {"means.png", "means0010.png", "means0020.png", "means1.gif", "means4.gif", "exact.png", "errors.png"}
    assert pictures <= {path.name for path in tmp_path.iterdir()}


def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sorter, "draw", lambda sorter, run: None)
    common = ["sort", "--size", "3", "--batch", "8", "--steps", "40", "--hidden", "4", "--device", "cpu"]
    assert main([*common, "--out", str(tmp_path / "whole")]) == 0
    assert main([*common, "--out", str(tmp_path / "part")]) == 0
    (tmp_path / "part" / "summary.json").unlink()
    assert main([*common, "--out", str(tmp_path / "part"), "--resume"]) == 0
    whole, part = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "part"))
    assert whole == part and json.loads((tmp_path / "part" / "summary.json").read_text())["steps"] == 40


def test_a_wrong_option_is_a_plain_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sort", "--size", "1", "--out", str(tmp_path)]) == 2
    assert "expected at least 2 numbers" in capsys.readouterr().err
