"""Training a classifier that is a graph of nodes, and keeping frames of its wiring."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.descent import Descent
from experiments.epoch import Epoch, epoch_of, state_of
from experiments.image_source import Source
from experiments.node_wirings import Driver, edges_now
from experiments.runs import Run, restore, training_state

FRAMES = 24


def frame_steps(total: int) -> list[int]:
    """Steps after which the wiring becomes a frame: closer together at the start, where most of it moves."""
    return sorted({round(total * (i / FRAMES) ** 2) for i in range(FRAMES + 1)})


def cosine(t: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * t))


def steps(t: float) -> float:
    """A tenth from the middle on, a hundredth in the last quarter."""
    return 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "steps": steps}


@dataclass
class Record:
    """How the wiring went.

    Attributes:
        frames: pairs of a step and the flattened edges of every graph then. moved: edges that were not there an
            epoch ago, summed over epochs. last: the edges after the last epoch.
    """

    frames: list[tuple[int, list[Tensor]]] = field(default_factory=list)
    moved: int = 0
    last: list[Tensor] = field(default_factory=list)

    def epoch(self, edges: list[Tensor]) -> int:
        """Take in the edges after an epoch; how many are new."""
        pairs = zip(edges, self.last, strict=True) if self.last else ()
        new = sum(int((~torch.isin(now, before)).sum()) for now, before in pairs)
        self.last, self.moved = edges, self.moved + new
        return new


class GraphTraining:
    """Trains a model on a source of images, from the checkpoint of the run if it has one.

    Attributes:
        history: the figures of every epoch. record: how the wiring went.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        driver: Driver,
        source: Source,
        run: Run,
        *,
        epochs: int,
        batch: int,
        schedule: str,
    ):
        self.model, self.optimizer, self.driver, self.source, self.run = model, optimizer, driver, source, run
        self.epochs, self.batch, self.factor = epochs, batch, SCHEDULES[schedule]
        self.descent = Descent(model, optimizer)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.history: list[dict[str, float]] = []
        self.epoch: Epoch | None = None
        self.record, self.frames = Record(), frozenset(frame_steps(driver.total))

    def __call__(self) -> None:
        """Train to the end."""
        saved = self.run.load()
        if saved is None:
            self._look()
            self.record.epoch(edges_now(self.model))
        else:
            self._go_on(saved[1])
        bar = self.run.progress(self.driver.total, "training", start=self.driver.step)
        for epoch in range(len(self.history) + 1, self.epochs + 1):
            figures: dict[str, float] = self._epoch(bar)
            figures["test_accuracy"] = accuracy(self.model, self.source)
            figures["new_edges"] = self.record.epoch(edges_now(self.model))
            self.history.append({"epoch": epoch, "step": self.driver.step, **figures})
            self.run.log(self.driver.step, epoch=epoch, **figures)
            self.run.time(self.driver.step, epoch=epoch)
            self.run.keep(self.driver.step, self._state)

    def _look(self) -> None:
        """Keep a frame of the wiring, if it is time."""
        if self.driver.step in self.frames:
            self.record.frames.append((self.driver.step, edges_now(self.model)))

    def _epoch(self, bar: Any) -> dict[str, float]:
        """One pass over the training images, or what is left of the one that a checkpoint is in the middle of."""
        self.model.train()
        now = self.epoch = self.epoch or Epoch.begin(self.source.order(), self.run.device)
        for x, y in self.source.train(now.rest(self.batch)):
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.driver.rate(self.factor)
            output = self.model(x)
            loss = cross_entropy(output, y)
            self.descent.step(loss, self.driver.step)
            self.driver.after(self.optimizer)
            self._look()
            now.add(loss, (output.argmax(1) == y).sum(), len(y))
            bar.update(1)
            self.run.keep(self.driver.step, self._state, due=False)
        self.epoch = None
        return now.figures()

    def _state(self) -> dict[str, Any]:
        frames = [[step, *edges] for step, edges in self.record.frames]
        record = {"frames": frames, "moved": self.record.moved, "last": self.record.last}
        own = {"history": self.history, "epoch": state_of(self.epoch), "record": record, "driver": self.driver.state()}
        return training_state(self.model, self.optimizer) | own

    def _go_on(self, state: dict[str, Any]) -> None:
        restore(state, self.model, self.optimizer)
        self.driver.restore(state["driver"])
        self.epoch = epoch_of(state["epoch"], self.run.device)
        self.history, kept = state["history"], state["record"]
        frames = [(int(step), list(edges)) for step, *edges in kept["frames"]]
        self.record = Record(frames, kept["moved"], kept["last"])


@torch.no_grad()
def accuracy(model: nn.Module, source: Source) -> float:
    """Share of the test images whose label the model gives, in evaluation."""
    model.eval()
    pairs = [((model(x).argmax(1) == y).sum(), len(y)) for x, y in source.test()]
    return sum(int(right) for right, _ in pairs) / sum(n for _, n in pairs)
