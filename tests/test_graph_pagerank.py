"""PageRank: exact ranks, agreement, baselines, a wiring with the right answer, whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ash import EdgeWiring, UserError
from experiments import graph_rank_baselines, graphs
from experiments import graph_ranks as ranks
from experiments.__main__ import main
from experiments.graph_data import make, to_batch
from experiments.graph_learning import load_trained
from experiments.graph_pagerank import Options, Walk, case, distance, panel, rules


def start(out: Path, *arguments: object) -> int:
    return main(["graphs", "--task", "pagerank", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


def some_graphs() -> list[networkx.Graph[int]]:
    graphs = make("mixed", 3, 40, 80, np.random.default_rng(0))
    graphs[0].add_node(40)  # without links
    return graphs


# --- exact ranks -----------------------------------------------------------------------------------------


def test_the_ranks_of_two_linked_nodes() -> None:
    batch = to_batch([networkx.path_graph(2)])
    found = ranks.personalised(batch, torch.tensor([[0]])).squeeze(1)
    # p = 0.15 + 0.85 q and q = 0.85 p
    torch.testing.assert_close(found, torch.tensor([1.0, 0.85], dtype=torch.float64) * 0.15 / (1 - 0.85**2))
    once = ranks.power_iteration(batch, torch.tensor([[0]]), 1).squeeze(1)
    assert once.tolist() == pytest.approx([0.15, 0.85])


def test_the_ranks_are_those_of_networkx() -> None:
    graphs = some_graphs()
    batch = to_batch(graphs)
    seeds = ranks.draw_seeds(batch, 3, torch.Generator().manual_seed(0))
    found, first = ranks.personalised(batch, seeds), ranks.first_nodes(batch)
    for i, graph in enumerate(graphs):
        for j, seed in enumerate(seeds[i].tolist()):
            known = networkx.pagerank(graph, personalization={seed: 1.0}, tol=1e-13, max_iter=1000)
            expected = torch.tensor([known[node] for node in graph], dtype=torch.float64)
            torch.testing.assert_close(found[first[i] : first[i + 1], j], expected, atol=1e-9, rtol=0)


def test_a_seed_without_links_keeps_everything() -> None:
    batch = to_batch([networkx.empty_graph(3)])
    assert ranks.personalised(batch, torch.tensor([[1]])).squeeze(1).tolist() == [0.0, 1.0, 0.0]


def test_power_iteration_comes_closer() -> None:
    each = case(some_graphs(), 2, torch.Generator().manual_seed(0))
    errors = [float(distance(ranks.power_iteration(*each[:2], steps), each)) for steps in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


# --- seeds and agreement ---------------------------------------------------------------------------------


def test_seeds_reach_more_than_ten_others() -> None:
    graph = networkx.disjoint_union(networkx.cycle_graph(11), networkx.cycle_graph(12))
    seeds = ranks.draw_seeds(to_batch([graph]), 12, torch.Generator().manual_seed(0))
    assert sorted(seeds[0].tolist()) == list(range(11, 23))
    twice = ranks.draw_seeds(to_batch([graph]), 24, torch.Generator().manual_seed(0))
    assert sorted(twice[0].tolist()) == sorted(2 * list(range(11, 23)))
    with pytest.raises(UserError, match="graph 1 of 11 nodes"):
        ranks.draw_seeds(to_batch([graph, networkx.cycle_graph(11)]), 1)


def test_overlap_by_hand() -> None:
    exact = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    assert ranks.overlap(torch.tensor([3.0, 1.0, 2.0, 0.0, 0.0]), exact, top=2) == 0.5
    assert ranks.overlap(exact, exact, top=3) == 1.0
    assert ranks.overlap(-exact, exact, top=2) == 0.0
    assert ranks.overlap(exact, exact, top=10) == 1.0


def test_overlap_with_ties_by_hand() -> None:
    exact = torch.tensor([0.4, 0.2, 0.2, 0.2, 0.1])
    for second in (1, 2, 3):  # any of the three is second
        scores = torch.zeros(5)
        scores[[0, second]] = torch.tensor([2.0, 1.0])
        assert ranks.overlap(scores, exact, top=2) == 1.0
    # two that tie for one place are one hit
    assert ranks.overlap(torch.tensor([0.0, 2.0, 1.0, 0.0, 0.0]), exact, top=2) == 0.5
    assert ranks.overlap(torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0]), exact, top=2) == 0.5


def test_the_seed_is_left_out_or_not() -> None:
    batch = to_batch([networkx.star_graph(11), networkx.star_graph(11)])
    seeds = torch.tensor([[0], [0]])
    exact = ranks.personalised(batch, seeds)
    only_seed = ranks.one_hot(batch, seeds)
    # eleven leaves are alike: any ten of them are right
    assert ranks.overlaps(batch, seeds, only_seed, exact).tolist() == [[1.0], [1.0]]
    assert ranks.overlaps(batch, seeds, only_seed, exact, with_seed=True).tolist() == [[1.0], [1.0]]
    assert ranks.overlaps(batch, seeds, -only_seed, exact, with_seed=True).tolist() == [[0.9], [0.9]]


def test_baselines_by_hand() -> None:
    graph = networkx.Graph([(0, 1), (1, 2), (2, 3), (2, 4), (2, 5)])
    batch, seeds = to_batch([graph]), torch.tensor([[0]])
    order = ranks.by_degree(batch, seeds)[:, 0].argsort(descending=True, stable=True).tolist()
    assert order == [0, 2, 1, 3, 4, 5]
    order = ranks.neighbours(batch, seeds)[:, 0].argsort(descending=True, stable=True).tolist()
    assert order == [0, 1, 2, 3, 4, 5]


# --- the model -------------------------------------------------------------------------------------------


class Known(nn.Module):
    """Emits a value of 0.85 / degree of u, whose log(1 + degree) is the fourth feature."""

    def forward(self, features: Tensor, instance: Tensor, b: int) -> Tensor:
        values = 0.85 / torch.expm1(features[:, 3]) - 1
        return torch.stack([torch.zeros_like(values), values], 1).unsqueeze(1)


def test_a_wiring_with_the_right_values_is_power_iteration() -> None:
    each = case(some_graphs(), 2, torch.Generator().manual_seed(0))
    model = Walk(Options(unrolled=7)).eval()
    model.wiring = EdgeWiring(Known(), out_rank=1, neighbours=2, positions=torch.ones(1, 1)).eval()
    with torch.no_grad():
        model.restart.fill_(0.15)
        found = model(*each[:2]).double()
        assert rules(model, each.graphs) == pytest.approx({"pointed": 1.0, "value_error": 0.0}, abs=1e-5)
    torch.testing.assert_close(found, ranks.power_iteration(*each[:2], 7), atol=1e-6, rtol=1e-5)


def test_nothing_is_given_at_first_and_everything_gets_a_gradient() -> None:
    each = case(some_graphs(), 2, torch.Generator().manual_seed(0))
    model = Walk(Options(unrolled=3))
    distance(model(*each[:2]), each).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name in ("restart", "wiring.offset", "wiring.hypernetwork.head.weight"):
        grad = grads[name]
        assert grad is not None and bool(torch.isfinite(grad).all()) and bool(grad.any()), name
    with torch.no_grad():
        assert rules(model, each.graphs)["pointed"] == 0.0


def test_a_panel_has_ten_true_and_ten_predicted_nodes() -> None:
    graph = some_graphs()[0]
    with torch.no_grad():
        shown = panel(Walk(Options(unrolled=2)).eval(), graph, "er")
    counts = {name: len(nodes) for name, nodes in shown.marked.items()}
    assert counts["hit"] + counts["missed"] == counts["hit"] + counts["spurious"] == 10
    assert counts["seed"] == 1 and networkx.is_connected(shown.graph)


# --- runs ------------------------------------------------------------------------------------------------


def test_a_run_its_evaluation_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(tmp_path / "a", "--quick") == 0
    summary = content(tmp_path / "a")
    assert summary["task"] == "pagerank" and summary["steps"] == 8
    assert summary["f1"] == summary["overlap"] and 0 <= summary["overlap"] <= 1
    assert set(summary["baselines"]) == {"degree", "neighbours", "power"}
    assert set(summary["overlap_real"]) == {"karate", "les_miserables", "florentine"}
    for name in ("top.png", "values.png", "overlap.png"):
        assert (tmp_path / "a" / name).stat().st_size > 1000
    monkeypatch.setattr("experiments.graph_pagerank.show", lambda *_: None)
    assert start(tmp_path / "b", "--quick", "--evaluate", tmp_path / "a") == 0
    again = content(tmp_path / "b")
    assert {name: again[name] for name in ("overlap", "l1", "restart")} == {
        name: summary[name] for name in ("overlap", "l1", "restart")
    }
    with pytest.raises(UserError, match="a run of --task pagerank; expected one of --task isomorphism"):
        load_trained(nn.Linear(1, 1), graphs.Options(task="isomorphism", evaluate=tmp_path / "a"))


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Callable[..., int]
) -> None:
    # without its pictures and final figures, which are those of the run above
    monkeypatch.setattr("experiments.graph_pagerank.show", lambda *_: None)
    monkeypatch.setattr("experiments.graph_pagerank.curves", lambda *_, **__: None)
    monkeypatch.setattr("experiments.graph_pagerank.figures", lambda model, task: {"restart": model.restart.item()})
    assert start(tmp_path / "whole", "--quick") == 0
    assert interrupted(6, lambda: start(tmp_path / "parts", "--quick")) == 130
    assert start(tmp_path / "parts", "--quick", "--resume") == 0
    assert content(tmp_path / "parts")["restart"] == content(tmp_path / "whole")["restart"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in ("whole", "parts")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--nodes", 20), "--nodes 20; expected more than 20"),
        (("--pagerank.unrolled", 0), "--pagerank.unrolled=0; expected a number above 0"),
        (("--pagerank.test-graphs", -1), "--pagerank.test-graphs=-1"),
    ],
)
def test_options_that_do_not_fit(
    flags: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err


# --- layers with a fixed weight --------------------------------------------------------------------------


@pytest.mark.parametrize("name", graph_rank_baselines.MAKERS)
def test_a_fixed_layer_gives_each_seed_the_ranks_of_its_own_input(name: str) -> None:
    graphs = make("er", 2, 12, 24, np.random.default_rng(0))
    batch, seeds = to_batch(graphs), torch.tensor([[0, 5, 5], [3, 1, 2]])
    model, stored = graph_rank_baselines.MAKERS[name](12, 10)
    with torch.no_grad():
        for p in model.layer.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    found = model.eval()(batch, seeds)
    assert found.shape == (24, 3) and stored == {"dense": 13 * 12 * 12, "gaussian": 2 * 13 * 12}[name]
    x = torch.zeros(1, 13, 12)
    x[0, :12] = batch.to_dense()[1]
    x[0, 12, 1] = 1.0
    torch.testing.assert_close(found[12:, 1], model.layer(x)[0])
    torch.testing.assert_close(found[:12, 1], found[:12, 2])
    assert not torch.equal(found[:12, 0], found[:12, 1])


def test_a_fixed_layer_learns() -> None:
    each = case(some_graphs()[1:], 2, torch.Generator().manual_seed(0))
    for name, maker in graph_rank_baselines.MAKERS.items():
        model, _ = maker(40, 20)
        before = float(distance(model.eval()(*each[:2]).detach(), each))
        graph_rank_baselines.train(name, model.train(), 20, lambda m: distance(m(*each[:2]), each), lambda: None)
        assert float(distance(model(*each[:2]).detach(), each)) < 0.97 * before


def test_fixed_layers_stand_beside_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("show", "curves"):
        monkeypatch.setattr(f"experiments.graph_pagerank.{name}", lambda *_, **__: None)
    assert start(tmp_path, "--quick", "--baselines", "--steps", 1) == 0
    found = content(tmp_path)["baselines"]
    assert set(found) == {"degree", "neighbours", "power", "dense", "gaussian"}
    assert found["dense"]["stored_numbers"] == 33 * 32 * 32 and found["dense"]["overlap_larger"] is None
