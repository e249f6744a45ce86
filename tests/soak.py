"""An hour of training with rewiring: what it holds in memory, and how fast it is, from the first minutes to the last.

    python -m tests.soak [SECONDS] [FOLDER]        make soak

A net of a RigL, a Gaussian and a top-k layer learns from batches of a fixed random net. Every 20 steps it is
rewired, Gaussian tuples that do no good are moved, and every 500 there is a checkpoint, an evaluation and a line in
the log: what a training of days does. Twice a minute the resident set is noted, and the steps in a second of the
processor's time, which does not count what other processes take. Told are medians of both, of the thirds of the time
after the first tenth, in which caches fill. Exit status 1 if the resident set of the last third is more than 2 % above
that of the first, or if its speed lies below nine tenths of it.
Writes soak.json and soak.png.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ash import GaussianWiring, Rescue, Rewirer, RigLWiring, SparseLinear, TopKWiring, parameter_groups
from ash.plot import curves
from experiments.descent import Descent
from experiments.measure import resident_bytes
from experiments.options import RunOptions
from experiments.runs import Run, training_state

WIDTH, BATCH, EVERY, SAVED, NOTED = 256, 64, 20, 500, 30.0
SHARE, SLOWER = 0.02, 0.1
"""By how much memory may grow, and speed fall: neighbours on the machine disturb the latter."""


def network() -> nn.Sequential:
    """Three layers, each wired in its own way."""
    wirings = (
        partial(RigLWiring, density=0.1),
        partial(GaussianWiring, k=4 * WIDTH),
        partial(TopKWiring, density=0.1),
    )
    layers = [SparseLinear(WIDTH, WIDTH, wiring=wiring) for wiring in wirings]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class Soak:
    """The training, and what was noted of it: seconds, resident megabytes and steps a second."""

    def __init__(self, run: Run, seconds: float):
        self.run, self.seconds = run, seconds
        self.net, self.teacher = network(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.optimizer = torch.optim.Adam(parameter_groups(self.net, 1e-3))
        self.rewirer = Rewirer(self.net, self.optimizer, every=EVERY, end=1 << 50, rescue=Rescue())
        self.descent, self.notes = Descent(self.net, self.optimizer), []  # type: ignore[var-annotated]
        self.moved = 0

    def __call__(self) -> None:
        """Train until the time is over."""
        begun = noted = time.perf_counter()
        step, counted, used = 0, 0, time.process_time()
        while time.perf_counter() - begun < self.seconds:
            self.train_step(step)
            step += 1
            now = time.perf_counter()
            if now - noted > min(NOTED, self.seconds / 60):
                spent = time.process_time() - used
                self.notes.append((now - begun, resident_bytes() / 1e6, (step - counted) / spent))
                noted, counted, used = now, step, used + spent
        self.run.step = step

    def train_step(self, step: int) -> None:
        """One batch, and what is due after it."""
        x = torch.randn(BATCH, WIDTH)
        with torch.no_grad():
            y = self.teacher(x)
        loss = (self.net(x) - y).square().mean()
        self.descent.step(loss, step)
        event = self.rewirer.step()
        self.moved += 0 if event is None else event.moved
        if step % SAVED == 0:
            self.run.log(step, loss=float(loss.detach()), judged=self.judge())
            self.run.keep(step, self.state)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return training_state(self.net, self.optimizer) | {"rewirer": self.rewirer.state_dict()}

    @torch.no_grad()
    def judge(self) -> float:
        """The error of the rounded net on a fresh batch."""
        x = torch.randn(BATCH, WIDTH)
        error = float((self.net.eval()(x) - self.teacher(x)).square().mean())
        self.net.train()
        return error


def figures(notes: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Medians of memory and speed in three thirds of the time after the first tenth, and how they compare."""
    end = notes[-1][0]
    kept = [note for note in notes if note[0] > end / 10]
    size = len(kept) // 3
    thirds = [kept[i * size : (i + 1) * size] for i in range(3)]
    memory, speed = ([statistics.median(note[i] for note in third) for third in thirds] for i in (1, 2))
    return {
        "seconds": end,
        "megabytes": memory,
        "steps_per_second": speed,
        "memory_growth": memory[2] / memory[0] - 1,
        "slow_down": 1 - speed[2] / speed[0],
    }


def main(arguments: list[str]) -> int:
    """Soak, tell and draw; the exit status."""
    seconds = float(arguments[0]) if arguments else 3600.0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = RunOptions(out=Path(arguments[1] if len(arguments) > 1 else "runs/soak"), device="cpu")
    with Run("soak", options) as run:
        soak = Soak(run, seconds)
        soak()
        found = {"steps": run.step, "moved": soak.moved, **figures(soak.notes)}
        minutes, megabytes, speed = ([note[i] for note in soak.notes] for i in range(3))
        minutes = [each / 60 for each in minutes]
        series = {"resident set, MB": (minutes, megabytes), "steps a second": (minutes, speed)}
        curves(series, run.path("soak.png"), xlabel="minute", ylabel="MB; steps a second")
        (run.folder / "soak.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))
    return int(found["memory_growth"] > SHARE or found["slow_down"] > SLOWER)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
