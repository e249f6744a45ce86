"""The experiment `dnw`: whole runs of every wiring, resuming, judging, chained graphs, its pictures, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from ash import StaticWiring, TopKWiring
from experiments import dnw
from experiments.__main__ import main
from experiments.dnw import Options
from experiments.node_nets import Shape, SmallNet, middle
from experiments.node_pictures import changes, share
from experiments.node_training import Record, cosine, frame_steps, steps
from experiments.node_wirings import WAYS, Driver, Phases, edges_now, make_optimizer, wire
from tests.page_data import held

PICTURES = ("accuracy.png", "moved.png", "wiring.png", "wiring.gif", "adjacency.png", "graph.png")


def start(out: Path, *arguments: object) -> int:
    return main(["dnw", "--quick", "--out", str(out), *map(str, arguments)])


def content(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))


def net(way: str, edges: int = 20, total: int = 10, dynamics: str = "static") -> nn.Module:
    shape = Shape(4, (5, 5), 3, edges, strides=(1, 2))
    return SmallNet(shape, 1, 2, wire(way, total, 0.5), dynamics, 2, "instance")


def train(model: nn.Module, way: str, total: int, done: int) -> Driver:
    """Optimizer steps on noise."""
    torch.manual_seed(3)
    optimizer = make_optimizer(way, model, 0.1, 0.9, 0.0)
    driver = Driver(way, model, optimizer, total, 2, 0.5)
    for _ in range(done):
        optimizer.zero_grad()
        model(torch.randn(6, 1, 8, 8))[:, 0].square().sum().backward()
        optimizer.step()
        driver.after(optimizer)
    return driver


# --- whole runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    assert start(out) == 0
    return out


def test_a_run_leaves_its_figures_and_pictures(finished: Path) -> None:
    found = content(finished)
    assert (found["dataset"], found["wiring"], found["edges"], found["nodes"]) == ("digits", "top_k", 60, 52)
    assert found["usable_edges"] == 16 * 8 + 16 * 24 + 12 * 40
    assert found["frozen_test_accuracy"] == found["test_accuracy"]
    assert 0 < found["live_edges"] <= 60 and found["macs"] > 0
    assert all((finished / name).stat().st_size > 500 for name in PICTURES)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [each["epoch"] for each in lines] == [1, 2]
    assert found["moved_edges"] == sum(each["new_edges"] for each in lines)
    (track,) = held(finished / "index.html")["tracks"]
    assert track["steps"][-1] == found["steps"] and track["counts"][-1][0] == 60 and track["sizes"] == [52, 52]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time of a short run."""
    monkeypatch.setattr(dnw.node_pictures, "draw", lambda *arguments: None)


@pytest.mark.usefixtures("undrawn")
def test_the_same_seed_gives_the_same_run_also_in_two_parts(finished: Path, tmp_path: Path) -> None:
    stop = RuntimeError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dnw.GraphTraining, "_look", stopped_at(6, stop))
        with pytest.raises(RuntimeError, match="stopped"):
            start(tmp_path)
    assert start(tmp_path, "--resume") == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    one, other = content(tmp_path), content(finished)
    assert {k: v for k, v in one.items() if "seconds" not in k and "memory" not in k} == {
        k: v for k, v in other.items() if "seconds" not in k and "memory" not in k
    }


def stopped_at(step: int, error: Exception) -> Any:
    """A stand-in for `_look` that fails in the middle of the second epoch."""
    look = dnw.GraphTraining._look

    def looking(self: Any) -> None:
        if self.driver.step == step:
            raise error
        look(self)

    return looking


def test_a_run_is_judged(finished: Path, tmp_path: Path) -> None:
    assert start(tmp_path, "--evaluate", finished) == 0
    found = content(tmp_path)
    assert found["test_accuracy"] == content(finished)["test_accuracy"]
    assert found["largest_difference"] < 1e-4
    assert 0 < found["frozen_macs"] <= found["macs"]


@pytest.mark.usefixtures("undrawn")
def test_a_chain_of_graphs(tmp_path: Path) -> None:
    assert start(tmp_path, "--model", "mobilenet", "--small", "--width", 0.5) == 0
    found = content(tmp_path)
    assert found["edges"] == 8 * 16 // 4 + (16 * 24 + 24 * 24) // 4
    assert found["frozen_test_accuracy"] == found["test_accuracy"]


@pytest.mark.parametrize("arguments", [("--data", "mnist"), ("--evaluate", "nowhere"), ("--data-dir", "nowhere")])
def test_errors_of_use(arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, *arguments) == 2
    assert "expected" in capsys.readouterr().err


# --- ways of wiring ------------------------------------------------------------------------------------


CASES = [(way, "static") for way in WAYS] + [("top_k", "discrete"), ("rigl", "discrete"), ("gaussian", "continuous")]


@pytest.mark.parametrize(("way", "dynamics"), CASES)
def test_every_way_trains_and_ends_with_its_edges(way: str, dynamics: str) -> None:
    model = net(way, total=6, dynamics=dynamics)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, way, 6, 6)
    edges = edges_now(model.eval())[0]
    usable = model.graph.wiring.admissible.count()
    assert len(edges) == usable if way == "complete" else len(edges) <= 20
    assert way in ("gaussian", "complete") or len(edges) == 20
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_random_edges_stay_and_others_move() -> None:
    for way, moves in (("random", False), ("complete", False), ("set", True), ("rigl", True)):
        model = net(way)
        before = edges_now(model)[0]
        train(model, way, 10, 6)
        assert torch.equal(edges_now(model)[0], before) != moves, way


@pytest.mark.parametrize("way", ["fine_tune", "one_shot"])
def test_two_phases(way: str) -> None:
    model = net(way, edges=20, total=10)
    wiring, first = model.graph.wiring, model.graph.wiring.candidate.detach().clone()
    stem = model.stem[0].weight.detach().clone()
    driver = train(model, way, 10, 4)
    assert wiring.k == wiring.admissible.count()
    assert driver.rate(cosine) == pytest.approx(cosine(4 / 5))
    largest = wiring.candidate.detach().abs().flatten().topk(20).indices
    driver.after(torch.optim.SGD(model.parameters(), 0.1))
    assert set(largest.tolist()) == set(wiring.chosen().tolist())
    assert torch.equal(wiring.candidate, first) == (way == "one_shot")
    assert torch.equal(model.stem[0].weight, stem) == (way == "one_shot")
    assert driver.rate(cosine) == (0.1 if way == "fine_tune" else 1.0)


def test_edges_may_have_a_rate_of_their_own() -> None:
    model = net("top_k")
    groups = make_optimizer("top_k", model, 0.5, 0.9, 0.1, edge_lr=0.2).param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert {key for key, (lr, _) in rates.items() if lr == 0.1} == {id(model.graph.wiring.candidate)}
    assert {decay for _, decay in rates.values()} == {0.1}


def test_phases_and_schedules() -> None:
    assert [Phases(3, 0.2)(step) for step in (0, 2, 3, 9)] == [1.0, 1.0, 0.2, 0.2]
    assert (cosine(0.0), cosine(1.0)) == (1.0, 0.0)
    assert [steps(t) for t in (0.0, 0.49, 0.5, 0.75, 0.99)] == [1.0, 1.0, 0.1, 0.01, 0.01]


def test_equal_edges_are_equal_numbers_of_usable_ones() -> None:
    for way, kind in (("random", StaticWiring), ("top_k", TopKWiring)):
        model = net(way, edges=25)
        wiring = model.graph.wiring
        assert isinstance(wiring, kind)
        assert bool(wiring.admissible.contains(wiring.rounded().indices).all())
        assert len(edges_now(model)[0]) == 25


# --- what is recorded and drawn ------------------------------------------------------------------------


def test_moved_edges_are_those_that_were_not_there_before() -> None:
    record = Record()
    assert record.epoch([torch.tensor([1, 2, 3])]) == 0
    assert record.epoch([torch.tensor([2, 3, 7])]) == 1
    assert record.epoch([torch.tensor([1, 2, 9])]) == 2
    assert record.moved == 3


def test_frames_are_closer_together_at_the_start() -> None:
    assert frame_steps(3) == [0, 1, 2, 3]
    found = frame_steps(1000)
    assert (found[0], found[-1], len(found)) == (0, 1000, 25)
    assert found[1] - found[0] < found[-1] - found[-2]


def test_frames_show_what_appeared_and_what_is_gone() -> None:
    assert share(torch.tensor([1, 5]), [(0, torch.tensor([1, 5])), (3, torch.tensor([5, 7]))]) == [1.0, 0.5]
    first, second = changes([(0, torch.tensor([1, 5])), (3, torch.tensor([5, 7]))], 3)
    assert first.values.tolist() == [0.0, 0.0]
    assert second.step == 3
    assert second.means.tolist() == [[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]]
    assert second.values.tolist() == [0.0, 1.0, -1.0]


def test_the_middle() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert middle(x, 2).flatten().tolist() == [27.0, 28.0, 35.0, 36.0]
    assert middle(x, 0) is x


def test_the_presets_and_defaults(tmp_path: Path) -> None:
    """The published net has 800 nodes and 41 thousand parameters, those of the stem apart."""
    given = Options(data="cifar10", data_dir=tmp_path, dynamics="discrete", preset="blog")
    options = dnw.PRESETS["blog"](given).resolved()
    assert (options.edges, options.batch, options.epochs, options.edge_lr) == (32_000, 512, 160, 1.0)
    assert (options.schedule, options.pool, options.augment) == ("steps", 2, True)
    assert Options(dynamics="discrete").resolved().edge_lr == 0.3
    assert set(get_args(dnw.Ways)) == set(WAYS)
    model = SmallNet(dnw.SHAPES["cifar10"], 3, 10, wire("random", 1, 0.5), "discrete", 2, "instance")
    assert model.graph.nodes == 800
    numbers = sum(p.numel() for p in model.graph.parameters()) + sum(p.numel() for p in model.classifier.parameters())
    assert numbers == 32_000 + 800 * 9 + 2 * 800 + 1010
