"""The experiment on gates: its nets, whole runs, resuming, removing gates, tables, errors; and the picture of gates."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ash import GateWiring, LayerGraph, UserError, plot
from experiments import gate_nets, gate_training
from experiments.__main__ import main
from experiments.gate_nets import Shapes, learned
from experiments.gate_table import agreement, label, markdown, row
from experiments.gates import Options, blog
from experiments.runs import Run
from tests.page_data import held, numbers

SMALL = Shapes((1, 16, 16), 10, 2, 2)
QUICK = ("--quick", "--width", "0.07", "--train-images", "60", "--batch", "30")


def start(out: Path, *arguments: object) -> int:
    return main(["gates", "--out", str(out), *QUICK, *map(str, arguments)])


def content(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))


# --- nets ----------------------------------------------------------------------------------------------


def test_the_blogs_net_grows_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps that feed the layers: 35, 67, …, and 1,584 for the dense layer, which would have 29 million weights."""
    monkeypatch.setattr(gate_nets, "DENSE", 1)
    net = gate_nets.gated(Shapes((3, 32, 32), 10, 2, 32), every_layer=True)
    assert [target.shape[0] for target in net.targets] == [3, 35, 67, 134, 268, 332, 396, 792, 1584]
    assert net.targets[-1].shape == (1584, 6, 6)
    assert net.layers[-1][1].in_features * 512 == 29_196_288
    assert len(net.connections()) == 9 * 10 // 2 - 1


def test_the_chain_is_the_blogs_net_without_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    net = gate_nets.chain(Shapes((3, 32, 32), 10, 2, 32))
    by_hand = 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + (64 * 36 + 1) * 512 + 513 * 10
    assert learned(net) == by_hand
    assert 64 * 36 * 512 == 1_179_648
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("merge", ["concat", "sum", "max", "squeeze"])
def test_the_chain_becomes_as_large(merge: str) -> None:
    size = learned(gate_nets.gated(Shapes((3, 20, 20), 10, 2, 8), merge=merge))
    chain = gate_nets.chain_as_large_as(size, Shapes((3, 20, 20), 10, 2, 8))
    assert abs(learned(chain) - size) < 0.15 * size


@pytest.mark.parametrize("resize", ["nearest", "pad"])
@pytest.mark.parametrize("merge", ["concat", "sum", "max", "squeeze"])
def test_every_net_classifies(merge: str, resize: str) -> None:
    net = gate_nets.gated(SMALL, merge=merge, resize=resize)
    x = torch.randn(3, 1, 16, 16)
    assert net(x).shape == (3, 10)
    plain = gate_nets.gated(SMALL, merge=merge, resize="nearest")
    assert learned(net) == learned(plain)  # padding changes the last maps' size, which is mended


def test_an_open_net_is_the_gated_one_with_gates_of_one() -> None:
    net, gated = gate_nets.open_net(SMALL), gate_nets.gated(SMALL, gate="linear", init="1")
    gated.load_state_dict(net.state_dict())
    x = torch.randn(3, 1, 16, 16)
    assert torch.equal(net.eval()(x), gated.eval()(x))
    assert learned(net) == learned(gated) - 14
    assert torch.equal(gate_nets.connection_gates(net), torch.ones(14))


def test_ways_to_start() -> None:
    for init, first in ((None, 0.5), ("1", 1 / (1 + math.exp(-1)))):
        assert gate_nets.connection_gates(gate_nets.gated(SMALL, init=init)).tolist() == pytest.approx([first] * 14)
    forward = gate_nets.gated(SMALL, init="forward")
    logits = {name: float(gate.logit()) for name, gate in zip(
        forward.connections().values(), gate_nets.connection_gates(forward), strict=True)}  # fmt: skip
    assert logits["layers[1] → layers[2]"] == pytest.approx(1)
    assert logits["layers[0] → layers[2]"] == pytest.approx(0.5)
    around = gate_nets.gated(Shapes((1, 16, 16), 10, 2, 16), init="gaussian", unique=True).wiring.logits.detach()
    assert float(around.mean()) == pytest.approx(0.5, abs=0.1)
    assert float(around.std()) == pytest.approx(0.5, rel=0.1)


def test_gates_of_connections_with_one_for_each_map_are_means() -> None:
    net = gate_nets.gated(SMALL, unique=True)
    wiring = net.wiring
    assert isinstance(wiring, GateWiring)
    maps = (1, 2, 2, 4, 4)
    assert len(wiring.logits) == sum(maps[:2]) + sum(maps[:3]) + sum(maps[:4]) + sum(maps)
    with torch.no_grad():
        wiring.logits[(wiring.indices == torch.tensor([1, 1, 0])).all(1)] = 30.0
    gates = dict(zip(net.connections().values(), gate_nets.connection_gates(net).tolist(), strict=True))
    assert gates["layers[0] → layers[1]"] == pytest.approx(0.75)
    assert gates["input → layers[1]"] == pytest.approx(0.5)


# --- runs ------------------------------------------------------------------------------------------------


WHOLE = ("--seeds", 2, "--sparsity", 0.1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is stopped within its second net and resumed, and, finished, extended."""
    out, saves, save = tmp_path_factory.mktemp("gates") / "run", [0], Run.save

    def stop(*arguments: Any) -> None:
        save(*arguments)
        saves[0] += 1
        if saves[0] == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", stop)
        assert start(out, *WHOLE) == 130
    assert start(out, *WHOLE, "--resume") == 0
    assert "scratch_accuracy" not in content(out)
    assert start(out, *WHOLE, "--resume", "--retrain") == 0
    return out


def test_a_run(whole: Path) -> None:
    found = content(whole)
    assert found["variant"] == "sparsity 0.1"
    assert found["connections"][0] == "input → layers[1]"
    assert len(found["connections"]) == len(found["gates"][0]) == 14
    assert found["pruned_connections"] == [7, 7]
    assert found["test_accuracy"] == pytest.approx(sum(found["test_accuracies"]) / 2)
    assert abs(found["baseline_parameters"] - found["parameters"]) < 0.2 * found["parameters"]
    for name in ("baseline", "pruned", "trained_on", "continued", "scratch", "random"):
        assert 0 <= found[f"{name}_accuracy"] <= 1
    assert -1 <= found["agreement"] <= 1
    # two seeds, two batches an epoch, four nets of two epochs and two of one
    assert found["steps"] == 2 * (4 * 2 * 2 + 2 * 2)
    (track,) = held(whole / "index.html")["tracks"]
    assert track["steps"] == [0, 2, 4] and len(track["cells"]) == 14
    assert numbers(track["gates"], "<f4")[-14:] == pytest.approx(found["gates"][0])
    for name in ("gates.png", "accuracy.png"):
        assert (whole / name).stat().st_size > 5000


def test_a_net_is_judged_as_it_was(whole: Path, tmp_path: Path) -> None:
    assert start(tmp_path, "--evaluate", whole) == 0
    found, before = content(tmp_path)["test_accuracy"], content(whole)
    assert [found["gated 0"], found["gated 1"]] == before["test_accuracies"]
    assert (found["scratch 0"] + found["scratch 1"]) / 2 == pytest.approx(before["scratch_accuracy"])
    assert [found["chain 0"], found["chain 1"]] == before["baseline_accuracies"]


def test_a_run_that_was_stopped_is_as_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    """The same figures, to the last bit."""
    assert start(tmp_path, *WHOLE, "--no-baseline") == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert (whole / "metrics.jsonl").read_text().splitlines()[:4] == lines
    found, other = content(tmp_path), content(whole)
    assert found.keys() < other.keys()
    apart = ("seconds", "peak_memory_bytes", "steps")
    assert {k: v for k, v in found.items() if k not in apart} == {k: other[k] for k in found if k not in apart}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--net", "narrow"),
        ("--gates", "unique", "--gate", "hard_concrete", "--merge", "squeeze", "--sparsity", 0.5, "--bfloat16"),
    ],
)
def test_variants(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    assert start(tmp_path, "--no-baseline", *arguments) == 0
    found = content(tmp_path)
    assert ("gates" in found) == ("narrow" not in arguments)
    assert found["variant"] != "gated"


# --- tables ------------------------------------------------------------------------------------------------


def summary(variant: str, accuracy: float, gates: list[float], **more: object) -> dict[str, Any]:
    return {"experiment": "gates", "variant": variant, "parameters": 1234, "test_accuracies": [accuracy],
            "gates": [gates]} | more  # fmt: skip


def test_agreement_by_hand() -> None:
    found = agreement([[0.1, 0.5, 0.9], [0.2, 0.5, 0.8], [0.9, 0.5, 0.1]])
    assert found["agreement"] == pytest.approx((1 - 1 - 1) / 3)
    assert found["gate_difference"] == pytest.approx((0.2 / 3 + 1.6 / 3 + 1.4 / 3) / 3)
    assert agreement([[0.5, 0.5], [0.1, 0.9]])["agreement"] is None


def test_a_row_is_all_runs_of_a_variant() -> None:
    runs = [summary("max", 0.5, [0.2, 0.4]), summary("max", 0.7, [0.3, 0.6], pruned_accuracy=0.25)]
    found = row("max", runs)
    assert (found["seeds"], found["test_accuracy"]) == (2, pytest.approx(0.6))
    assert found["spread"] == pytest.approx(0.02**0.5)
    assert (found["smallest_gate"], found["largest_gate"], found["mean_gate"]) == (0.2, 0.6, pytest.approx(0.375))
    assert found["agreement"] == pytest.approx(1)
    text = markdown([found])
    assert "| max | 1,234 | 2 | 60.00 | 14.14 | 0.38 | 0.20 | 0.60 | 1.00 | 0.15 |" in text
    assert "| max | 60.00 | 25.00 | – | – | – | – |" in text


def test_the_table_of_a_folder(tmp_path: Path) -> None:
    for name, found in {
        "a": summary("gated", 0.5, [0.2, 0.4]),
        "b": summary("max", 0.9, [0.1, 0.2]),
        "c": {"experiment": "mnist"},
    }.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "summary.json").write_text(json.dumps(found))
    assert start(tmp_path / "out", "--table", tmp_path / "runs") == 0
    rows = content(tmp_path / "out")["rows"]
    assert [each["variant"] for each in rows] == ["max", "gated"]
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| max | 1,234 | 1 | 90.00 | – |")


def test_names_of_variants() -> None:
    assert label(Options()) == "gated"
    every = Options(merge="sum", gate_init="forward", every_layer=True)
    assert label(every) == "every layer, merge sum, gate init forward"
    assert label(Options(net="open", resize="pad")) == "open, resize pad"


def test_the_blogs_settings() -> None:
    chosen = blog(Options())
    assert (chosen.batch, chosen.epochs, chosen.seed, chosen.every_layer, chosen.cosine) == (32, 200, 1337, True, False)
    assert chosen.gate_lr == chosen.lr


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gate-init", "half"), "--gate-init half; expected a number"),
        (("--sparsity", -1), "--sparsity"),
        (("--gate-lr", 0), "--gate-lr"),
        (("--epochs", 0), "--epochs 0; expected at least 1"),
        (("--seeds", 0), "--seeds 0; expected at least 1"),
        (("--train-images", -5), "--train-images -5"),
        (("--prune", 1), "--prune 1.0; expected a share"),
        (("--net", "open", "--retrain"), "--retrain with --net open"),
        (("--blocks", 3), "--blocks 3 for images of (16, 16) pixels leaves no map"),
        (("--table", "."), "--table .: no finished run"),
        (("--evaluate", "nowhere"), "--evaluate nowhere: no such folder"),
        (("--data-dir", "nowhere"), "nowhere: no CIFAR-10"),
    ],
)
def test_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    assert start(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


# --- the picture -----------------------------------------------------------------------------------------------


def test_a_panel_for_each_connection_and_a_line_for_each_gate(tmp_path: Path) -> None:
    panels = {
        "into b": {"a": [0.5, 0.6, 0.9]},
        "into c": {"a": [0.5, 0.4, 0.1], "b": [0.5, 0.5, 0.7]},
        "many": np.full((3, 20), 0.5),
    }
    figure = plot.gates([0, 1, 2], panels, tmp_path / "gates.png")
    axes = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in axes] == ["into b", "into c", "many"]
    assert [len(ax.lines) for ax in axes] == [1, 2, 21]
    assert np.allclose(axes[1].lines[1].get_xydata(), [[0, 0.5], [1, 0.5], [2, 0.7]])
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["a", "b"]
    assert [text.get_text() for text in axes[2].get_legend().get_texts()] == ["mean of 20"]
    assert axes[0].get_ylim() == pytest.approx((-0.03, 1.03))
    assert (tmp_path / "gates.png").stat().st_size > 5000


def test_gates_beyond_one_widen_the_scale() -> None:
    figure = plot.gates([0, 1], {"linear": {"a": [0.5, 3.0], "b": [0.5, -1.0]}})
    low, high = figure.axes[0].get_ylim()
    assert low < -1
    assert high > 3


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "panels is empty"),
        ({"a": {}}, "'a' has no gates"),
        ({"a": {"b": [0.5]}}, "'a': 1 gates are not known at all of the 2 steps"),
        ({"a": np.zeros((3, 2))}, "not known at all of the 2 steps"),
    ],
)
def test_bad_pictures(panels: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plot.gates([0, 1], panels)


def test_a_chain_has_no_gates_to_watch() -> None:
    assert gate_training._gates(nn.Linear(2, 2)) == []
    assert gate_training._gates(gate_nets.open_net(SMALL)) == []
    net = gate_nets.gated(SMALL)
    assert isinstance(net, LayerGraph)
    assert len(gate_training._gates(net)) == 14
