"""The run folder: what a run leaves, what it removes, and how it goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from ash.checks import UserError
from ash.plot import EdgeTrack
from experiments import folder, machine
from experiments.options import EvaluateOptions, resolve
from experiments.runs import Run, RunOptions, restore, table, training_state
from tests.page_data import held


@dataclass
class Options(RunOptions):
    """Options of a small training."""

    steps: int = 12
    width: int = 4
    save_every: int = 5


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def names(path: Path) -> set[str]:
    return {item.name for item in path.iterdir()}


def train(options: Options, run: Run, stop: int | None = None) -> dict[str, object]:
    """A net with dropout; killed after `stop` steps."""
    generator = torch.Generator().manual_seed(options.seed)
    model = nn.Sequential(nn.Linear(3, options.width), nn.Dropout(0.5), nn.Linear(options.width, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    start, saved = 0, run.load()
    if saved is not None:
        start, state = saved
        restore(state, model, optimizer, data=generator)
    bar = run.progress(options.steps, "training", start=start)
    for step in range(start + 1, options.steps + 1):
        x = torch.randn(8, 3, generator=generator)
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(step, loss=loss)
        run.time(step)
        bar.update(1)
        if step % options.save_every == 0:
            run.save(step, training_state(model, optimizer, data=generator), score=-step)
        if step == stop:
            raise KeyboardInterrupt
    return {"loss": loss, "weight": model[0].weight}


def perform(options: Options, stop: int | None = None) -> dict[str, object]:
    torch.manual_seed(options.seed)
    with Run("toy", options) as run:
        return run.finish(train(options, run, stop))


def test_a_run_leaves_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "run"
    with Run("toy", Options(out=out, seed=7)) as run:
        run.log(1, loss=torch.tensor(float("nan")), rate=0.5, name="a")
        run.log(20, loss=0.25)
        run.time(20, batches=3)
        run.path("means.png").write_bytes(b"picture")
        run.path("frames/0.png").write_bytes(b"picture")
        assert run.device == torch.device(run.options.device)
        run.finish({"exact": True, "error": float("inf"), "tensor": torch.tensor(2)})
    assert names(out) == {
        *("config.json", "metrics.jsonl", "timing.jsonl", "summary.json"),
        *("pictures.json", "means.png", "frames", "index.html"),
    }
    assert lines(out / "metrics.jsonl") == [
        {"step": 1, "loss": None, "rate": 0.5, "name": "a"},
        {"step": 20, "loss": 0.25},
    ]
    (timing,) = lines(out / "timing.jsonl")
    assert (timing["step"], timing["batches"]) == (20, 3)
    assert timing["seconds"] >= 0
    summary = content(out / "summary.json")
    assert list(summary)[:5] == ["experiment", "seed", "steps", "seconds", "peak_memory_bytes"]
    assert (summary["experiment"], summary["seed"], summary["steps"]) == ("toy", 7, 20)
    assert (summary["exact"], summary["error"], summary["tensor"]) == (True, None, 2)
    assert capsys.readouterr().out == table(summary) + "\n"


def test_the_page_of_a_run(tmp_path: Path) -> None:
    with Run("toy", Options(out=tmp_path, seed=7)) as run:
        for step in range(3):
            run.log(step, train_error=1 / (step + 1), test_error=None)
        run.path("notes.md").write_text("A note.", encoding="utf-8")
        run.path("never drawn.png")
        run.show("edges", EdgeTrack([(0, [[0, 1]]), (2, [[1, 1]])], (2, 2)))
        run.finish({"rows": [{"wiring": "rigl", "error": 0.25}], "long": list(range(1000))})
    (track,), (chart,) = held(tmp_path / "index.html").values()
    assert track["counts"] == [[1, 0, 0], [1, 1, 1]]
    assert [(one["name"], one["y"]) for one in chart["series"]] == [
        ("train", [1.0, 0.5, 0.333333]), ("test", [None, None, None]),
    ]  # fmt: skip
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for part in ("<h1>toy</h1>", "seed 7", "<td>rigl</td>", "A note.", "<td>--", "<td>width</td>", "298, 299"):
        assert (part in text) == (part not in ("<td>--", "298, 299"))


def test_config_holds_every_option_as_resolved(tmp_path: Path) -> None:
    Run("toy", Options(out=tmp_path, width=9)).close()
    config = content(tmp_path / "config.json")
    assert {"experiment", "version", "commit"} <= set(config)
    assert config["device"] in ("cpu", "cuda")
    assert (config["out"], config["width"], config["seed"], config["quick"]) == (str(tmp_path), 9, 0, False)


def test_the_default_folder_bears_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Run("toy", RunOptions()).close()
    assert (tmp_path / "runs" / "toy" / "config.json").is_file()


def test_the_summary_may_say_its_own_steps_but_not_its_own_seed(tmp_path: Path) -> None:
    with Run("toy", Options(out=tmp_path, seed=3)) as run:
        run.log(5, loss=1)
        summary = run.finish({"steps": 6, "seed": 1})
    assert (summary["steps"], summary["seed"]) == (6, 3)


def test_a_new_run_removes_what_an_earlier_one_left_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with Run("toy", Options(out=tmp_path)) as run:
        run.log(1, loss=1)
        run.path("means.gif").write_bytes(b"picture")
        run.path("frames/1.png").write_bytes(b"picture")
        run.save(1, torch.ones(2))
        run.finish({})
    Run("toy", Options(out=tmp_path)).close()
    kept = {"holiday.png", "notes.txt", "frames"}
    assert names(tmp_path) == kept | {"config.json", "metrics.jsonl", "timing.jsonl"}
    assert not (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert not names(tmp_path / "frames")


def test_a_list_of_pictures_cannot_reach_outside(tmp_path: Path) -> None:
    outside, out = tmp_path / "precious.png", tmp_path / "run"
    outside.write_bytes(b"mine")
    Run("toy", Options(out=out)).close()
    listed = ["../precious.png", str(outside), ".", 3]
    (out / "pictures.json").write_text(json.dumps(listed), encoding="utf-8")
    with Run("toy", Options(out=out)) as run:
        for name in ("../precious.png", str(outside), "."):
            with pytest.raises(UserError, match="inside the run folder"):
                run.path(name)
    assert outside.read_bytes() == b"mine"


def test_a_stale_summary_is_gone_as_soon_as_a_run_begins(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    Run("toy", Options(out=tmp_path)).close()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_run_that_fails_leaves_no_summary(tmp_path: Path, error: type[BaseException]) -> None:
    run = Run("toy", Options(out=tmp_path))

    def fail() -> None:
        with run:
            run.finish({})
            raise error

    with pytest.raises(error):
        fail()
    assert "summary.json" not in names(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="--out .*expected a folder that can be written.*--out"):
        Run("toy", Options(out=tmp_path / place))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert names(tmp_path) == {"file"}


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(folder.tempfile, "TemporaryFile", deny)
    with pytest.raises(UserError, match="Permission denied; expected a folder"):
        Run("toy", Options(out=tmp_path))
    assert names(tmp_path) == {"summary.json"}


@pytest.mark.parametrize("text", ['{"compiler": "strict"}', "not JSON"])
def test_the_configuration_of_another_program_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="not of a run.*--out"):
        Run("toy", Options(out=tmp_path))
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == text


def test_options_that_cannot_be_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU.*--device cpu"):
        Run("toy", Options(out=tmp_path, device="cuda"))
    with pytest.raises(UserError, match="--seed -1; expected"):
        Run("toy", Options(out=tmp_path, seed=-1))
    with pytest.raises(UserError, match="--checkpoint best without a run that has one; expected --resume beside it"):
        Run("toy", Options(out=tmp_path, checkpoint="best"))
    assert not names(tmp_path)


@pytest.mark.parametrize("stop", [5, 7, 11])
def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path: Path, stop: int) -> None:
    whole = perform(Options(out=tmp_path / "whole"))
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        perform(Options(out=broken), stop=stop)
    assert "summary.json" not in names(broken)
    resumed = perform(Options(out=broken, resume=True))
    assert {**resumed, "seconds": 0, "peak_memory_bytes": 0} == {
        **whole,
        "seconds": 0,
        "peak_memory_bytes": 0,
    }
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
    assert metrics[0] == metrics[1]
    assert [line["step"] for line in lines(broken / "timing.jsonl")] == list(range(1, 13))


@pytest.mark.parametrize(("which", "step"), [("previous", 5), ("best", 5), ("last", 10)])
def test_a_run_goes_on_from_any_of_its_checkpoints(
    tmp_path: Path, which: Literal["last", "previous", "best"], step: int
) -> None:
    perform(Options(out=tmp_path / "whole"))
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        perform(Options(out=broken), stop=11)
    with Run("toy", Options(out=broken, resume=True, checkpoint=which)) as run:
        saved = run.load()
        assert saved is not None and saved[0] == step
        assert [line["step"] for line in lines(broken / "metrics.jsonl")] == list(range(1, step + 1))
    perform(Options(out=broken, resume=True))
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
    assert metrics[0] == metrics[1]


def test_a_damaged_checkpoint_is_refused_and_the_previous_one_taken_on_request(tmp_path: Path) -> None:
    perform(Options(out=tmp_path / "whole"))
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        perform(Options(out=broken), stop=11)
    named = content(broken / "checkpoint" / "state.json")["tensors"]
    raw = bytearray((broken / "checkpoint" / named).read_bytes())
    raw[-1] ^= 1
    (broken / "checkpoint" / named).write_bytes(raw)
    before = (broken / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="does not match its checksum.*with --resume --checkpoint previous"):
        Run("toy", Options(out=broken, resume=True))
    assert (broken / "metrics.jsonl").read_bytes() == before
    perform(Options(out=broken, resume=True, checkpoint="previous"))
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
    assert metrics[0] == metrics[1]


def test_a_finished_run_goes_on_to_more_steps(tmp_path: Path) -> None:
    perform(Options(out=tmp_path / "whole"))
    perform(Options(out=tmp_path / "parts", steps=8))
    perform(Options(out=tmp_path / "parts", steps=12, resume=True))
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_seconds_and_peak_memory_carry_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("experiments.runs.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(machine, "peak_memory_bytes", lambda: 5000)
    with Run("toy", Options(out=tmp_path)) as run:
        clock[0] += 10
        run.save(1, None)
        clock[0] += 50
    monkeypatch.setattr(machine, "peak_memory_bytes", lambda: 3000)
    with Run("toy", Options(out=tmp_path, resume=True)) as run:
        clock[0] += 2
        assert run.load() == (1, None)
        summary = run.finish({})
    assert (summary["seconds"], summary["peak_memory_bytes"], summary["steps"]) == (12, 5000, 1)


def test_a_resumed_run_keeps_its_pictures_and_knows_them(tmp_path: Path) -> None:
    with Run("toy", Options(out=tmp_path)) as run:
        run.path("0.png").write_bytes(b"picture")
        run.save(1, None)
    with Run("toy", Options(out=tmp_path, resume=True)) as run:
        run.path("1.png").write_bytes(b"picture")
    assert {"0.png", "1.png"} <= names(tmp_path)
    Run("toy", Options(out=tmp_path)).close()
    assert not {"0.png", "1.png"} & names(tmp_path)


def finished(path: Path) -> bytes:
    with Run("toy", Options(out=path)) as run:
        run.log(1, loss=1)
        run.save(1, None)
        run.finish({})
    return (path / "summary.json").read_bytes()


def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    summary = finished(tmp_path)
    with pytest.raises(UserError, match=r"--width 4 \(now 5\).*expected the same options"):
        Run("toy", Options(out=tmp_path, resume=True, width=5))
    with pytest.raises(UserError, match="experiment 'toy'; expected 'other'"):
        Run("other", Options(out=tmp_path, resume=True))
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="has 0 bytes; expected at least"):
        Run("toy", Options(out=tmp_path, resume=True))
    assert (tmp_path / "summary.json").read_bytes() == summary


def test_resume_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint.*without --resume"):
        Run("toy", Options(out=tmp_path / "new", resume=True))
    assert not names(tmp_path)


def test_load_is_none_for_a_new_run(tmp_path: Path) -> None:
    with Run("toy", Options(out=tmp_path)) as run:
        assert run.load() is None


def test_the_bar_goes_to_stderr_with_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with Run("toy", Options(out=tmp_path)) as run:
        bar = run.progress(4, "training", start=1)
        assert bar.mininterval == 2.0
        run.log(4, loss=0.123456, exact=False, note="words")
        bar.update(3)
    shown = capsys.readouterr()
    assert not shown.out
    assert "training" in shown.err
    assert "4/4" in shown.err
    assert "loss=0.1235" in shown.err
    assert "words" not in shown.err


def test_table() -> None:
    shown = table({"experiment": "toy", "error": 0.123456789, "exact": True, "none": None, "path": [1, 2]})
    assert shown.splitlines() == [
        "experiment  toy",
        "error       0.123457",
        "exact       true",
        "none        null",
        "path        [1, 2]",
    ]


def test_peak_memory_is_in_bytes() -> None:
    # A process with torch in it needs tens of megabytes and less than a terabyte.
    assert 2**24 < machine.peak_memory_bytes() < 2**40


def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert 2**24 < machine.peak_memory_bytes() < 2**40


def test_version_and_commit_are_text() -> None:
    assert machine.version()
    commit = machine.commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None


def test_an_evaluation_keeps_apart_from_the_run_that_it_reads(tmp_path: Path) -> None:
    for out, read in ((tmp_path, tmp_path), (None, tmp_path), (None, tmp_path / "checkpoint")):
        assert resolve("toy", EvaluateOptions(out=out, evaluate=read)).out == tmp_path / "evaluation"
    elsewhere = resolve("toy", EvaluateOptions(out=tmp_path / "other", evaluate=tmp_path))
    assert elsewhere.out == tmp_path / "other"
    assert resolve("toy", EvaluateOptions()).out == Path("runs/toy")
