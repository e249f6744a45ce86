"""Training one net of the experiment `sparsity`, from wherever its checkpoint stands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ash import GaussianWiring, Rewirer
from ash.backends import compiled
from ash.explored import Explored
from ash.pattern import ravel
from ash.wirings.dynamic import DynamicWiring
from experiments.classify import accuracy
from experiments.images import Images
from experiments.runs import restore, training_state
from experiments.sparsity_nets import FREEZE, Recipe, optimizer_for, wirings

LOOK = 100
"""Steps between looks at which entries exist, for the explored share."""


@contextlib.contextmanager
def long_training() -> Iterator[None]:
    """Inside, compiled kernels serve also where one step is too short to load them for."""
    before, compiled.LEAST_WORK = compiled.LEAST_WORK, 0
    try:
        yield
    finally:
        compiled.LEAST_WORK = before


class Trial:
    """A net in training.

    Args:
        model: see `sparsity_nets.build`.
        recipe: how it is trained. epochs: passes over the training part of `images`.
        seed: of the order of the data and of random growth.

    Attributes:
        epoch: passes that are done. step: optimizer steps.
    """

    def __init__(self, model: nn.Sequential, recipe: Recipe, images: Images, epochs: int, seed: int):
        self.model, self.recipe, self.images, self.epochs = model, recipe, images, epochs
        self.optimizer = optimizer_for(model, recipe)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.order = torch.Generator().manual_seed(seed)
        self.epoch = self.step = 0
        self.steps = epochs * math.ceil(len(images.train_y) / recipe.batch)
        self.rewirer = self._rewirer(seed)
        self.explored = {name: Explored(each.shape, each.admissible.count(), each.stored_entries())
                         for name, each in wirings(model).items()}  # fmt: skip
        self._explore()

    def _rewirer(self, seed: int) -> Rewirer | None:
        if not any(isinstance(each, DynamicWiring) for each in wirings(self.model).values()):
            return None
        recipe, end = self.recipe, max(1, round(self.recipe.rewire_until * self.steps))
        every = min(recipe.every, end)
        return Rewirer(
            self.model,
            self.optimizer,
            end=end,
            every=every,
            fraction=recipe.fraction,
            average_over=min(recipe.average_over, every),
            explored=False,
            seed=seed,
        )

    def run_epoch(self) -> float:
        """One pass over the training images; the mean loss."""
        total = torch.zeros(())
        x, y = self.images.train_x, self.images.train_y
        for batch in torch.randperm(len(y), generator=self.order).to(y.device).split(self.recipe.batch):
            total += self._step(x.index_select(0, batch), y.index_select(0, batch)) * len(batch)
        self.epoch += 1
        return float(total) / len(y)

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        factor = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.step == round(FREEZE * self.steps):
            self._freeze()
        loss = cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if self.rewirer is not None:
            self.rewirer.step()
        if self.step % LOOK == 0:
            self._explore()
        return loss.detach()

    def _freeze(self) -> None:
        for each in wirings(self.model).values():
            if isinstance(each, GaussianWiring):
                each.freeze()

    @torch.no_grad()
    def _explore(self) -> None:
        for name, each in wirings(self.model).items():
            weight = each.rounded()
            assert weight is not None
            self.explored[name].add(ravel(weight.indices, weight.shape).unique())

    @property
    def explored_total(self) -> float:
        """Share of all entries that have ever existed; 1 of a dense net."""
        every = sum(each.admissible for each in self.explored.values())
        return sum(each.count for each in self.explored.values()) / every if every else 1.0

    def error(self, part: str) -> float:
        """Share of the images of `part` (validation, test) that are taken for another class, in evaluation."""
        self.model.eval()
        wrong = 1 - accuracy(self.model, getattr(self.images, f"{part}_x"), getattr(self.images, f"{part}_y"))
        self.model.train()
        return wrong

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return training_state(self.model, self.optimizer, order=self.order) | {
            "epoch": self.epoch,
            "step": self.step,
            "rewirer": None if self.rewirer is None else self.rewirer.state_dict(),
            "explored": {name: each.state_dict() for name, each in self.explored.items()},
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        own = ("epoch", "step", "rewirer", "explored")
        if state["step"] > round(FREEZE * self.steps):
            self._freeze()
        restore({key: value for key, value in state.items() if key not in own}, self.model, self.optimizer,
                order=self.order)  # fmt: skip
        self.epoch, self.step = state["epoch"], state["step"]
        if self.rewirer is not None:
            self.rewirer.load_state_dict(state["rewirer"])
        for name, each in self.explored.items():
            each.load_state_dict(state["explored"][name])
