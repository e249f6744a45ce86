"""Training convolutional networks one after the other, each with its own sparsity, in one run that can be resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ash import Rewirer, count, parameter_groups, sparsify
from experiments.descent import Descent
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


class Training:
    """Trains the networks of all rows, each to the end of the plan, from the checkpoint of the run if it has one."""

    def __init__(self, network: Network, plan: Plan, source: Source, run: Run):
        self.network, self.plan, self.source, self.run = network, plan, source, run
        self.steps = plan.epochs * source.steps(plan.batch)
        self.results: list[dict[str, Any]] = []
        self.current: dict[str, Any] | None = None

    def __call__(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The results of the rows, one dict each, in the order of training."""
        saved = self.run.load()
        if saved is not None:
            self.results, self.current = saved[1]["results"], saved[1]["current"]
        bar = self.run.progress(len(rows) * self.steps, "training", start=len(self.results) * self.steps)
        for row in rows:
            if not any(Row(each["density"], each["first_dense"], each["seed"]) == row for each in self.results):
                self._train(row, bar)
        wanted = set(rows)
        return [each for each in self.results if Row(each["density"], each["first_dense"], each["seed"]) in wanted]

    def dense_weights(self) -> int:
        """Numbers of the weights that are sparse at most."""
        model = self.network.build(Row(1.0, True, 0))
        return sum(p.numel() for p in model.parameters() if p.dim() > 1)

    # --- one network -----------------------------------------------------------------------------------

    def _train(self, row: Row, bar: Any) -> None:
        torch.manual_seed(row.seed)
        model = self.network.build(row).to(self.run.device)
        optimizer = self.plan.optimizer(model, self.network.wiring == "gaussian" and row.density < 1)
        rewirer = self._rewirer(model, optimizer, row)
        rates = [group["lr"] for group in optimizer.param_groups]
        descent = Descent(model, optimizer)
        begin = self._go_on(row, model, optimizer, rewirer)
        bar.update(begin * self.source.steps(self.plan.batch))
        for epoch in range(begin + 1, self.plan.epochs + 1):
            figures = self._epoch(epoch, descent, rewirer, rates, bar)
            if epoch == self.plan.epochs:
                figures["test_accuracy"] = accuracy(model, self.source)
                self.results.append({**row._asdict(), **figures, "stored_numbers": count(model).stored_numbers})
            self._log(row, epoch, figures)
            state = training_state(model, optimizer)
            driver = None if rewirer is None else rewirer.state_dict()
            self.current = {"row": list(row), "epoch": epoch, "training": state, "rewirer": driver}
            self.run.keep(self.run.step, self._state)
        if rewirer is not None:
            rewirer.close()

    def _state(self) -> dict[str, Any]:
        return {"results": self.results, "current": self.current}

    def _rewirer(self, model: nn.Module, optimizer: torch.optim.Optimizer, row: Row) -> Rewirer | None:
        if self.network.wiring not in _REWIRED or row.density == 1:
            return None
        every = self.plan.rewire_every or max(1, self.steps // 50)
        return Rewirer(model, optimizer, every=every, end=max(every, 3 * self.steps // 4), seed=row.seed)

    def _go_on(self, row: Row, model: nn.Module, optimizer: torch.optim.Optimizer, rewirer: Rewirer | None) -> int:
        """Epochs of this network that the checkpoint holds, after taking up its state."""
        current, self.current = self.current, None
        if current is None or Row(*current["row"]) != row:
            return 0
        restore(current["training"], model, optimizer)
        if rewirer is not None:
            rewirer.load_state_dict(current["rewirer"])
        epochs: int = current["epoch"]
        return epochs

    def _log(self, row: Row, epoch: int, figures: dict[str, float]) -> None:
        step = self.run.step + self.source.steps(self.plan.batch)
        self.run.log(step, **row._asdict(), epoch=epoch, **figures)
        self.run.time(step, **row._asdict(), epoch=epoch)

    def _epoch(
        self, epoch: int, descent: Descent, rewirer: Rewirer | None, rates: list[float], bar: Any
    ) -> dict[str, float]:
        """Mean loss and accuracy over an epoch, in training mode."""
        model = descent.model.train()
        step = (epoch - 1) * self.source.steps(self.plan.batch)
        loss_sum = right = torch.zeros((), device=self.run.device)
        seen = 0
        for x, y in self.source.train(self.plan.batch):
            factor = 0.5 * (1 + math.cos(math.pi * step / self.steps))
            for group, rate in zip(descent.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            output = model(x)
            loss = cross_entropy(output, y)
            descent.step(loss, step)
            if rewirer is not None:
                rewirer.step()
            loss_sum = loss_sum + loss.detach() * len(y)
            right = right + (output.detach().argmax(1) == y).sum()
            seen, step = seen + len(y), step + 1
            bar.update(1)
        return {"loss": float(loss_sum) / seen, "train_accuracy": float(right) / seen}


@torch.no_grad()
def accuracy(model: nn.Module, source: Source) -> float:
    """Share of the test images whose label the model gives, in evaluation mode."""
    model.eval()
    pairs = [(model(x).argmax(1), y) for x, y in source.test()]
    return sum(int((found == y).sum()) for found, y in pairs) / sum(len(y) for _, y in pairs)
