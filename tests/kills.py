"""Runs that are killed (SIGKILL) at random moments and resumed: they end as if nobody had killed them.

    python -m tests.kills [RUNS] [SEED]        make kills

For each of three experiments a run is left alone. Others with the same options are killed once to three times: at a
moment drawn evenly over the time in which such a run trains, or, every third, during the first checkpoint after that
moment. The last process goes on to the end. Compared are `metrics.jsonl`, byte for byte, and every
tensor of the last checkpoint, bit for bit. Exit status: 0, or 1 if a run differs.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from experiments import checkpoint
from experiments.folder import CHECKPOINT, METRICS
from experiments.lock import LOCK

Process: TypeAlias = "subprocess.Popen[bytes]"

ROOT = Path(__file__).resolve().parent.parent
LOOK = 0.0002
"""Seconds between looks at a folder."""


CHILD = """
import sys
import experiments.runs, experiments.sparsity
from experiments.__main__ import main
every, keep = int(sys.argv[1]), experiments.runs.Run.keep
def often(run, step, state, due=True, score=None):
    keep(run, step, state, due or step % every == 0, score)
experiments.runs.Run.keep, experiments.sparsity.SAVE = often, 1
sys.exit(main(sys.argv[2:]))
"""
"""A run that saves every so many steps."""


@dataclass(frozen=True)
class Task:
    """A run's arguments, and the steps between its checkpoints."""

    arguments: tuple[str, ...]
    every: int

    def start(self, out: Path) -> Process:
        """A process of the run in `out`, which goes on from the checkpoint if there is one."""
        resume = ["--resume"] if (out / CHECKPOINT / checkpoint.RECORD).exists() else []
        command = [sys.executable, "-c", CHILD, str(self.every), *self.arguments, "--out", str(out), *resume]
        with log(out).open("ab") as said:
            return subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)


TASKS = {
    "identity": Task(("identity", "--size", "16", "--steps", "600", "--run-on"), 20),
    "rigl": Task(("sparsity", "--wiring", "rigl", "--density", "0.05", "--seeds", "1", "--epochs", "40",
                  "--batch", "64", "--every", "20"), 20),
    "sort": Task(("sort", "--size", "3", "--steps", "500"), 20),
}


@dataclass(frozen=True)
class Outcome:
    """What a run has come to: its metrics, and step and tensors (by their places) of its last checkpoint."""

    metrics: bytes
    step: int
    tensors: dict[str, bytes]

    @classmethod
    def of(cls, out: Path) -> Outcome:
        """That of the run in `out`."""
        meta, state = checkpoint.read(out / CHECKPOINT)
        return cls((out / METRICS).read_bytes(), meta["step"], dict(tensors_of(state, "state")))

    def differences(self, other: Outcome) -> list[str]:
        """What is not the same."""
        places = {*self.tensors, *other.tensors}
        found = [place for place in sorted(places) if self.tensors.get(place) != other.tensors.get(place)]
        found += ["the step"] if self.step != other.step else []
        return found + ([METRICS] if self.metrics != other.metrics else [])


def tensors_of(value: Any, place: str) -> Iterator[tuple[str, bytes]]:
    """The bytes of all tensors of a nest, with their types and shapes."""
    if isinstance(value, Tensor):
        raw = value.contiguous().view(-1).view(torch.uint8) if value.numel() else torch.empty(0)
        yield place, f"{value.dtype} {tuple(value.shape)} ".encode() + raw.numpy().tobytes()
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_of(item, f"{place}.{key}")


# --- killing ---------------------------------------------------------------------------------------------


def until(process: Process, happens: Callable[[], bool], most: float = 60.0) -> None:
    """Wait until something happens, the process ends, or so many seconds are over."""
    last = time.perf_counter() + most
    while process.poll() is None and time.perf_counter() < last and not happens():
        time.sleep(LOOK)


def opened(process: Process, out: Path) -> bool:
    """Whether the process has begun its run: the lock is its own."""
    try:
        return f"process {process.pid} " in (out / LOCK).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def log(out: Path) -> Path:
    """Where the processes of a run say what they say."""
    return out.with_suffix(".log")


def check(status: int, out: Path) -> None:
    """Raise what a run has said unless it has ended well."""
    if status:
        raise RuntimeError(log(out).read_text(encoding="utf-8", errors="replace"))


def end(process: Process, out: Path) -> float:
    """Wait for a run that is to end well; the seconds from its opening to its last checkpoint."""
    until(process, lambda: opened(process, out))
    begun = time.time()
    check(process.wait(), out)
    return (out / CHECKPOINT / checkpoint.RECORD).stat().st_mtime - begun


def kill(process: Process, out: Path, moment: float, writing: bool) -> str | None:
    """Kill a run `moment` seconds after its opening, or, `writing`, during the checkpoint after that.

    Where it stood, in words; None if it has ended before.
    """
    until(process, lambda: opened(process, out))
    until(process, lambda: False, moment)
    if writing:
        until(process, lambda: any((out / CHECKPOINT).glob(".*")))
    process.kill()
    status = process.wait()
    if status != -signal.SIGKILL:
        check(status, out)
        return None
    half = " in a checkpoint" if (out / CHECKPOINT).is_dir() and any((out / CHECKPOINT).glob(".*")) else ""
    known = (out / CHECKPOINT / checkpoint.RECORD).exists()
    after = f"after that of step {checkpoint.read(out / CHECKPOINT).meta['step']}" if known else "before the first"
    return f"{moment:.2f} s{half} {after}"


def survive(task: Task, out: Path, seconds: float, draw: random.Random) -> list[str]:
    """Kill a run once to three times and let it end; where it stood each time."""
    told: list[str] = []
    for _ in range(draw.randint(1, 3)):
        process = task.start(out)
        stood = kill(process, out, draw.uniform(0, seconds), writing=draw.random() < 1 / 3)
        if stood is None:
            return told
        told.append(stood)
    end(task.start(out), out)
    return told


def main(runs: int = 20, seed: int = 0) -> int:
    """Kill so many runs; the exit status."""
    draw, well = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        alone = {name: Path(folder) / name for name in TASKS}
        seconds = {name: end(task.start(alone[name]), alone[name]) for name, task in TASKS.items()}
        print(", ".join(f"{name} trains for {seconds[name]:.1f} s" for name in TASKS), flush=True)
        for number in range(runs):
            name = list(TASKS)[number % len(TASKS)]
            told: list[str] = []
            while not told:  # it may have ended before it could be killed
                out = Path(folder) / f"{name}{number}-{draw.random()}"
                told = survive(TASKS[name], out, seconds[name], draw)
            wrong = Outcome.of(out).differences(Outcome.of(alone[name]))
            well += not wrong
            said = f"other than alone: {', '.join(wrong[:5])}" if wrong else "the same metrics and weights"
            print(f"{number + 1:2} {name}: killed at {'; '.join(told)}: {said}", flush=True)
    print(f"{well} of {runs} runs ended as if nobody had killed them")
    return int(well < runs)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
