"""The benchmark: its plan, its cases, its table and its run folder. What a machine measures is not tested."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from ash import UserError, sparse_loss
from experiments import (
    benchmark,
    benchmark_case,
    benchmark_cases,
    benchmark_graphs,
    benchmark_hyper,
    benchmark_layers,
    benchmark_oracle,
    benchmark_parallel,
    benchmark_parts,
    benchmark_rigl,
    benchmark_scale,
    measure,
)
from experiments.__main__ import main
from experiments.benchmark import fill, part_plan, spawn
from experiments.benchmark_case import Case
from experiments.benchmark_graph_rows import SIZES, graph_growths, graph_plan
from experiments.benchmark_layers import growths
from experiments.benchmark_report import Row, table
from experiments.measure import LEAST, peak_above, spread, timed

TINY = {"size": 72, "batch": 4, "budget": 0.0, "most": 1}
SPREAD = ("low", "median", "high")
RESULT = {"low": 1.0, "median": 2.0, "high": 3.0, "runs": 3, "error": 1e-6}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle and first step on batches so small that no kernel needs compiling."""
    monkeypatch.setattr(benchmark_oracle, "BATCH", 8)
    monkeypatch.setattr(benchmark_cases, "WARM", {"size": 96, "batch": 4, "density": 0.02})
    monkeypatch.setattr(benchmark_oracle, "INSTANCES", 2)


def plan(quick: bool, suite: str = "cpu") -> list[tuple[Row, Case]]:
    """The figures of a suite."""
    return [pair for part in benchmark_parts.PARTS if part.suite == suite for pair in part_plan(part, quick)]


def test_turns_alternate_and_begin_with_a_step_that_does_not_count() -> None:
    order: list[str] = []
    seconds = timed({name: lambda name=name: order.append(name) for name in "ab"}, budget=60, most=4)
    turn = 1 + measure.TURN
    assert order == [*"ab", *("a" * turn + "b" * turn) * 4]
    assert [len(each) for each in seconds.values()] == [4, 4]
    assert min(min(each) for each in seconds.values()) >= 0


def test_a_spent_budget_leaves_a_few_rounds() -> None:
    assert len(timed({"a": lambda: None}, budget=-1, most=50)["a"]) == LEAST


def test_a_long_step_is_a_turn_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TURN_SECONDS", -1.0)
    order: list[str] = []
    timed({name: lambda name=name: order.append(name) for name in "ab"}, budget=60, most=4)
    assert order == list("ab" * 5)


def test_a_spread() -> None:
    assert spread([3.0, 1.0, 7.0]) == {"low": 1.0, "median": 3.0, "high": 7.0, "runs": 3}


def test_the_peak_counts_what_is_made_and_what_a_step_takes() -> None:
    megabyte = 2**20

    def prepare() -> Any:
        kept = torch.ones(20 * megabyte, dtype=torch.uint8)
        return lambda: torch.ones(40 * megabyte, dtype=torch.uint8).max() + kept[0]

    assert 55 * megabyte < peak_above(prepare) < 75 * megabyte


def test_the_oracle_accepts_the_layers() -> None:
    errors = [benchmark_oracle.check_static(), benchmark_oracle.check_hyper(), benchmark_rigl.check_rigl()]
    errors.append(benchmark_graphs.check_graphs())
    errors += map(benchmark_oracle.check_gaussian, ("all", "tuple"))
    assert max(errors) <= benchmark_oracle.TOLERANCE


@pytest.mark.parametrize("check", ["check_static", "check_gaussian"])
def test_the_oracle_finds_a_layer_that_is_off(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = benchmark_oracle.linear
    monkeypatch.setattr(benchmark_oracle, "linear", lambda x, w, b: right(x, 1.01 * w, b))
    arguments = () if check == "check_static" else ("all",)
    with pytest.raises(AssertionError, match="off by"):
        getattr(benchmark_oracle, check)(*arguments)


@pytest.mark.parametrize("case", [case for _, case in plan(quick=True)], ids=str)
def test_a_case_survives_the_command_line(case: Case) -> None:
    assert tyro.cli(Case, args=case.arguments()) == case


@pytest.mark.parametrize(
    "case",
    [
        Case("gaussian", "seconds", context="tuple", **TINY),
        Case("gaussian", "bytes", **TINY),
        Case("static", "ratio", density=0.1, **TINY),
        Case("static", "ratio", density=0.1, rival="dense", **TINY),
        Case("hyper", "ratio", rival="gather", **TINY),
        Case("hyper", "ratio", rival="dense_hyper", **TINY),
        Case("hyper", "bytes", **TINY),
        Case("rigl", "ratio", density=0.1, every=1, rival="masked_rigl", **TINY),
        Case("rigl", "bytes", density=0.1, every=2, **TINY),
        Case("graphs", "seconds", **TINY),
        Case("graphs", "bytes", **TINY),
    ],
    ids=lambda case: f"{case.layer}-{case.figure}-{case.rival}",
)
def test_a_case_gives_a_figure_and_the_error(case: Case) -> None:
    result = benchmark_cases.run(case)
    assert result["low"] <= result["median"] <= result["high"]
    assert 0 <= result["error"] <= benchmark_oracle.TOLERANCE
    assert set(result.get("seconds", {})) == ({"layer", "rival"} if case.figure == "ratio" else set())


def test_a_step_reaches_parameters_and_input() -> None:
    layer = torch.nn.Linear(72, 72)
    step = benchmark_case.layer_step(layer, Case("static", **TINY))
    step()
    first = layer.weight.grad.clone()
    step()
    assert torch.equal(first, layer.weight.grad)
    assert bool(first.any())


def test_a_rival_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(case: Case) -> Any:
        raise ModuleNotFoundError("No module named 'sparselab'")

    monkeypatch.setitem(benchmark_parts.LAYERS["static"].rivals, "sparselab", absent)
    result = benchmark_cases.run(Case("static", "ratio", rival="sparselab", **TINY))
    row = fill(Row("a", "a", "ratio", bar=1.0), result)
    assert (row.median, row.ok) == (None, None)
    assert "sparselab is not installed" in row.note


def test_a_process_of_its_own() -> None:
    result = spawn(Case("static", "bytes", density=0.1, **TINY))
    assert result["median"] >= 0


def test_a_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "LIMIT", 1e-3)
    assert "not done after" in spawn(Case("static", **TINY))["failed"]
    monkeypatch.setattr(benchmark, "LIMIT", 60.0)
    monkeypatch.setattr(sys, "executable", "false")
    assert spawn(Case("static", **TINY)) == {"failed": "exit status 1: no message"}


def test_the_plan_names_every_figure_once() -> None:
    for quick in (False, True):
        rows = [row for row, _ in plan(quick)]
        assert len({row.name for row in rows}) == len(rows)
        assert {row.figure for row in rows} == {"seconds", "bytes", "ratio", "density"}
        assert any(row.bar is not None for row in rows) != quick
    assert all(row.size in (case.size, case.density, 1.0) for row, case in plan(False) if row.series)
    assert 1_000_000 in {case.size for _, case in plan(False)}


def test_bars_are_kept_or_missed() -> None:
    row = Row("a", "a", "seconds", bar=2.0)
    assert row.ok is None
    assert fill(row, RESULT).ok
    assert fill(row, {**RESULT, "median": 2.1}).ok is False
    assert fill(replace(row, bar=None), RESULT).ok is None
    failed = fill(row, {"failed": "exit status 1: no memory"})
    assert failed.ok is False
    assert "no memory" in failed.note


def test_growth_compares_all_sizes_or_none() -> None:
    rows = [replace(row, **dict.fromkeys(SPREAD, row.size * 1.0)) for row, _ in plan(False)]
    times = {row.name: row for row in growths(rows, quick=False)}
    assert {name: row.median for name, row in times.items()} == {
        "tuple_time_growth": 1.0,
        "tuple_memory_growth": 1.0,
    }
    largest = max(i for i, row in enumerate(rows) if row.name.startswith("tuple_") and row.figure == "bytes")
    rows[largest] = replace(rows[largest], median=rows[largest].size * 3.0)
    memory = growths(rows, quick=False)[1]
    assert (memory.low, memory.median, memory.high, memory.ok) == (1.0, 3.0, 1.0, False)
    assert [row.name for row in growths(rows[:largest], quick=False)] == ["tuple_time_growth"]


def test_memory_of_the_adaptive_layer_for_each_point() -> None:
    rows = [replace(row, **dict.fromkeys(SPREAD, row.size * 5120.0)) for row, _ in plan(False) if "hyper" in row.name]
    rows = [replace(row, median=1e7) if row.name == "dense_hyper_bytes" else row for row in rows]
    found = {row.name: row for row in benchmark_hyper.memory(rows, quick=False)}
    assert {found[f"hyper_{k}_bytes_each"].median for k in benchmark_hyper.SIZES} == {10.0}
    assert (found["hyper_memory_growth"].median, found["hyper_memory_growth"].ok) == (1.0, True)
    assert found["hyper_dense_memory"].median == 1024 * 5120 / 1e7
    assert "10" in table(list(found.values()))
    assert benchmark_hyper.memory([], quick=False) == []


def test_rigl_beside_the_masked_one() -> None:
    figures = {"rigl_8192_seconds": 1.0, "rigl_8192_rewiring_seconds": 101.0, "rigl_8192_bytes": 3.0,
               "masked_rigl_8192_seconds": 9.0, "masked_rigl_8192_rewiring_seconds": 109.0,
               "masked_rigl_8192_bytes": 60.0}  # fmt: skip
    rows = [replace(row, median=figures[row.name]) for row, _ in plan(False) if row.name in figures]
    found = {row.name: row for row in benchmark_rigl.ratios(rows, quick=False)}
    assert {name: row.median for name, row in found.items()} == {"rigl_8192_memory": 0.05, "rigl_8192_amortised": 0.2}
    assert [row.ok for row in found.values()] == [True, False]  # 1/15 and 1/10
    assert benchmark_rigl.ratios(rows, quick=True) == []  # those are of another size
    assert benchmark_rigl.ratios(rows[:1], quick=False) == []


def test_a_graph_has_ten_different_edges_a_node() -> None:
    for n, entries in ((7, 49), (40, 400)):
        graph = benchmark_graphs.random_graph(n).check("refuse")
        assert graph.entries == entries and graph.sizes.tolist() == [[n, n]]


def test_a_step_on_a_graph_trains_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = benchmark_graphs.edge_layer()
    monkeypatch.setattr(benchmark_graphs, "edge_layer", lambda: layer)
    step = benchmark_graphs.graph_step(20)
    step()
    first = layer.wiring.offset.detach().clone()
    step()
    assert not torch.equal(first, layer.wiring.offset)


def test_the_oracle_finds_a_graph_layer_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_graphs, "sparse_loss", lambda y, target: 1.01 * sparse_loss(y, target))
    with pytest.raises(AssertionError, match="off by"):
        benchmark_graphs.check_graphs()


def test_growth_by_the_number_of_edges() -> None:
    rows = [replace(row, **dict.fromkeys(SPREAD, 10.0 * row.size)) for row, _ in graph_plan(SIZES)]
    found = {row.name: row for row in graph_growths(rows, quick=False)}
    assert {found[f"graphs_{n}_{kind}_each"].median for n in SIZES for kind in ("seconds", "bytes")} == {1.0}
    growth = [found[name] for name in ("graphs_time_growth", "graphs_memory_growth")]
    assert [(row.median, row.ok) for row in growth] == [(1.0, True)] * 2
    rows[-1] = replace(rows[-1], median=3 * rows[-1].size * 10.0)
    assert graph_growths(rows, quick=False)[-1].ok is False
    assert graph_growths(rows[:2], quick=True)[-1].name == "graphs_1000_bytes_each"
    assert "µs" in table(list(found.values()))


def test_the_oracle_finds_a_rewiring_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_rigl, "sparse_step", lambda layer, every: _forgetful(layer))
    with pytest.raises(AssertionError, match="off by"):
        benchmark_rigl.check_rigl()


def _forgetful(layer: Any) -> Any:
    """Training that keeps the momentum of what was dropped for what grows."""
    from ash import Rewirer

    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    rewirer = Rewirer(layer, optimizer, every=2, end=100, fraction=lambda _: 0.3)
    rewirer.optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)

    def step(x: torch.Tensor, g: torch.Tensor) -> None:
        optimizer.zero_grad()
        layer(x).backward(g)
        optimizer.step()
        rewirer.step()

    return step


def test_the_table_shows_units_bars_and_verdicts() -> None:
    rows = [
        Row("a", "a step", "seconds", 0.004, 0.001, 0.002, 0.003, 1e-6),
        Row("b", "its memory", "bytes", 1e6, 2e6, 2e6, 2e6),
        Row("c", "beside another", "ratio", note="another is not installed"),
    ]
    lines = table(rows).splitlines()
    assert lines[2].split()[2:] == ["ms", "1", "2", "3", "4", "0.50", "yes", "1e-06"]
    assert lines[3].split()[2:] == ["MB", "2", "2", "2", "1", "2.00", "NO", "–"]
    assert "12 MB" in table([*rows, Row("d", "d", "bytes", loaded=12e6)]).splitlines()[-1]
    assert lines[5] == "beside another: another is not installed"


def in_process(case: Case) -> dict[str, Any]:
    """What a process of its own would give, without the seconds that starting one takes."""
    return dict(json.loads(json.dumps(benchmark_cases.run(case))))


def test_a_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "spawn", in_process)
    assert main(["benchmark", "--quick", "--only", "static", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    rows = [row for row, _ in plan(quick=True) if "static" in row.name]
    names = [row.name for row in rows]
    assert set(names) <= set(summary)
    assert (summary["bars"], summary["bars_kept"], summary["missed"]) == (0, 0, [])
    shown, written = capsys.readouterr().out, (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    for row in rows:
        assert row.what in shown
        assert f"| {row.what} |" in written
    timing = (tmp_path / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["figure"] for line in timing] == names
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize(("suite", "figures"), [("cpu", {"seconds", "ratio"}), ("memory", {"bytes"})])
def test_a_suite_is_drawn(suite: str, figures: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "spawn", lambda case: RESULT)
    assert main(["benchmark", "--quick", "--suite", suite, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    taken = [row for row, _ in plan(quick=True) if row.name in summary]
    found = {row.figure for row in taken}
    assert found >= figures and ("bytes" in found) == (suite == "memory") and len(taken) > 4
    assert (tmp_path / "benchmark.png").stat().st_size > 0


def test_the_suite_of_the_gpu_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["benchmark", "--suite", "gpu", "--out", str(tmp_path / "a")]) == 2
    assert "--suite gpu needs a GPU" in capsys.readouterr().err
    with pytest.raises(UserError, match="--device cuda with --suite cpu"):
        benchmark._check_device(benchmark.Options(device="cuda", suite="cpu"))


def test_a_suite_and_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def note(case: Case) -> dict[str, Any]:
        taken.append(case.figure)
        return RESULT

    monkeypatch.setattr(benchmark, "spawn", note)
    assert main(["benchmark", "--suite", "memory", "--only", "512", "--out", str(tmp_path)]) == 0
    assert set(taken) == {"bytes"}
    taken.clear()
    assert main(["benchmark", "--only", "static_8192", "--out", str(tmp_path)]) == 0
    assert taken == ["ratio"] * len(benchmark_layers.RIVALS)
    assert not (tmp_path / "benchmark.png").exists()


def test_failures_are_counted_and_drawn_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_once(case: Case) -> dict[str, Any]:
        return {"failed": "no memory"} if case.size == 8192 else {**RESULT, "median": 1e-9}

    monkeypatch.setattr(benchmark, "spawn", fail_once)
    assert main(["benchmark", "--only", "gaussian", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["missed"] == ["gaussian_8192_seconds", "gaussian_8192_bytes"]
    assert summary["bars_kept"] == summary["bars"] - 2
    assert (tmp_path / "benchmark.png").stat().st_size > 0


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Case] = []

    def stop_once(case: Case) -> dict[str, Any]:
        if len(taken) == 2:
            taken.append(case)
            raise KeyboardInterrupt
        taken.append(case)
        return {**RESULT, "median": math.pi}

    monkeypatch.setattr(benchmark, "spawn", stop_once)
    arguments = ["benchmark", "--quick", "--only", "static", "--out", str(tmp_path)]
    assert main(arguments) == 130
    assert main([*arguments, "--resume"]) == 0
    names = [row.name for row, _ in plan(quick=True) if "static" in row.name]
    assert len(taken) == len(names) + 1
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert {summary[name] for name in names} == {math.pi}


def test_an_unknown_choice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "--only nothing" in capsys.readouterr().err


def test_means_keep_their_precision_at_ten_million() -> None:
    """Trained there and, in float64, at the origin, they are the same; as plain float32 numbers they are not."""
    assert benchmark_scale.means_far_out(steps=12) < 1e-5
    assert benchmark_scale.means_far_out("direct", steps=12) > 0.1


def test_millions_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_scale, "WARM", Case("rigl_growth", size=64, batch=4, density=0.1))
    for check in ("check_free", "check_rigl"):
        monkeypatch.setattr(benchmark_scale, check, lambda: 0.0)
    taken = {row.name: benchmark_cases.run(replace(case, most=1)) for row, case in benchmark_scale.plan(True)}
    assert all(result["median"] >= 0 for result in taken.values())
    rows = [replace(row, median=2.0) for row, _ in benchmark_scale.plan(False)]
    assert [(row.median, row.ok) for row in benchmark_scale.memory(rows, False)] == [(1.0, True)]
    assert benchmark_scale.memory(rows[:3], False) == []


def test_sparse_factors_have_silent_inputs() -> None:
    x, g = benchmark_scale.factors(Case("rigl_growth", size=4000), "relu")
    assert 0.6 < float((x.detach() == 0).all(0).float().mean()) < 0.8
    assert 0.4 < float((g == 0).float().mean()) < 0.6


def test_the_time_of_a_sample_in_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_parallel, "in_two", lambda task: [[(1.0, 1.2), (2.0, 2.0), (1.0, 4.0)], None])
    result = benchmark_parallel.measure(Case("parallel_rigl"), "rigl")
    assert [result[name] for name in SPREAD] == [0.5, 0.6, 2.0]
    assert {case.layer for _, case in benchmark_parallel.plan(True)} <= set(benchmark_parts.LAYERS)


def test_ranks_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [{"values": torch.ones(2), "indices": torch.arange(2)} for _ in range(2)]
    monkeypatch.setattr(benchmark_parallel, "in_two", lambda task: states)
    assert benchmark_parallel.check_ranks("rigl") == 0.0
    states[1]["indices"] = torch.arange(2) + 1
    with pytest.raises(AssertionError, match="ranks differ in indices"):
        benchmark_parallel.check_ranks("rigl")


def test_a_rank_trains_by_itself() -> None:
    """What a rank does, in one process: every layer is made and trained."""
    case = Case("parallel", size=40, batch=8, density=0.1, every=1)
    for kind in benchmark_parallel.KINDS:
        layer, step = benchmark_parallel.training(kind, case, parallel=False)
        before = [p.detach().clone() for p in layer.parameters()]
        step()
        assert any(not torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
