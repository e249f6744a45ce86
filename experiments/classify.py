"""Training a classifier on images held in memory, epoch by epoch, and judging it.

One cosine takes every learning rate from its start to 0 over the run. Gaussian wirings are frozen (their
means rounded for good) at a share of the run; from there on only values learn. Every epoch ends with the
accuracies and a checkpoint. The test set is looked at and never used: the validation set chooses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ash import GaussianWiring, plot
from ash.plot import curves
from experiments.data import Images
from experiments.epoch import Epoch, epoch_of, state_of
from experiments.frames import few, packed, take_up
from experiments.loop import Loop
from experiments.runs import Run

EVALUATION_BATCH = 2000
FRAMES = 40


@dataclass(frozen=True)
class Plan:
    """How to train: `freeze` is the share of the run after which means are frozen (1: never)."""

    epochs: int
    batch: int
    freeze: float

    def steps_per_epoch(self, n: int) -> int:
        """Optimizer steps of an epoch over n images."""
        return math.ceil(n / self.batch)

    def steps(self, n: int) -> int:
        """Optimizer steps of the run."""
        return self.epochs * self.steps_per_epoch(n)

    def freeze_at(self, n: int) -> int:
        """Optimizer steps before the means are frozen."""
        return round(self.freeze * self.steps(n))


def gaussian_wirings(model: nn.Module) -> list[GaussianWiring]:
    """The Gaussian wirings of a model."""
    return [module for module in model.modules() if isinstance(module, GaussianWiring)]


@contextlib.contextmanager
def sampled(model: nn.Module) -> Iterator[None]:
    """Inside, the model draws its points as in training, also where means are frozen."""
    wirings, training = gaussian_wirings(model), model.training
    frozen = [bool(wiring.frozen) for wiring in wirings]
    for wiring in wirings:
        wiring.frozen.fill_(False)
    model.train()
    try:
        yield
    finally:
        for wiring, before in zip(wirings, frozen, strict=True):
            wiring.frozen.fill_(before)
        model.train(training)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the images x `(n, …)` whose label y `(n,)` the model gives, in the mode that it is in."""
    parts = zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True)
    return sum(int((model(images).argmax(1) == labels).sum()) for images, labels in parts) / len(y)


def judge(model: nn.Module, images: Images, draws: bool) -> dict[str, float]:
    """Accuracies in evaluation; with `draws` also those of the network with its points drawn."""
    parts = {
        "validation_accuracy": (images.validation_x, images.validation_y),
        "test_accuracy": (images.test_x, images.test_y),
    }
    model.eval()
    figures = {name: accuracy(model, *part) for name, part in parts.items()}
    if draws:
        with sampled(model):
            figures |= {f"{name}_sampled": accuracy(model, *part) for name, part in parts.items()}
    model.train()
    return figures


class Training:
    """Trains `model` on the training part of `images` by `plan`, from the checkpoint of `run` if it has one.

    Attributes:
        history: the figures of every epoch: `epoch`, `step`, `loss`, `train_accuracy` (over the epoch, in
            training mode), those of `judge`.
        seen: what `look` gave before training and after every epoch.
        frames: the tuples of a layer at these times, as far as a page draws them; empty where there are none.

    `look` takes the model and returns a tensor. `draws`: whether the network is sampled in training.
    """

    def __init__(
        self,
        model: nn.Sequential,
        optimizer: torch.optim.Optimizer,
        images: Images,
        plan: Plan,
        run: Run,
        look: Callable[[nn.Sequential], Tensor],
        draws: bool = False,
    ) -> None:
        self.model, self.optimizer, self.images = model, optimizer, images
        self.loop = Loop(run, model, optimizer)
        self.plan, self.run, self.look, self.draws = plan, run, look, draws
        self.total, self.freeze_at = plan.steps(len(images.train_y)), plan.freeze_at(len(images.train_y))
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.history: list[dict[str, float]] = []
        self.seen = [look(model)]
        self.step = 0
        self.epoch: Epoch | None = None
        self.frames = plot.History(FRAMES)
        self._keep_frame()

    def __call__(self) -> None:
        """Train to the end of the plan."""
        saved = self.run.load()
        if saved is not None:
            self._go_on(*saved)
        bar = self.run.progress(self.total, "training", start=self.step)
        for epoch in range(len(self.history) + 1, self.plan.epochs + 1):
            figures = self._epoch(bar)
            figures |= self.judge()
            self.history.append({"epoch": epoch, "step": self.step, **figures})
            self.seen.append(self.look(self.model))
            self._keep_frame()
            self.run.log(self.step, epoch=epoch, **figures)
            self.run.time(self.step, epoch=epoch)
            self.run.keep(self.step, self._state, score=figures["validation_accuracy"])

    def _epoch(self, bar: Any) -> dict[str, float]:
        """One pass over the training set, or what is left of the one that a checkpoint is in the middle of."""
        now = self.epoch = self.epoch or Epoch.begin(self._order(), self.run.device)
        for batch in now.rest(self.plan.batch):
            now.add(*self._step(batch), len(batch))
            bar.update(1)
            self.run.keep(self.step, self._state, due=False)
        self.epoch = None
        return self._of_all(now).figures()

    def _of_all(self, epoch: Epoch) -> Epoch:
        """A pass with the hits of all ranks."""
        return dataclasses.replace(epoch, right=self.loop.total(epoch.right.clone()))

    def _order(self) -> Tensor:
        device = self.images.train_x.device
        return self.loop.shared(torch.randperm(len(self.images.train_y), device=device))

    def _step(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step; the loss before it, and how many images of this rank were told rightly."""
        right = batch.new_zeros(())
        self._freeze_when_due()
        factor = 0.5 * (1 + math.cos(math.pi * self.step / self.total))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for part, share in self.loop.parts(batch):
            y = self.images.train_y[part]
            loss, output = self.objective(self.images.train_x[part], y)
            self.loop.backward(loss if share == 1 else loss * share)
            right += (output.detach().argmax(1) == y).sum() * (share > 0)
        found = self.loop.step(self.step)
        self.step += 1
        return found, right

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on a batch, a scalar, and the output `(b, classes)`."""
        output = self.loop(x)
        return cross_entropy(output, y), output

    def judge(self) -> dict[str, float]:
        """The accuracies at the end of an epoch."""
        return judge(self.model, self.images, self.draws)

    def frame(self) -> plot.Frame | None:
        """The tuples of the first Gaussian wiring as they stand; None where there is none."""
        wirings = gaussian_wirings(self.model)
        return plot.frame_of(wirings[0], self.step) if wirings else None

    def _keep_frame(self) -> None:
        frame = self.frame()
        if frame is not None:
            self.frames.add(few(frame))

    def _freeze_when_due(self) -> None:
        if self.step >= self.freeze_at:
            for wiring in gaussian_wirings(self.model):
                if wiring.log_scale.requires_grad:
                    wiring.freeze()

    def _state(self) -> dict[str, Any]:
        return self.loop.state() | {
            "epoch": state_of(self.epoch and self._of_all(self.epoch)),
            "history": self.history,
            "seen": self.seen,
            "frames": packed(self.frames),
        }

    def _go_on(self, step: int, state: dict[str, Any]) -> None:
        self.loop.restore(state)
        self.step, self.history, self.seen = step, state["history"], state["seen"]
        self.epoch = epoch_of(state["epoch"], self.run.device)
        if self.epoch is not None and self.loop.rank:
            self.epoch.right.zero_()  # rank 0 goes on with those of all
        self.frames = plot.History(FRAMES)
        take_up(self.frames, state["frames"])

    @property
    def best(self) -> dict[str, float]:
        """The figures of the epoch with the best validation accuracy, the first of equal ones."""
        return max(self.history, key=lambda figures: figures["validation_accuracy"])

    def draw(self, path: Path) -> None:
        """The accuracies over time."""
        names = {"train_accuracy": "training", "validation_accuracy": "validation", "test_accuracy": "test"}
        if self.draws:
            names["validation_accuracy_sampled"] = "validation, sampled"
        epochs = [figures["epoch"] for figures in self.history]
        series = {line: (epochs, [figures[name] for figures in self.history]) for name, line in names.items()}
        frozen = self.plan.freeze * self.plan.epochs
        marks = {"means frozen": frozen} if self.draws and self.plan.freeze < 1 else {}
        curves(series, path, ylabel="accuracy", xlabel="epoch", marks=marks)
