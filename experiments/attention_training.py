"""Training and judging the nets of the attention experiment, one after the other, on the same canvases."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from experiments.attention_models import GlimpseNet
from experiments.clutter import Cluttered
from experiments.descent import Descent
from experiments.epoch import Epoch, epoch_of, state_of
from experiments.runs import Run, restore, training_state

EVALUATION_BATCH = 250
WARM_UP = 200
"""Steps over which the learning rate rises."""
BRIGHT = 255.0


@dataclass(frozen=True)
class Plan:
    """How to train. `freeze` is the share of the run after which glimpses read rounded positions; `hint` the weight
    of the loss that tells the locator what to look for. `low_precision`: convolutions in bfloat16."""

    epochs: int
    batch: int
    lr: float
    freeze: float
    hint: float
    seed: int
    redraw: bool = True
    low_precision: bool = True

    def per_epoch(self, n: int) -> int:
        """Optimizer steps of an epoch over n canvases; an incomplete batch is left out."""
        return max(1, n // self.batch)

    def freeze_at(self, n: int) -> int:
        """Optimizer steps before glimpses are rounded."""
        return round(self.freeze * self.epochs * self.per_epoch(n))

    def rate(self, step: int, n: int) -> float:
        """The learning rate: a rise, and one cosine to 0."""
        total = self.epochs * self.per_epoch(n)
        warm = min(1.0, (step + 1) / min(WARM_UP, max(1, total // 4)))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / total))


def look(canvases: Tensor, view: int) -> tuple[Tensor, Tensor]:
    """uint8 canvases `(b, h, w)` -> float canvases, and views `(b, view, view)` of averages over equal squares."""
    x = canvases.float().div_(BRIGHT)
    return x, 2 * avg_pool2d(x.unsqueeze(1), x.shape[-1] // view).squeeze(1)  # strokes are thin: averages are dim


def channels_last(net: nn.Module) -> None:
    """Keep the weights of convolutions so that bfloat16 is fast."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Lay out the state of a restored optimizer as its parameters are, which fused steps rely on."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


@dataclass
class Contest:
    """The nets by name, what they have done so far, and the data.

    Attributes:
        history: for each net the figures of every epoch. epoch: the pass that it is in the middle of.
    """

    nets: nn.ModuleDict
    data: dict[str, Cluttered]
    view: int
    plan: Plan
    run: Run
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    epoch: Epoch | None = None

    def __call__(self) -> None:
        """Train every net to the end of the plan, from the checkpoint of the run if it has one."""
        saved = self.run.load()
        self.history = {name: [] for name in self.nets} if saved is None else saved[1]["history"]
        steps = self.plan.per_epoch(len(self.data["train"]))
        for place, (name, net) in enumerate(self.nets.items()):
            torch.manual_seed(self.plan.seed * len(self.nets) + place)
            optimizer = torch.optim.AdamW(net.parameters(), lr=self.plan.lr, weight_decay=1e-2, fused=True)
            if saved is not None and saved[1]["name"] == name:
                restore(saved[1], self.nets, optimizer)
                as_parameters(optimizer)
                self.epoch = epoch_of(saved[1]["epoch"], torch.device("cpu"))
            elif len(self.history[name]) == self.plan.epochs:
                continue
            descent, now = Descent(net, optimizer), partial(self._state, name, optimizer)
            begun = len(self.history[name]) * steps + (0 if self.epoch is None else self.epoch.batches)
            bar = self.run.progress(self.plan.epochs * steps, name, begun)
            for epoch in range(len(self.history[name]), self.plan.epochs):
                before = (place * self.plan.epochs + epoch) * steps
                for batches in self._epoch(net, descent, epoch):
                    bar.update(1)
                    self.run.keep(before + batches, now, due=False)
                self._note(name, net, epoch, before + steps)
                self.run.keep(before + steps, now)

    def _state(self, name: str, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        own = {"name": name, "history": self.history, "epoch": state_of(self.epoch)}
        return training_state(self.nets, optimizer) | own

    def seen(self, data: Cluttered, which: Tensor) -> tuple[Tensor, Tensor]:
        """Canvases and views of some instances, on the device."""
        return look(data.compose(which).to(self.run.device), self.view)

    def _note(self, name: str, net: nn.Module, epoch: int, step: int) -> None:
        figures = self._figures | self.judge(net, "validation")
        self.history[name].append(figures)
        self.run.log(step, net=name, epoch=epoch + 1, **figures)
        self.run.time(step, net=name, epoch=epoch + 1)

    def _epoch(self, net: nn.Module, descent: Descent, epoch: int) -> Iterator[int]:
        """One pass, or what is left of it; gives the batches so far after each.

        Every epoch but the first has its digits at new places, amid the clutter of others.
        """
        generator = torch.Generator().manual_seed(self.plan.seed * 1000 + epoch)
        data = self.data["train"]
        if self.plan.redraw and epoch:
            data = data.redrawn(generator)
        count = self.plan.per_epoch(len(data))
        order = torch.randperm(len(data), generator=generator)[: count * self.plan.batch]
        now = self.epoch = self.epoch or Epoch.begin(order, order.device)
        for which in now.rest(self.plan.batch):
            step = epoch * count + now.batches
            rate = self.plan.rate(step, len(data))
            for group in descent.optimizer.param_groups:
                group["lr"] = rate
            if isinstance(net, GlimpseNet):
                net.wiring.training = step < self.plan.freeze_at(len(data))
            y = data.labels[which].to(self.run.device)
            now.add(*self.step(descent, *self.seen(data, which), y, step), len(which))
            yield now.batches
        self.epoch, self._figures = None, now.figures()

    def step(self, descent: Descent, canvas: Tensor, view: Tensor, y: Tensor, step: int) -> tuple[Tensor, int]:
        """One optimizer step, the `step`-th; the loss of the classes, and how many were right."""
        net = descent.model
        with self._precision():
            output = net(canvas, view)
        loss = cross_entropy(output.float(), y)
        total = loss
        if isinstance(net, GlimpseNet) and self.plan.hint:
            total = loss + self.plan.hint * cross_entropy(net.hint(), y)
        descent.step(total, step)
        return loss.detach().cpu(), int((output.argmax(1) == y).sum())

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.plan.low_precision)

    @torch.no_grad()
    def judge(self, net: nn.Module, part: str) -> dict[str, float]:
        """`<part>_accuracy` of the rounded network; of glimpses also `_sampled`, points drawn as in training."""
        net.eval()
        figures = {f"{part}_accuracy": self._accuracy(net, self.data[part])}
        if isinstance(net, GlimpseNet):
            net.wiring.training = True
            figures[f"{part}_accuracy_sampled"] = self._accuracy(net, self.data[part])
        net.train()
        return figures

    def _accuracy(self, net: nn.Module, data: Cluttered) -> float:
        right = 0
        for which in torch.arange(len(data)).split(EVALUATION_BATCH):
            with self._precision():
                told = net(*self.seen(data, which)).argmax(1).cpu()
            right += int((told == data.labels[which]).sum())
        return right / len(data)


def time_steps(
    contest: Contest, make: Callable[[int], GlimpseNet], sizes: tuple[int, int], repeats: int
) -> list[float]:
    """Median seconds of a training step on canvases of either size, canvases and views being made beforehand.

    Steps on both alternate, in one process; two batches of each alternate too, so that none stays in a cache.
    """
    batch = contest.plan.batch
    device = contest.run.device
    nets = [make(size).to(device) for size in sizes]
    for net in nets:
        channels_last(net)
    descents = [Descent(net, torch.optim.AdamW(net.parameters(), lr=contest.plan.lr, fused=True)) for net in nets]
    canvases = [[torch.rand(batch, size, size, device=device) for _ in range(2)] for size in sizes]
    views = [torch.rand(batch, contest.view, contest.view, device=device) for _ in range(2)]
    y = torch.zeros(batch, dtype=torch.int64, device=device)
    seconds: list[list[float]] = [[], []]
    for i in range(repeats + 2):
        for j in range(2):
            began = time.perf_counter()
            contest.step(descents[j], canvases[j][i % 2], views[i % 2], y, i)
            seconds[j].append(time.perf_counter() - began)
    return [statistics.median(each[2:]) for each in seconds]
