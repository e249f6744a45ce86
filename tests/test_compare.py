"""`compare`: what stands side by side, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.compare import names_of
from tests.page_data import held
from tests.test_records import write


def run(folder: Path, summary: dict[str, Any] | None, experiment: str = "toy", **options: Any) -> Path:
    """The folder of a run of two steps, whose loss ends at its learning rate."""
    config = {"experiment": experiment, "version": "1", "commit": folder.name, "out": str(folder), **options}
    metrics = f'{{"step": 1, "loss": 1.0}}\n{{"step": 2, "loss": {options["lr"]}, "{experiment}_error": 0.5}}\n'
    return write(folder, config, metrics, summary)


def compare(out: Path, *folders: Path) -> int:
    return main(["compare", *map(str, folders), "--out", str(out)])


def test_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "a" / "one", {"experiment": "toy", "error": 0.25, "exact": True, "gates": [1]}, lr=0.1, size=3)
    two = run(tmp_path / "a" / "two", {"experiment": "toy", "error": 0.125, "moves": 7}, lr=0.2, size=3)
    (one / "index.html").write_text("a page", encoding="utf-8")
    assert compare(tmp_path / "out", one, two) == 0
    table = capsys.readouterr().out
    assert table.splitlines() == [
        "|  | one | two |",
        "|---|---|---|",
        "| --lr | 0.1 | 0.2 |",
        "| error | 0.25 | 0.125 |",
        "| exact | true | – |",
        "| moves | – | 7 |",
    ]
    assert (tmp_path / "out" / "compare.md").read_text(encoding="utf-8") == table
    loss, error = held(tmp_path / "out" / "index.html")["charts"]
    assert [(each["name"], each["y"]) for each in loss["series"]] == [("one", [1.0, 0.1]), ("two", [1.0, 0.2])]
    assert [each["x"] for each in error["series"]] == [[2], [2]]
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert '<a href="../a/one/index.html">one</a>' in text and "<th scope=\"col\">two</th>" in text


def test_of_several_experiments_what_they_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "one", {"error": 0.25, "moves": 7}, lr=0.1, size=3)
    two = run(tmp_path / "two", {"error": 0.125, "tuples": 4}, experiment="other", lr=0.2, depth=2)
    assert compare(tmp_path / "out", one, two) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| experiment | toy | other |", "| --lr | 0.1 | 0.2 |", "| error | 0.25 | 0.125 |",
    ]  # fmt: skip
    (loss,) = held(tmp_path / "out" / "index.html")["charts"]
    assert len(loss["series"]) == 2


def test_a_run_that_goes_on_has_curves_and_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = run(tmp_path / "one", None, lr=0.1), run(tmp_path / "two", {"error": 0.5}, lr=0.1)
    assert compare(tmp_path / "out", one, two) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["| finished | false | true |", "| error | – | 0.5 |"]
    assert len(held(tmp_path / "out" / "index.html")["charts"][0]["series"]) == 2


def test_names_are_as_long_as_they_must_be() -> None:
    assert names_of([Path("/a/b/run"), Path("/a/c/run"), Path("/d/c/other")]) == ["b/run", "c/run", "c/other"]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run(tmp_path / "good", {"error": 1}, lr=0.1)
    other = run(tmp_path / "other", {"error": 1}, lr=0.1)
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ([good], "1 folders; expected two at least"),
        ([good, good], "is given twice"),
        ([good, tmp_path / "none"], "none is no folder; expected the folder of a run"),
        ([good, tmp_path / "empty"], "empty has no config.json of a run"),
    ):
        assert compare(tmp_path / "out", *folders) == 2
        assert message in capsys.readouterr().err
    assert compare(good, good, other) == 2
    assert "is the folder of a run; choose another" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (good / "compare.md").exists()
