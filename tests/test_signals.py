"""Runs that are told to stop: a checkpoint, an exit status, and they go on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ash.checks import UserError
from experiments import stopping
from experiments.__main__ import EXPERIMENTS, Experiment, main
from experiments.lock import LOCK, held
from experiments.runs import Run, RunOptions, Stopped
from experiments.stopping import Stopping


@dataclass
class Options(RunOptions):
    """Options of the toy."""

    steps: int = 9
    every: int = 4


AT: dict[int, Callable[[], None]] = {}
"""What happens in the batch of a step of the toy; 0: before the first, 10: while it draws."""


def happen(step: int) -> None:
    AT.get(step, lambda: None)()


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def run(options: Options, run: Run) -> dict[str, object]:
    """A sum of random numbers."""
    start, total = 0, torch.zeros(())
    saved = run.load()
    if saved is not None:
        start, (total, state) = saved
        torch.set_rng_state(state)
    happen(0)
    for step in range(start + 1, options.steps + 1):
        happen(step)
        total = total + torch.rand(())
        run.log(step, total=total)
        run.keep(step, lambda total=total: (total, torch.get_rng_state()), due=step % options.every == 0)
    happen(10)
    return {"total": total}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the run of an experiment `toy`, which is this file; signals and what happens are put back."""
    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment(__name__, "for the tests"))
    before = [signal.getsignal(number) for number in WATCHED]
    yield tmp_path / "run"
    AT.clear()
    assert [signal.getsignal(number) for number in WATCHED] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def start(out: Path, *arguments: str) -> int:
    return main(["toy", "--out", str(out), *arguments])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_at_a_checkpoint_from_which_the_run_goes_on(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    assert start(tmp_path / "whole") == 0
    AT[6] = send(number)
    assert start(out) == status
    name = signal.Signals(number).name
    assert capsys.readouterr().err.splitlines()[-1] == f"toy: stopped by {name} after step 6; go on with --resume"
    assert len((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 6
    assert not (out / "summary.json").exists() and not (out / LOCK).exists()
    AT.clear()
    assert start(out, "--resume") == 0
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (tmp_path / "whole", out)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_run_at_once(out: Path, number: int, status: int) -> None:
    def twice() -> None:
        send(signal.SIGTERM)()
        send(number)()
        time.sleep(10)

    AT[6] = twice
    assert start(out) == status
    assert len((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 5
    AT.clear()
    assert start(out, "--resume") == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_batch_ends_the_run_at_once(
    out: Path, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    def wait() -> None:
        send(number)()
        time.sleep(10)

    AT[0] = wait
    assert start(out) == status
    assert not (out / "checkpoint").exists() and not (out / "summary.json").exists()
    assert capsys.readouterr().err in ("toy: interrupted\n", "toy: stopped by SIGTERM\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_draws_ends_within_the_grace(
    out: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.05)

    def draw() -> None:
        send(number)()
        time.sleep(10)

    AT[10] = draw
    assert start(out) == status
    assert not (out / "summary.json").exists()


def test_a_run_whose_points_lie_far_apart_has_time_to_reach_the_next(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.02)
    AT[1] = lambda: time.sleep(0.5)
    AT[2] = lambda: (send(signal.SIGTERM)(), time.sleep(0.05))[1]
    assert start(out) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "toy: stopped by SIGTERM after step 2; go on with --resume"


def test_a_run_that_is_finished_within_the_grace_is_finished(out: Path) -> None:
    AT[10] = send(signal.SIGTERM)
    assert start(out) == 0
    assert (out / "summary.json").exists()


def test_the_time_limit(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path / "whole") == 0
    assert start(out, "--time-limit", "1e-6") == 124
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "toy: stopped by --time-limit after step 1; go on with --resume"
    assert start(out, "--resume", "--time-limit", "1e-6") == 124
    assert start(out, "--resume", "--time-limit", "1000") == 0
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (tmp_path / "whole", out)]
    assert metrics[0] == metrics[1]
    assert start(out, "--time-limit", "0") == 2
    assert "--time-limit=0.0; expected a number above 0" in capsys.readouterr().err


def test_keep_asks_for_the_state_only_where_it_is_saved(tmp_path: Path) -> None:
    asked = []

    def state() -> int:
        asked.append(len(asked))
        return asked[-1]

    with Run("toy", Options(out=tmp_path)) as run:
        run.keep(1, state, due=False)
        run.keep(2, state)
        send(signal.SIGTERM)()
        with pytest.raises(Stopped) as stopped:
            run.keep(3, state, due=False)
    assert (stopped.value.status, stopped.value.step, asked) == (143, 3, [0, 1])
    with Run("toy", Options(out=tmp_path, resume=True)) as run:
        assert run.load() == (3, 1)


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping() as watch:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            send(signal.SIGINT)()
            assert watch.status == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_process_leaves_an_interrupt_to_the_run_and_ends_by_other_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[int, int, object]] = []
    with Stopping() as watch:
        watch.meet()
        monkeypatch.setattr(os, "getpid", lambda: 1)
        monkeypatch.setattr(os, "kill", lambda *to: sent.append((*to, signal.getsignal(to[1]))))
        signal.raise_signal(signal.SIGINT)
        assert not sent
        signal.raise_signal(signal.SIGTERM)
    assert sent == [(1, signal.SIGTERM, signal.SIG_DFL)]
    assert watch.status == 0


def test_other_threads_leave_signals_alone(tmp_path: Path) -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Run("toy", Options(out=tmp_path)) as run:
            seen.append(signal.getsignal(signal.SIGTERM))
            run.keep(1, lambda: None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
    assert (tmp_path / "checkpoint").is_dir()


HOLDER = """
import fcntl, os, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print(f"process {os.getpid()} since yesterday", file=file, flush=True)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_into_a_folder_is_refused_while_the_first_lives(out: Path) -> None:
    with Run("toy", Options(out=out)) as run:
        run.log(1, total=1)
        run.keep(1, lambda: None)
        content = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for resume in (False, True):
            expected = rf"--out .* is in use by process {os.getpid()} since \d{{4}}-.*; expected .*--out"
            with pytest.raises(UserError, match=expected):
                Run("toy", Options(out=out, resume=resume))
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == content
        run.log(2, total=2)
    Run("toy", Options(out=out, resume=True)).close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / LOCK)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {process.pid} since"), held(tmp_path):
            pass
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).exists()
        with held(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text(encoding="utf-8")
    assert not (tmp_path / LOCK).exists()
