"""Reading a run's folder again: curves from the metrics, families of figures, damaged files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ash.checks import UserError
from experiments.pages import LONGEST, cell
from experiments.records import charts, families, figures_of, read_lines, read_record


def write(folder: Path, config: Any = None, metrics: str = "", summary: Any = None) -> Path:
    """A run's folder; a text is written as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", config), ("summary.json", summary)):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8")
    (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    return folder


def test_a_figure_is_a_curve_with_gaps() -> None:
    lines = [{"step": 1, "epoch": 1, "loss": 0.5, "gates": [1, 2]}, {"step": 4, "epoch": 2, "loss": None, "error": 1}]
    found = figures_of(lines)
    assert list(found) == ["loss", "error"]
    (steps, values), = found["loss"].values()
    assert steps == [1, 4] and values[0] == 0.5 and math.isnan(values[1])
    assert found["error"] == {"": ([4], [1.0])}


def test_nets_trained_side_by_side_share_their_steps() -> None:
    lines = [{"step": step, "net": net, "loss": 1.0} for step in (2, 4) for net in ("a", "b")]
    assert figures_of(lines)["loss"] == {"a": ([2, 4], [1.0, 1.0]), "b": ([2, 4], [1.0, 1.0])}


def test_nets_trained_one_after_the_other_all_start_at_0() -> None:
    lines = [{"step": step, "wiring": "rigl" if step <= 4 else "set", "seed": 3, "loss": 1.0} for step in (2, 4, 6, 8)]
    assert figures_of(lines)["loss"] == {"rigl, seed 3": ([2, 4], [1.0, 1.0]), "set, seed 3": ([2, 4], [1.0, 1.0])}


def test_a_line_for_each_net_is_one_curve() -> None:
    lines = [{"step": i, "host": "conv", "defects": i == 1, "seed": i, "accuracy": 0.5} for i in range(3)]
    assert figures_of(lines) == {"accuracy": {"": ([0, 1, 2], [0.5] * 3)}}


def test_no_lines_are_no_curves() -> None:
    assert figures_of([]) == {} and charts([]) == {}


def test_figures_whose_names_end_alike_are_in_one_picture() -> None:
    names = ("loss", "train_accuracy", "test_accuracy", "test_accuracy_sampled", "mse_rounded", "mse_sampled",
             "new_edges", "hyper_exact_match", "diffsort_exact_match")  # fmt: skip
    assert families(names) == {
        "loss": {"loss": "loss"},
        "accuracy": {"train_accuracy": "train", "test_accuracy": "test", "test_accuracy_sampled": "test sampled"},
        "mse": {"mse_rounded": "rounded", "mse_sampled": "sampled"},
        "new edges": {"new_edges": "new edges"},
        "exact match": {"hyper_exact_match": "hyper", "diffsort_exact_match": "diffsort"},
    }


def test_curves_of_a_picture_are_named_by_net_and_figure() -> None:
    lines = [{"step": step, "net": net, "train_loss": 1.0, "test_loss": 2.0, "error": 3.0}
             for step in (1, 2) for net in ("a", "b")]  # fmt: skip
    found = charts(lines)
    assert list(found["loss"].series) == ["a: train", "b: train", "a: test", "b: test"]
    assert list(found["error"].series) == ["a", "b"]


def test_a_folder_is_read_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {"experiment": "toy"}, '{"step": 1}\n{"step": 2}\n{"st', {"steps": 2})
    record = read_record(folder)
    assert (record.experiment, record.lines, record.summary) == ("toy", [{"step": 1}, {"step": 2}], {"steps": 2})
    assert read_record(write(tmp_path / "other", {"experiment": "toy"})).summary is None
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(("files", "message"), [
    ({}, "no config.json of a run"),
    ({"config": {"compiler": "strict"}}, "no config.json of a run"),
    ({"config": "{"}, r"config\.json cannot be read"),
    ({"config": [1]}, r"config\.json holds list"),
    ({"config": {"experiment": "toy"}, "metrics": "loss 3\n"}, r"metrics\.jsonl cannot be read"),
    ({"config": {"experiment": "toy"}, "metrics": '{"loss": 3}\n'}, "lines that are not of a run"),
    ({"config": {"experiment": "toy"}, "summary": "?"}, r"summary\.json cannot be read"),
])  # fmt: skip
def test_folders_that_are_none_of_runs(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    write(tmp_path / "run", **files)
    with pytest.raises(UserError, match=message):
        read_record(tmp_path / "run")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder; expected the folder of a run"):
        read_record(tmp_path / "run")


def test_cells_of_a_table() -> None:
    assert [cell(value) for value in (1, 0.25, True, None, "word")] == [1, 0.25, "true", "–", "word"]
    assert cell([0.123456, [1]]) == "[0.1235, [1]]"
    assert len(cell("a" * 1000)) == LONGEST + 2
