"""The experiment `graphs`: its tasks and what all of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from experiments.__main__ import main
from experiments.graphs import MODULES, TASKS, Options


def test_every_task_has_its_module() -> None:
    assert set(get_args(get_type_hints(Options)["task"])) == set(MODULES) == set(TASKS)
    for task, module in MODULES.items():
        chosen: Any = Options(task=task, quick=True)
        assert module.resolved(chosen).task == chosen.resolved().task == task


def test_options_of_a_family_bear_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graphs", "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in ("--task", "--nodes", "--baselines", "--transform.lr", "--vae.", "--pagerank.", "--isomorphism."):
        assert flag in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--task", "sort"], "identity"), (["--nodes", "0"], "--nodes=0"), (["--steps", "-1"], "--steps=-1")],
)
def test_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["graphs", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
