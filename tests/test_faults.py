"""What can go wrong around a run: a full disk, a folder that can no longer be written, other data, NaN in them."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from ash.checks import UserError
from experiments import checkpoint, sources
from experiments.__main__ import EXPERIMENTS, Experiment, main
from experiments.data import DataError, Images, cifar10, mnist, standardise, train_validation
from experiments.runs import Run, RunOptions
from tests.test_cifar import write as write_cifar
from tests.test_data import idx, write_mnist


@dataclass
class Options(RunOptions):
    """Options of the toy."""

    data_dir: Path | None = None
    steps: int = 3


IN_STEP: dict[int, Callable[[Run], None]] = {}
"""What happens in a step of the toy, before it is saved."""


def run(options: Options, run: Run) -> dict[str, object]:
    """Saves a tensor after every step."""
    if options.data_dir is not None:
        mnist(options.data_dir)
    start, total = run.load() or (0, torch.zeros(1000))
    for step in range(start + 1, options.steps + 1):
        IN_STEP.get(step, lambda run: None)(run)
        total = total + step
        run.log(step, total=total[0])
        run.keep(step, lambda total=total: total)
    return {}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the run of an experiment `toy`, which is this file."""
    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment(__name__, "for the tests"))
    monkeypatch.setattr(sys.modules[__name__], "IN_STEP", {})
    return tmp_path / "run"


def start(out: Path, *arguments: str) -> int:
    return main(["toy", "--out", str(out), *arguments])


def fail_at(count: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the `count`-th change that is made to a folder fail with this error, and all after it."""
    done, words = [0], os.strerror(number)

    def watched(owner: Any, name: str, problem: Exception) -> None:
        call = getattr(owner, name)

        def until(*arguments: Any, **options: Any) -> Any:
            done[0] += 1
            if done[0] >= count:
                raise problem
            return call(*arguments, **options)

        monkeypatch.setattr(owner, name, until)

    for owner, name in ((os, "replace"), (os, "fsync"), (Path, "write_text")):
        watched(owner, name, OSError(number, words))
    watched(checkpoint, "save_file", SafetensorError(f"I/O error: {words} (os error {number})"))


def refusal(act: Callable[[], None]) -> str | None:
    """The message of the `UserError` that an act raises; None where it goes well."""
    try:
        act()
    except UserError as error:
        return str(error)
    return None


def test_a_disk_that_is_full_at_any_moment_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, left = 0, set()
    with Run("toy", Options(out=tmp_path)) as run:
        while True:
            count += 1
            for step in (1, 2):
                run.save(step, torch.full((5,), step), score=step / 10)
            with monkeypatch.context() as patch:
                fail_at(count, errno.ENOSPC, patch)
                error = refusal(lambda: run.save(3, torch.full((5,), 3), score=0.3))
            if error is None:
                break
            assert "no checkpoint after step 3 in " in error and "No space left on device" in error
            meta, state = checkpoint.read(tmp_path / "checkpoint")
            left.add(meta["step"])
            assert state.tolist() == [meta["step"]] * 5
            assert checkpoint.read(tmp_path / "checkpoint", "previous").meta["step"] < 3
            assert checkpoint.read(tmp_path / "checkpoint", "best")
            assert not list((tmp_path / "checkpoint").glob(".*"))
    assert count > 8
    assert left <= {2, 3} and 2 in left


@pytest.mark.parametrize(
    ("number", "step", "remedy"),
    [
        (errno.ENOSPC, 1, "there is no former one."),
        (errno.ENOSPC, 3, "go on from the former one, which is whole, with --resume."),
        (errno.EROFS, 3, "go on from the former one, which is whole, with --resume."),
    ],
)
def test_a_disk_that_fails_ends_the_run_with_a_line(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, step: int, remedy: str
) -> None:
    with monkeypatch.context() as patch:
        IN_STEP[step] = lambda run: fail_at(1, number, patch)
        assert start(out) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"toy: no checkpoint after step {step} in {out}: {os.strerror(number)}; expected ")
    assert error.endswith(f"{remedy}\n") and error.count("\n") == 1
    IN_STEP.clear()
    assert start(out, *(["--resume"] if step > 1 else [])) == 0
    assert len((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_metrics(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(run: Run) -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, run._metrics.fileno())
        os.close(full)

    IN_STEP[3] = fill
    assert start(out) == 2
    error = capsys.readouterr().err
    assert "No space left on device; expected" in error and error.count("\n") == 1
    assert not (out / "summary.json").exists()
    IN_STEP.clear()
    assert start(out, "--resume") == 0
    assert len((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_a_disk_that_takes_no_more_bytes(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        IN_STEP[3] = lambda run: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        assert start(out) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no checkpoint after step 3 in " in capsys.readouterr().err
    meta, state = checkpoint.read(out / "checkpoint")
    assert meta["step"] == 2 and state.tolist() == [3] * 1000
    assert not list((out / "checkpoint").glob(".*"))


# --- data ------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_same_data_only(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_mnist(tmp_path / "data")
    assert start(out, "--data-dir", str(data), "--steps", "2") == 0
    for name in [path.name for path in data.iterdir()]:
        (data / f"{name}.gz").write_bytes(gzip.compress((data / name).read_bytes()))
        (data / name).unlink()
    moved = data.rename(tmp_path / "elsewhere")
    assert start(out, "--data-dir", str(moved), "--resume") == 0
    metrics = (out / "metrics.jsonl").read_bytes()
    other = np.random.default_rng(1).integers(0, 256, (7, 28, 28))
    (moved / "train-images-idx3-ubyte").write_bytes(idx(other))
    capsys.readouterr()
    assert start(out, "--data-dir", str(moved), "--resume", "--steps", "5") == 2
    error = capsys.readouterr().err
    assert "made with other data: train-images-idx3-ubyte (SHA-256 " in error and "--data-dir" in error
    assert (out / "metrics.jsonl").read_bytes() == metrics


def test_data_are_those_of_the_run_that_is_open(out: Path, tmp_path: Path) -> None:
    images = write_mnist(tmp_path / "data")
    sources.forget()
    mnist(images)
    assert sorted(sources.noted()) == sorted(path.name for path in images.iterdir())
    with Run("toy", Options(out=out)) as run:
        assert not sources.noted()
        cifar10(write_cifar(tmp_path / "cifar"))
        run.save(1, None)
    names = {path.name for path in (tmp_path / "cifar").iterdir()}
    assert set(checkpoint.read(out / "checkpoint").meta["data"]) == names
    with Run("toy", Options(out=out, resume=True)) as run:
        assert run.load() == (1, None)
        run.save(2, None)
    assert "test_batch" in checkpoint.read(out / "checkpoint").meta["data"]


def pictures(part: str, place: tuple[int, ...], value: float) -> Images:
    parts = {name: torch.rand(5, 3, 4, 4) for name in ("train_x", "test_x")}
    parts[part][place] = value
    y = torch.arange(5)
    return Images(parts["train_x"], y, parts["test_x"], y, name="some", classes=5)


@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("train_x", (3, 1, 0, 2), float("nan"), r"some: training image 3 .* nan at \(1, 0, 2\), and 0 more"),
        ("test_x", (4, 0, 1), float("inf"), r"some: test image 4 .* inf at \(0, 1, 0\), and 3 more"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_with_their_place(
    part: str, place: tuple[int, ...], value: float, message: str
) -> None:
    images = pictures(part, place, value)
    with pytest.raises(DataError, match=message):
        standardise(images)
    with pytest.raises(DataError, match="some: (training|validation|test) image"):
        standardise(train_validation(images, 0.4, seed=0))
