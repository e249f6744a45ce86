"""Training convolutional networks one after the other, each with its own sparsity, in one run that can be resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ash import Rewirer, count, parameter_groups, sparsify
from experiments.descent import Descent
from experiments.epoch import Epoch, epoch_of, state_of
from experiments.image_source import Source
from experiments.resnets import resnet
from experiments.runs import Run, restore, training_state

FIRST = "0.0"
"""Name of the first layer of a residual network."""

_NAMES = {"random": "static"}
_REWIRED = ("set", "rigl")


class Row(NamedTuple):
    """One network: density of its sparse layers (1: a dense network), whether its first layer is dense, its seed."""

    density: float
    first_dense: bool
    seed: int


@dataclass(frozen=True)
class Network:
    """What the networks have in common."""

    model: str
    width: int
    wiring: str
    distribution: str
    source: Source

    def build(self, row: Row) -> nn.Module:
        """The network of a row, with weights from torch's default generator."""
        source = self.source
        model = resnet(self.model, source.channels, source.classes, source.size, self.width)
        if row.density == 1:
            return model
        name = _NAMES.get(self.wiring, self.wiring)
        skip = (FIRST,) if row.first_dense else ()
        return sparsify(model, name, density=row.density, distribution=self.distribution, skip=skip)


@dataclass(frozen=True)
class Plan:
    """How to train one network: SGD with momentum, one cosine to 0; AdamW where there are means to learn."""

    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    rewire_every: int | None

    def optimizer(self, model: nn.Module, gaussian: bool) -> torch.optim.Optimizer:
        """The optimizer; its rates are those of the start."""
        if gaussian:
            return torch.optim.AdamW(parameter_groups(model, self.lr, weight_decay=self.weight_decay))
        return torch.optim.SGD(model.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)


@dataclass
class _Trainee:
    """A network that is being trained.

    Attributes:
        rates: of its optimizer's groups at the start. epochs: that are behind it. epoch: the pass that it is in.
    """

    row: Row
    descent: Descent
    rewirer: Rewirer | None
    epochs: int = 0
    epoch: Epoch | None = None

    def __post_init__(self) -> None:
        self.rates = [float(group["lr"]) for group in self.descent.optimizer.param_groups]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "row": list(self.row),
            "epochs": self.epochs,
            "epoch": state_of(self.epoch),
            "training": training_state(self.descent.model, self.descent.optimizer),
            "rewirer": None if self.rewirer is None else self.rewirer.state_dict(),
        }

    def go_on(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up a `state`."""
        restore(state["training"], self.descent.model, self.descent.optimizer)
        if self.rewirer is not None:
            self.rewirer.load_state_dict(state["rewirer"])
        self.epochs, self.epoch = state["epochs"], epoch_of(state["epoch"], device)


class Training:
    """Trains the networks of all rows, each to the end of the plan, from the checkpoint of the run if it has one."""

    def __init__(self, network: Network, plan: Plan, source: Source, run: Run):
        self.network, self.plan, self.source, self.run = network, plan, source, run
        self.steps = plan.epochs * source.steps(plan.batch)
        self.per_epoch = source.steps(plan.batch)
        self.results: list[dict[str, Any]] = []

    def __call__(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The results of the rows, one dict each, in the order of training."""
        saved, current = self.run.load(), None
        if saved is not None:
            self.results, current = saved[1]["results"], saved[1]["current"]
        bar = self.run.progress(len(rows) * self.steps, "training", start=len(self.results) * self.steps)
        for row in rows:
            if not any(_row(each) == row for each in self.results):
                going_on = current is not None and Row(*current["row"]) == row
                self._train(row, current if going_on else None, bar)
        wanted = set(rows)
        return [each for each in self.results if _row(each) in wanted]

    def dense_weights(self) -> int:
        """Numbers of the weights that are sparse at most."""
        model = self.network.build(Row(1.0, True, 0))
        return sum(p.numel() for p in model.parameters() if p.dim() > 1)

    # --- one network -----------------------------------------------------------------------------------

    def _train(self, row: Row, saved: dict[str, Any] | None, bar: Any) -> None:
        """Train a network to its end, from the state of a checkpoint if there is one."""
        trainee = self._trainee(row)
        if saved is not None:
            trainee.go_on(saved, self.run.device)
            bar.update(self._steps_of(trainee))
        while trainee.epochs < self.plan.epochs:
            figures = self._epoch(trainee, bar)
            step = self._step(trainee)
            if trainee.epochs == self.plan.epochs:
                model = trainee.descent.model
                figures["test_accuracy"] = accuracy(model, self.source)
                self.results.append({**row._asdict(), **figures, "stored_numbers": count(model).stored_numbers})
            self.run.log(step, **row._asdict(), epoch=trainee.epochs, **figures)
            self.run.time(step, **row._asdict(), epoch=trainee.epochs)
            self.run.keep(step, partial(self._state, trainee))
        if trainee.rewirer is not None:
            trainee.rewirer.close()

    def _trainee(self, row: Row) -> _Trainee:
        torch.manual_seed(row.seed)
        model = self.network.build(row).to(self.run.device)
        optimizer = self.plan.optimizer(model, self.network.wiring == "gaussian" and row.density < 1)
        return _Trainee(row, Descent(model, optimizer), self._rewirer(model, optimizer, row))

    def _rewirer(self, model: nn.Module, optimizer: torch.optim.Optimizer, row: Row) -> Rewirer | None:
        if self.network.wiring not in _REWIRED or row.density == 1:
            return None
        every = self.plan.rewire_every or max(1, self.steps // 50)
        return Rewirer(model, optimizer, every=every, end=max(every, 3 * self.steps // 4), seed=row.seed)

    def _state(self, trainee: _Trainee) -> dict[str, Any]:
        return {"results": self.results, "current": trainee.state()}

    def _steps_of(self, trainee: _Trainee) -> int:
        """Optimizer steps that are behind a network."""
        return trainee.epochs * self.per_epoch + (0 if trainee.epoch is None else trainee.epoch.batches)

    def _step(self, trainee: _Trainee) -> int:
        """Those, and the ones of the networks before it."""
        before = sum(_row(each) != trainee.row for each in self.results)
        return before * self.steps + self._steps_of(trainee)

    def _epoch(self, trainee: _Trainee, bar: Any) -> dict[str, float]:
        """Mean loss and accuracy over a pass, in training mode, or what is left of one that a checkpoint is in."""
        descent = trainee.descent
        model = descent.model.train()
        now = trainee.epoch = trainee.epoch or Epoch.begin(self.source.order(), self.run.device)
        for x, y in self.source.train(now.rest(self.plan.batch)):
            step = self._steps_of(trainee)
            factor = 0.5 * (1 + math.cos(math.pi * step / self.steps))
            for group, rate in zip(descent.optimizer.param_groups, trainee.rates, strict=True):
                group["lr"] = rate * factor
            output = model(x)
            loss = cross_entropy(output, y)
            descent.step(loss, step)
            if trainee.rewirer is not None:
                trainee.rewirer.step()
            now.add(loss, (output.argmax(1) == y).sum(), len(y))
            bar.update(1)
            self.run.keep(self._step(trainee), partial(self._state, trainee), due=False)
        trainee.epoch, trainee.epochs = None, trainee.epochs + 1
        return now.figures()


def _row(result: dict[str, Any]) -> Row:
    """The network that a result is of."""
    return Row(result["density"], result["first_dense"], result["seed"])


@torch.no_grad()
def accuracy(model: nn.Module, source: Source) -> float:
    """Share of the test images whose label the model gives, in evaluation mode."""
    model.eval()
    pairs = [(model(x).argmax(1), y) for x, y in source.test()]
    return sum(int((found == y).sum()) for found, y in pairs) / sum(len(y) for _, y in pairs)
