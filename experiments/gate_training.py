"""Training several nets one after the other in one run, so that it can be resumed in the middle of any of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ash import LayerGraph, gate_penalty
from ash.optim import parameter_groups
from experiments.adaptive_training import shifted
from experiments.descent import Descent
from experiments.epoch import Epoch, epoch_of, state_of
from experiments.gate_nets import connection_gates
from experiments.images import Images
from experiments.runs import Run, restore, training_state

EVALUATION_BATCH = 500
JUDGE_EVERY = 10


@dataclass(frozen=True)
class Recipe:
    """How to train: Adam at `lr`, gates at `gate_lr`, either constant or by a `cosine` to 0; images shifted by up to
    `shift` pixels and mirrored (`mirror`); `sparsity` times the mean gate is added to the loss."""

    batch: int
    lr: float
    gate_lr: float
    cosine: bool
    shift: int
    mirror: bool
    sparsity: float
    bfloat16: bool


@dataclass
class Trained:
    """A net after its epochs, and the figures of each: `epoch`, `loss`, `train_accuracy`, `gates`, and `test_accuracy`,
    which is not known at all of them but at the last."""

    net: nn.Module
    history: list[dict[str, Any]]

    @property
    def test_accuracy(self) -> float:
        """At the final epoch."""
        return float(self.history[-1]["test_accuracy"])


@dataclass
class _Trainee:
    """A net that is being trained for so many epochs, and the pass that it is in the middle of."""

    name: str
    descent: Descent
    epochs: int
    history: list[dict[str, Any]]
    epoch: Epoch | None = None

    def __post_init__(self) -> None:
        self.rates = [float(group["lr"]) for group in self.descent.optimizer.param_groups]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        state = training_state(self.descent.model, self.descent.optimizer)
        return {"name": self.name, "state": state, "history": self.history, "epoch": state_of(self.epoch)}

    def go_on(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up a `state`."""
        restore(state["state"], self.descent.model, self.descent.optimizer)
        self.history, self.epoch = state["history"], epoch_of(state["epoch"], device)


class Session:
    """The nets of a run. `train` goes on from the checkpoint of `run` where that net was being trained, and only loads
    a net that is finished."""

    def __init__(self, run: Run, images: Images, recipe: Recipe):
        self.run, self.images, self.recipe = run, images, recipe
        saved = run.load()
        state: dict[str, Any] = {"done": {}, "partial": None} if saved is None else saved[1]
        self.step = 0 if saved is None else saved[0]
        self.done: dict[str, dict[str, Any]] = state["done"]
        self.partial: dict[str, Any] | None = state["partial"]

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(len(self.images.train_y) / self.recipe.batch)

    def train(self, name: str, seed: int, make: Callable[[], nn.Module], epochs: int) -> Trained:
        """Train what `make` makes, from `seed`, for so many epochs."""
        torch.manual_seed(seed)
        net = make().to(self.run.device)
        if name in self.done:
            net.load_state_dict(self.done[name]["model"])
            return Trained(net, self.done[name]["history"])
        groups = parameter_groups(net, self.recipe.lr, gate_lr=self.recipe.gate_lr)
        descent = Descent(net, torch.optim.Adam(groups, fused=True))
        trainee = _Trainee(name, descent, epochs, [{"epoch": 0, "gates": _gates(net)}])
        if self.partial is not None and self.partial["name"] == name:
            trainee.go_on(self.partial, self.run.device)
            self.partial = None
        self._train(trainee)
        self.done[name] = {"model": dict(net.state_dict()), "history": trainee.history}
        self.run.keep(self.step, self._state)
        return Trained(net, trainee.history)

    def _train(self, trainee: _Trainee) -> None:
        net, history, each = trainee.descent.model, trainee.history, self.steps
        begun = 0 if trainee.epoch is None else trainee.epoch.batches
        bar = self.run.progress(trainee.epochs * each, trainee.name, start=(len(history) - 1) * each + begun)
        for epoch in range(len(history), trainee.epochs + 1):
            figures = self._epoch(trainee, bar)
            if epoch == trainee.epochs or epoch % JUDGE_EVERY == 0:
                figures["test_accuracy"] = self.accuracy(net)
            history.append({"epoch": epoch, **figures, "gates": _gates(net)})
            self.run.log(self.step, net=trainee.name, **history[-1])
            self.run.time(self.step, net=trainee.name, epoch=epoch)
            if epoch < trainee.epochs:
                self.run.keep(self.step, partial(self._state, trainee))
        bar.close()

    def _epoch(self, trainee: _Trainee, bar: Any) -> dict[str, Any]:
        """One pass, or what is left of the one that a checkpoint is in the middle of."""
        x, y, recipe, descent = self.images.train_x, self.images.train_y, self.recipe, trainee.descent
        net = descent.model.train()
        sparse = recipe.sparsity > 0 and bool(_gates(net))
        now = trainee.epoch = trainee.epoch or Epoch.begin(torch.randperm(len(y), device=y.device), y.device)
        begin, total = (len(trainee.history) - 1) * self.steps, trainee.epochs * self.steps
        for batch in now.rest(recipe.batch):
            step = begin + now.batches
            factor = 0.5 * (1 + math.cos(math.pi * step / total)) if recipe.cosine else 1.0
            for group, rate in zip(descent.optimizer.param_groups, trainee.rates, strict=True):
                group["lr"] = rate * factor
            output = self._output(net, shifted(x[batch], recipe.shift, recipe.mirror))
            loss = cross_entropy(output, y[batch])
            descent.step(loss + recipe.sparsity * gate_penalty(net) if sparse else loss, step)
            now.add(loss, (output.argmax(1) == y[batch]).sum(), len(batch))
            self.step += 1
            bar.update(1)
            self.run.keep(self.step, partial(self._state, trainee), due=False)
        trainee.epoch = None
        return now.figures()

    def _output(self, net: nn.Module, x: Tensor) -> Tensor:
        """Logits in float32; inside, convolutions run in bfloat16 where that was asked for."""
        x = x.contiguous(memory_format=torch.channels_last)
        if not self.recipe.bfloat16:
            whole: Tensor = net(x)
            return whole
        with torch.autocast(x.device.type, torch.bfloat16):
            short: Tensor = net(x.bfloat16())
        return short.float()

    @torch.no_grad()
    def accuracy(self, net: nn.Module) -> float:
        """Share of the test images that a net gets right, in evaluation."""
        net.eval()
        parts = zip(*(part.split(EVALUATION_BATCH) for part in (self.images.test_x, self.images.test_y)), strict=True)
        right = sum(int((self._output(net, x).argmax(1) == y).sum()) for x, y in parts)
        net.train()
        return right / len(self.images.test_y)

    def _state(self, trainee: _Trainee | None = None) -> dict[str, Any]:
        return {"done": self.done, "partial": None if trainee is None else trainee.state()}


def _gates(net: nn.Module) -> list[float]:
    """The gates of the connections of a graph; none of other nets."""
    learns = isinstance(net, LayerGraph) and any(p.requires_grad for p in net.wiring.parameters())
    return [float(gate) for gate in connection_gates(net)] if learns else []  # type: ignore[arg-type]

