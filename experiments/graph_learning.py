"""Training a model on graphs batch by batch: one cosine of the learning rate, figures on the way, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ash.checks import require
from experiments.checkpoint import Checkpoint
from experiments.descent import Descent
from experiments.evaluation import read_run
from experiments.runs import Run, restore, training_state

WARM_UP, CLIP = 20, 1.0


class Learner:
    """A model, its optimizer (Adam), and what was recorded of its training.

    Args:
        model: what is trained. steps: batches. rate: of learning, at its height.
        quick: record often, as the run is short.

    Attributes:
        curve: the figures that were logged. seconds: spent in training, recording included.
        saved_every: records from one checkpoint to the next.
    """

    saved_every = 5

    def __init__(self, model: nn.Module, steps: int, rate: float, quick: bool = False):
        self.model, self.steps, self.rate = model, steps, rate
        self.every = max(1, steps // (4 if quick else 20))
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
        self.descent = Descent(model, self.optimizer, CLIP)
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0

    def train(self, run: Run, loss: Callable[[], Tensor], figures: Callable[[], dict[str, Any]]) -> None:
        """Train for all steps, or for those after the checkpoint.

        Args:
            loss: of a fresh batch, drawn by torch's default generator. figures: to be logged; draw nothing from it.
        """
        start = self._resume(run)
        bar = run.progress(self.steps, "graphs", start)
        began, before = run.seconds, self.seconds
        for step in range(start, self.steps):
            value = self.step(step, loss())
            bar.update(1)
            self.seconds = before + run.seconds - began
            last = step + 1 == self.steps
            if (step + 1) % self.every == 0 or last:
                self.curve.append({"step": step + 1, "loss": value, **figures()})
                run.log(**self.curve[-1])
                run.time(step + 1)
            run.keep(step + 1, self.state, due=(step + 1) % (self.saved_every * self.every) == 0 or last)

    def step(self, step: int, loss: Tensor) -> float:
        """One step of the optimizer, with the gradient's norm cut at 1."""
        rate = 0.5 * self.rate * (1 + math.cos(math.pi * step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        self.descent.step(loss, step)
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"training": training_state(self.model, self.optimizer), "curve": self.curve, "seconds": self.seconds}

    def _resume(self, run: Run) -> int:
        saved = run.load()
        if saved is None:
            return 0
        step, state = saved
        self.curve, self.seconds = list(state["curve"]), state["seconds"]
        restore(state["training"], self.model, self.optimizer)
        return int(step)


def stored_numbers(model: nn.Module) -> int:
    """All numbers that a model learns, which are what it needs to be applied to any graph."""
    return sum(p.numel() for p in model.parameters())


def read_task(options: Any, task: str) -> Checkpoint:
    """The checkpoint of `--evaluate`. Raises `UserError` for a run of another task or experiment."""
    saved = read_run(options, "graphs")
    found = saved.meta["options"]["task"]
    require(found == task, f"--evaluate {options.evaluate}: a run of --task {found}; expected one of --task {task}.")
    return saved


def load_trained(model: nn.Module, options: Any) -> None:
    """Give the model what the run of `--evaluate` has trained. Raises `UserError` for a run of another task."""
    saved = read_task(options, options.task)
    restore({**saved.state["training"], "optimizer": None}, model)
