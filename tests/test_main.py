"""The command line of the experiments: the table, options, presets and exit statuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ash.checks import UserError
from experiments.__main__ import COMMANDS, EXPERIMENTS, Experiment, main
from experiments.data import DataError
from experiments.runs import Run, RunOptions

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Options(RunOptions):
    """Options of the toy."""

    size: int = 3
    """How large the toy is."""
    fail: str = ""


PRESETS: dict[str, Callable[[Options], Options]] = {
    "blog": lambda options: dataclasses.replace(options, size=32, quick=True),
}

FAILURES: dict[str, BaseException] = {
    "use": UserError("size=3; expected more; give more"),
    "data": DataError("file: broken; expected whole; get it again"),
    "interrupt": KeyboardInterrupt(),
    "defect": ZeroDivisionError("a defect"),
}


def run(options: Options, run: Run) -> dict[str, object]:
    run.log(1, draw=torch.rand(()))
    if options.fail:
        raise FAILURES[options.fail]
    return {"size": options.size}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the run of an experiment `toy`, which is this file."""
    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment(__name__, "for the tests"))
    return tmp_path / "run"


def start(out: Path, *arguments: str) -> int:
    return main(["toy", "--out", str(out), *arguments])


def config(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "config.json").read_text(encoding="utf-8")))


def test_a_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(out, "--size", "5", "--seed", "2") == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["experiment"], summary["size"], summary["seed"], summary["steps"]) == ("toy", 5, 2, 1)
    assert "size" in capsys.readouterr().out
    assert (config(out)["size"], config(out)["preset"]) == (5, None)


def test_equal_seeds_give_equal_metrics(out: Path) -> None:
    metrics = []
    for seed in ("1", "1", "2"):
        assert start(out, "--seed", seed) == 0
        metrics.append((out / "metrics.jsonl").read_bytes())
    assert metrics[0] == metrics[1] != metrics[2]


def test_a_preset_gives_way_to_options(out: Path) -> None:
    assert start(out, "--preset", "blog") == 0
    assert (config(out)["size"], config(out)["quick"], config(out)["preset"]) == (32, True, "blog")
    assert start(out, "--size", "4", "--preset", "blog", "--no-quick") == 0
    assert (config(out)["size"], config(out)["quick"]) == (4, False)


@pytest.mark.parametrize("failure", ["use", "data"])
def test_errors_of_use_and_data_are_plain(
    out: Path, capsys: pytest.CaptureFixture[str], failure: str
) -> None:
    assert start(out, "--fail", failure) == 2
    assert capsys.readouterr().err == f"toy: {FAILURES[failure]}\n"
    assert not (out / "summary.json").exists()


def test_an_interrupt_leaves_no_summary(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(out) == 0
    assert start(out, "--fail", "interrupt") == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (out / "summary.json").exists()


def test_a_defect_keeps_its_traceback(out: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a defect"):
        start(out, "--fail", "defect")
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "many"], "size"),
        (["--device", "abacus"], "device"),
        (["--sise", "3"], "sise"),
        (["--preset", "blok"], "unknown preset 'blok'; expected one of 'blog'"),
        (["--resume"], "no checkpoint"),
        (["--seed", "-1"], "--seed -1; expected"),
    ],
)
def test_wrong_options(
    out: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert start(out, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_experiment_without_presets(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys.modules[__name__], "PRESETS")
    assert start(out, "--preset", "blog") == 2
    assert "toy has no presets" in capsys.readouterr().err


def test_an_out_that_is_a_file(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.write_text("mine", encoding="utf-8")
    assert start(out) == 2
    assert "--out" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine"


def test_help_of_an_experiment_tells_its_options_and_presets(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(out, "--help") == 0
    shown = capsys.readouterr().out
    for word in ("python -m experiments toy", "--size", "How large the toy is", "--resume", "Presets: blog"):
        assert word in shown
    assert not out.exists()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_table(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for name, experiment in {**EXPERIMENTS, **COMMANDS}.items():
        assert f"{name} " in shown
        assert experiment.line in shown


def test_an_unknown_name_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identiti"]) == 2
    shown = capsys.readouterr().err
    assert "unknown experiment 'identiti'; expected one of" in shown
    assert "Did you mean 'identity'?" in shown
    assert all(name in shown for name in (*EXPERIMENTS, *COMMANDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_what_is_done_with_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"python -m experiments {name}" in shown and "--out" in shown and "index.html" in shown


def test_the_process_lists_without_loading_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['experiments']\n"
        "try: runpy.run_module('experiments', run_name='__main__')\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert "usage: python -m experiments NAME" in done.stdout


def test_the_process_exits_with_the_status() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
