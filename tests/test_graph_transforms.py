"""Transforms of graphs: the options, the learner, the baselines, the whole experiment for a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ash import SparseBatch, UserError, edge_scores
from experiments import graph_transforms
from experiments.__main__ import main
from experiments.graph_baselines import Dense
from experiments.graph_transform_data import prepare
from experiments.graph_transform_pictures import look
from experiments.graph_transforms import Learner
from experiments.graphs import Options

CPU = torch.device("cpu")


def options(task: str, **own: Any) -> Any:
    chosen: Any = Options(task=task, quick=True)
    for name, value in own.items():
        setattr(chosen if hasattr(chosen, name) else chosen.transform, name, value)
    return chosen.resolved()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"batch": 0}, "--transform.batch"),
        ({"lr": -1.0}, "--transform.lr"),
        ({"counts": (1, 0, 1)}, "--transform.counts"),
        ({"both": 2.0}, "--transform.both"),
        ({"nodes": 2}, "--nodes 2"),
        ({"steps": 0}, "--steps"),
    ],
)
def test_impossible_options(own: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options("reverse", **own)


def test_what_a_task_takes_by_itself() -> None:
    chosen = {task: options(task).transform for task in ("symmetric", "two_hop", "relabel")}
    assert chosen["symmetric"].tuples == 2 and chosen["two_hop"].tuples == 1
    assert chosen["two_hop"].values == "emitted" and chosen["relabel"].larger == 0


def test_parts_hold_graphs_of_the_sizes_asked_for_and_their_answers() -> None:
    data = prepare(options("reverse"), CPU)
    assert [len(part.x) for part in data[:4]] == [6, 3, 3, 2]
    assert data.test.x[0].sizes.tolist() == [[16, 16]] and data.larger.x[0].sizes.tolist() == [[64, 64]]
    x, y = data.train.batch([4, 1])
    assert torch.equal(y.to_dense(), x.to_dense().transpose(1, 2))
    assert torch.equal(x[0].indices, data.train.x[4].indices)


def test_real_graphs_have_the_nodes_of_a_permutation_or_stay_away() -> None:
    data = prepare(options("relabel", nodes=40), CPU)
    assert {name: int(pairs.x[0].sizes[0, 0]) for name, pairs in data.real.items()} == {"karate": 40, "florentine": 40}
    assert [x.permute(1, 0).to_dense().equal(x.to_dense()) for x in prepare(options("two_hop"), CPU).test.x] == [
        True
    ] * 3


@pytest.mark.parametrize("task", ["identity", "reverse", "symmetric"])
def test_a_transform_is_learned_in_a_second(task: str) -> None:
    learner = Learner(options(task, nodes=16, steps=60, quick=False, counts=(12, 3, 3), batch=4, larger=2), CPU)
    # At first a tuple points anywhere but at the edge's own entry, so that a reversal may be there from the start.
    assert task == "reverse" or learner.judge(learner.data.test)["f1"] < 1
    for step in range(60):
        learner.train_step(step)
    assert learner.judge(learner.data.test) | {"loss": 0} == {
        "precision": 1,
        "recall": 1,
        "f1": 1,
        "exact": 1,
        "loss": 0,
    }
    assert learner.judge(learner.data.larger)["f1"] == 1


def test_at_first_nothing_points_at_an_edges_own_entry() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        learner = Learner(options("symmetric"), CPU)
        found = look(learner.layer, learner.data.test.x[0])["pointed"]
        assert found.shape == (2, 2, 2) and found[:, 0, 1].sum() == 0
        assert found.sum((1, 2)).tolist() == [1, 1]


def test_values_of_paths_are_told_apart_by_where_they_lead() -> None:
    learner = Learner(options("two_hop"), CPU)

    def emit(features: torch.Tensor, instance: torch.Tensor, b: int) -> torch.Tensor:
        raw = features.new_zeros(len(features), 1, 3)
        raw[:, 0, 2] = features[:, 2] + 10 * features[:, 3]  # whether w = u, and whether (u, w) is an edge
        return raw

    learner.layer.wiring.hypernetwork.forward = emit
    assert look(learner.layer, learner.data.test.x[0])["values"].tolist() == [2, 11, 1]


def test_a_relabelling_is_drawn_and_stores_a_number_for_every_node(tmp_path: Path) -> None:
    assert main(["graphs", "--task", "relabel", "--quick", "--nodes", "8", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stored_numbers"] == 8 and summary["f1_larger"] is None and "f1_karate" not in summary
    assert (tmp_path / "pointers.png").stat().st_size > 0


def test_a_dense_layer_stores_every_position() -> None:
    layer = Dense(3)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(9).reshape(3, 3, 9).transpose(0, 1).reshape(9, 9))
    x = SparseBatch.from_entries([torch.tensor([[0, 1], [2, 0]]), torch.tensor([[1, 1]])], None, [(3, 3), (3, 3)])
    y = layer(x)
    assert y.entries == 18 and edge_scores(y, x.permute(1, 0)).f1 == 1


def test_the_whole_experiment_resumed_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["graphs", "--task", "two_hop", "--quick", "--device", "cpu"]
    assert main([*common, "--baselines", "--nodes", "8", "--out", str(tmp_path / "whole")]) == 0
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    wanted = {"f1", "precision", "recall", "exact", "f1_sampled", "f1_larger", "f1_karate", "stored_numbers"}
    assert wanted | {"gaussian_f1", "gaussian_stored_numbers", "dense_f1", "dense_bytes"} <= {*summary}
    assert summary["dense_weights"] == 4096 and summary["dense_f1_larger"] is None and summary["steps"] == 20
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"pair.png", "adjacency.png", "f1.png", "pointers.png", "values.png", "real_florentine.png"} <= names

    monkeypatch.setattr(graph_transforms, "draw", lambda *parts: None)
    common += ["--nodes", "8"]
    (tmp_path / "whole" / "summary.json").unlink()
    state = tmp_path / "whole"
    lines = (state / "metrics.jsonl").read_text()
    assert main([*common, "--baselines", "--out", str(state), "--resume"]) == 0
    assert (state / "metrics.jsonl").read_text() == lines
    again = json.loads((state / "summary.json").read_text())
    assert main([*common, "--out", str(tmp_path / "judged"), "--evaluate", str(state)]) == 0
    judged = json.loads((tmp_path / "judged" / "summary.json").read_text())
    assert (
        main(["graphs", "--task", "reverse", "--quick", "--out", str(tmp_path / "other"), "--evaluate", str(state)])
        == 2
    )
    assert "a run of --task two_hop; expected one of --task reverse" in capsys.readouterr().err
    assert judged["f1"] == summary["f1"] == again["f1"] and judged["loss"] == summary["loss"]


def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_transforms, "draw", lambda *parts: None)
    common = ["graphs", "--task", "reverse", "--nodes", "8", "--steps", "20", "--device", "cpu"]
    common += ["--transform.counts", "6", "3", "3", "--transform.larger", "1"]
    assert main([*common, "--out", str(tmp_path / "whole")]) == 0
    step = Learner.train_step

    def stop(learner: Learner, number: int) -> float:
        if number == 13:
            raise KeyboardInterrupt
        return step(learner, number)

    monkeypatch.setattr(Learner, "train_step", stop)
    assert main([*common, "--out", str(tmp_path / "part")]) == 130
    monkeypatch.setattr(Learner, "train_step", step)
    assert main([*common, "--out", str(tmp_path / "part"), "--resume"]) == 0
    for name in ("metrics.jsonl",):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()
    whole, part = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "part"))
    assert {**whole, "seconds": 0, "training_seconds": 0, "peak_memory_bytes": 0} == {
        **part, "seconds": 0, "training_seconds": 0, "peak_memory_bytes": 0}  # fmt: skip
