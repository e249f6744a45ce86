"""Figures for TensorBoard: those of the metrics, and what a resumed run takes back is hidden."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ash.checks import BackendUnavailable
from experiments.runs import Run, RunOptions


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by tag."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_the_figures_of_a_run_and_of_its_nets(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Run("toy", RunOptions(out=tmp_path, tensorboard=True)) as run:
        run.log(1, loss=0.5, epoch=1, name="a", exact=False, seed=3, places=[1, 2])
        run.log(1, loss=float("nan"), name="b")
        run.log(2, loss=0.25, name="a", seed=3)
        run.log(2, error=1)
    found = curves(tmp_path)
    assert found == {"loss/a, seed 3": [(1, 0.5), (2, 0.25)], "error": [(2, 1.0)]}
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Run("toy", RunOptions(out=tmp_path, tensorboard=True)) as run:
        for step in range(1, 6):
            run.log(step, loss=step)
            run.keep(step, lambda: None, due=step == 3)
    with Run("toy", RunOptions(out=tmp_path, tensorboard=True, resume=True)) as run:
        run.log(4, loss=40)
    assert curves(tmp_path) == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]}
    Run("toy", RunOptions(out=tmp_path)).close()
    assert not (tmp_path / "tensorboard").exists()


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BackendUnavailable, match="pip install tensorboard"):
        Run("toy", RunOptions(out=tmp_path, tensorboard=True))
    Run("toy", RunOptions(out=tmp_path)).close()
