"""`sweep`: its combinations, its processes, going on, failures, and its report."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ash import plot
from ash.checks import UserError
from experiments import sweep_jobs
from experiments.__main__ import EXPERIMENTS, Experiment, main
from experiments.runs import RunOptions
from experiments.sweep import axis
from experiments.sweep_jobs import Job, last_words, perform, places, shared_out
from experiments.sweep_report import Result, band, figures, told
from tests.page_data import held

TOY = Path(__file__).with_name("toy_run.py")


@dataclass
class Options(RunOptions):
    """Options of the toy."""

    size: int = 3
    steps: int = 5
    fail: bool = False
    hang: bool = False


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module as an experiment, whose runs take no time, on a machine with two cores."""
    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment(__name__, "a toy"))
    monkeypatch.setattr(sweep_jobs, "COMMAND", (sys.executable, "-S", str(TOY)))
    monkeypatch.setattr(sweep_jobs, "cores", lambda: 2)
    monkeypatch.setattr(sweep_jobs, "LOOK", 0.01)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def start(out: Path, *arguments: object) -> int:
    return main(["sweep", "toy", "--out", str(out), *map(str, arguments)])


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- whole sweeps ----------------------------------------------------------------------------------------


def test_every_combination_is_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, "--grid", "size=2,4", "seed=0..2") == 0
    shown = capsys.readouterr()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        f"size={size},seed={seed}" for size in (2, 4) for seed in (0, 1, 2)
    }
    assert shown.out == (tmp_path / "sweep.md").read_text(encoding="utf-8")
    lines = shown.out.splitlines()
    head = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    rows = [dict(zip(head, (cell.strip() for cell in line.split("|")[1:-1]), strict=True)) for line in lines[2:]]
    assert [(row[""], row["runs"], row["error"], row["exact"]) for row in rows] == [
        ("size 2", "3", "0.5 ± 0.5", "1 of 3"), ("size 4", "3", "0.25 ± 0.25", "1 of 3"),
    ]  # fmt: skip
    assert "constant" not in head and "seed" not in head and "size" not in head
    with (tmp_path / "sweep.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["size"], row["seed"], float(row["error"]), row["failure"]) for row in table][-1] == ("4", "2", 0.5, "")
    assert len(table) == 6 and all(int(row["at_a_time"]) <= 2 for row in table)
    assert {row["threads"] for row in table} == {"1"}  # two cores for two runs
    found = content(tmp_path / "sweep.json")
    assert found["groups"]["size 4"]["error"] == {
        "runs": 3, "mean": 0.25, "deviation": 0.25, "low": 0.0, "high": 0.5,
    }  # fmt: skip
    assert found["runs"][0]["values"] == {"size": "2", "seed": "0"} and found["runs"][0]["summary"]["constant"] == 4
    assert (tmp_path / "sweep.png").stat().st_size > 3000
    (chart,) = held(tmp_path / "index.html")["charts"]
    assert [(one["name"], one["y"], one["low"], one["high"]) for one in chart["series"]] == [
        ("size 2", [0.5], [0.0], [1.0]), ("size 4", [0.25], [0.0], [0.5]),
    ]  # fmt: skip


def test_a_sweep_goes_on_where_it_was_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, "--grid", "seed=0..2", "--jobs", 1, "--", "--quick") == 0
    begun, anew = tmp_path / "seed=1", tmp_path / "seed=2"
    for folder in (begun, anew):
        (folder / "summary.json").unlink()
    (begun / "checkpoint").mkdir()
    (begun / "checkpoint" / "state.json").write_text("{}", encoding="utf-8")
    finished = (tmp_path / "seed=0" / "pid").read_text(encoding="utf-8")
    assert start(tmp_path, "--grid", "seed=0..3", "--jobs", 2, "--", "--quick") == 0
    assert "4 runs, 1 of them finished before, 2 at a time" in capsys.readouterr().err
    assert (tmp_path / "seed=0" / "pid").read_text(encoding="utf-8") == finished
    resumed = [content(tmp_path / f"seed={seed}" / "summary.json")["resumed"] for seed in range(4)]
    assert resumed == [False, True, False, False]
    assert content(tmp_path / "sweep.json")["groups"]["all runs"]["error"]["runs"] == 4
    # More steps are more of the same runs; other options are others.
    assert start(tmp_path, "--grid", "seed=0..1", "--", "--quick", "--steps", 9) == 0
    assert content(tmp_path / "seed=1" / "config.json")["steps"] == 9
    assert start(tmp_path, "--grid", "seed=0..1") == 2
    assert "seed=0 holds a run of toy --quick True (now False); expected one of this sweep" in capsys.readouterr().err


def test_runs_that_fail_are_listed_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--grid", "fail=true,false", "seed=1,2", "--figures", "error")
    for _ in range(2):
        assert start(tmp_path, *arguments) == 1
        shown = capsys.readouterr().out.splitlines()
        assert shown[:3] == ["|  | runs | error |", "|---|---|---|", "| fail false | 2 | 0.5 ± 0.24 |"]
        assert shown[-2] == "| fail=true,seed=1 | exit status 3: toy: the data are lost |"
    found = content(tmp_path / "sweep.json")
    assert [run["failure"] != "" for run in found["runs"]] == [True, True, False, False]
    assert "the data are lost" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_when_all_fail_there_is_still_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, "--grid", "seed=0", "--", "--fail") == 1
    assert "the data are lost" in capsys.readouterr().out
    assert not (tmp_path / "sweep.png").exists() and (tmp_path / "index.html").exists()


# --- processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_the_processes(tmp_path: Path, number: int, error: type[BaseException]) -> None:
    hanging = Job("hang", ("toy", "--hang", "--out", str(tmp_path / "hang")), tmp_path / "hang")
    short = Job("short", ("toy", "--out", str(tmp_path / "short")), tmp_path / "short")

    def interrupt(job: Job, status: int) -> None:
        assert (job, status) == (short, 0)
        while not (tmp_path / "hang" / "pid").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    with pytest.raises(error):
        perform([hanging, short], shared_out(places("cpu"), 2), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "hang" / "pid").read_text(encoding="utf-8")), 0)


def test_the_real_command_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    ended: list[tuple[str, int]] = []
    perform([Job("x", ("nothing",), tmp_path / "x")], [{}], lambda job, status: ended.append((job.name, status)))
    assert ended == [("x", 2)]
    assert last_words(tmp_path / "x").startswith("unknown experiment 'nothing'")


def test_each_run_has_a_gpu_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places("cuda")] == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places("cuda")] == ["5", "7"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert shared_out(places("cuda"), 1) == [{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "5"}]


def test_last_words(tmp_path: Path) -> None:
    assert last_words(tmp_path) == "it left no log"
    (tmp_path / "log.txt").write_bytes(b"")
    assert last_words(tmp_path) == "it said nothing"
    (tmp_path / "log.txt").write_bytes(b"first\n 10 %\r 20 %\r\n\n")
    assert last_words(tmp_path) == "20 %"


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("size=16,32", ("size", ["16", "32"])),
    ("seed=0..3", ("seed", ["0", "1", "2", "3"])),
    ("shift=-2..0,5", ("shift", ["-2", "-1", "0", "5"])),
    ("--mean-lr=0.1", ("mean_lr", ["0.1"])),
    ("kernel=student_t(3)", ("kernel", ["student_t(3)"])),
])  # fmt: skip
def test_an_axis_of_the_grid(text: str, expected: tuple[str, list[str]]) -> None:
    assert axis(text) == expected


@pytest.mark.parametrize("text", ["size", "=3", "size=", "size=1,,2", "size=1,1", "seed=0..3,2", "seed=3..1", "2=3"])
def test_bad_axes(text: str) -> None:
    with pytest.raises(UserError, match="--grid .*; expected"):
        axis(text)


@pytest.mark.parametrize(("arguments", "message"), [
    (["toi", "--grid", "seed=0"], "unknown experiment 'toi'"),
    (["toy", "--grid", "seed=0", "--jobs", "3"], "--jobs 3; expected 1 to 2"),
    (["toy", "--grid", "seed=0", "--jobs", "0"], "expected 1 to 2"),
    (["toy", "--grid", "seed=0", "seed=1"], "options twice"),
    (["toy", "--grid", "sise=0"], "sise"),
    (["toy", "--grid", "size=3,many"], "many"),
    (["toy", "--grid", "seed=-1"], "--seed -1; expected"),
    (["toy", "--grid", "seed=0", "--", "--resume"], "--resume for a run of a sweep"),
    (["toy", "--grid", "out=a,b"], "--out for a run of a sweep"),
    (["toy"], "--grid"),
])  # fmt: skip
def test_errors_of_use_come_before_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["sweep", arguments[0], "--out", str(tmp_path / "out"), *arguments[1:]]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- report ----------------------------------------------------------------------------------------------


def result(summary: dict[str, Any] | None, **values: str) -> Result:
    return Result(values, Path("run"), summary, [], "")


def test_figures_over_seeds() -> None:
    runs = [result({"error": 1.0, "exact": True, "steps": 5, "name": "a", "same": 2, "seed": 0}),
            result({"error": 2.0, "exact": False, "steps": None, "same": 2, "seed": 1}),
            result({"error": 6.0, "exact": True, "steps": 7, "same": 2, "seed": 2})]  # fmt: skip
    assert figures(runs, ()) == ["error", "exact", "steps"]
    assert figures(runs, ("same",)) == ["same"]
    assert figures(runs[:1], ()) == ["error", "exact", "steps", "same"]
    said = [told(runs, key) for key in ("error", "exact", "steps", "name")]
    assert said == ["3 ± 2.6", "2 of 3", "6 ± 1.4 (2 of 3)", "–"]
    assert told(runs[:1], "error") == "1"
    with pytest.raises(UserError, match="--figures eror: no number of a summary; expected some of error, exact"):
        figures(runs, ("eror",))


def test_a_band_reaches_from_the_lowest_to_the_highest_of_those_that_are_there() -> None:
    steps, means, low, high = band([([0, 1, 2], [1.0, 2.0, float("nan")]), ([0, 1], [3.0, 6.0])])
    assert (steps, means, low, high) == ([0, 1], [2.0, 4.0], [1.0, 2.0], [3.0, 6.0])


def test_the_plot_shows_every_run_and_the_spread(tmp_path: Path) -> None:
    panels = {"error": {"a": [1.0, 3.0], "b": [5.0, float("nan")]}, "exact": {"a": [0.0, 1.0], "b": []}}
    figure = plot.spread(panels, tmp_path / "a.png")
    first = figure.axes[0]
    dots = [each.get_offsets().tolist() for each in first.collections if each.get_gid() == "runs"]
    assert dots == [[[1.0, 0.0], [3.0, 0.0]], [[5.0, 1.0]]]
    assert [line.get_xdata().tolist() for line in first.lines] == [[2.0], [5.0]]
    bars = [each.get_segments()[0][:, 0] for each in first.collections if each.get_gid() != "runs"]
    assert np.allclose(bars, [[2 - 2**0.5, 2 + 2**0.5], [5, 5]])  # one deviation of a sample to each side
    assert [text.get_text() for text in first.get_yticklabels()] == ["a", "b"]
    with pytest.raises(UserError, match="different kinds"):
        plot.spread({"error": {"a": [1.0]}, "exact": {"b": [1.0]}})
    with pytest.raises(UserError, match="panels is empty"):
        plot.spread({})
