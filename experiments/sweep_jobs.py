"""Running experiments as processes of their own, several at a time, each on cores or a GPU of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "experiments")
LOG = "log.txt"
PATIENCE = 60.0
"""Seconds that a process has for its last checkpoint when it is told to end."""
LOOK = 0.1


@dataclass(frozen=True)
class Job:
    """One run: arguments of `python -m experiments`, and the folder that takes its log."""

    name: str
    arguments: tuple[str, ...]
    folder: Path


def places(device: str) -> list[dict[str, str]]:
    """What the environment of a process must say to have a core, or on `cuda` a GPU, to itself."""
    if device != "cuda":
        return [{} for _ in range(cores())]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_out(free: Sequence[dict[str, str]], jobs: int) -> list[dict[str, str]]:
    """The first `jobs` of these places; the cores are divided among them, unless the user has done so."""
    threads = str(max(1, cores() // jobs))
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), **place} for place in free[:jobs]]


def perform(jobs: Sequence[Job], free: Sequence[dict[str, str]], done: Callable[[Job, int], None]) -> None:
    """Run the jobs, as many at a time as there are places; `done` is told each that ends, and its exit status.

    An exception, SIGINT and SIGTERM among them, ends the processes that run and waits for them.
    """
    waiting, places = list(reversed(jobs)), list(free)
    running: dict[Job, tuple[subprocess.Popen[bytes], dict[str, str]]] = {}
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        while waiting or running:
            while waiting and places:
                job, place = waiting.pop(), places.pop()
                running[job] = _start(job, place), place
            time.sleep(LOOK)
            for job, (process, place) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    places.append(place)
                    done(job, process.returncode)
    finally:
        signal.signal(signal.SIGTERM, before)
        _end([process for process, _ in running.values()])


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _start(job: Job, place: dict[str, str]) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / LOG).open("wb") as log:
        # A session of its own: an interrupt from the keyboard reaches this process alone, which then ends the others.
        return subprocess.Popen([*COMMAND, *job.arguments], stdin=subprocess.DEVNULL, stdout=log,
                                stderr=subprocess.STDOUT, start_new_session=True,
                                env={**os.environ, **place, "PYTHONPATH": _path()})  # fmt: skip


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell processes to end, and kill those that do not."""
    for process in processes:
        process.terminate()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()
        process.wait()


def last_words(folder: Path) -> str:
    """The last line of a run's log that is not empty; a progress bar counts as lines."""
    with suppress(OSError):
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        return lines[-1] if lines else "it said nothing"
    return "it left no log"
