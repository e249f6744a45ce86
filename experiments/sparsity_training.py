"""Training nets of the experiment `sparsity`, side by side, from wherever their checkpoint stands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ash import GaussianWiring, Rewirer
from ash.backends import compiled
from ash.explored import Explored
from ash.pattern import ravel
from ash.wirings.dynamic import DynamicWiring
from experiments.classify import accuracy
from experiments.descent import Descent
from experiments.images import Images
from experiments.runs import restore, training_state
from experiments.side_by_side import SideBySide
from experiments.sparsity_nets import FREEZE, Recipe, optimizer_for, wirings

LOOK = 100
"""Steps between looks at which entries exist, for the explored share."""
VALIDATION = 0.1
"""Share of the training images that is for validation."""


@contextlib.contextmanager
def long_training() -> Iterator[None]:
    """Inside, compiled kernels serve also where one step is too short to load them for."""
    before, compiled.LEAST_WORK = compiled.LEAST_WORK, 0
    try:
        yield
    finally:
        compiled.LEAST_WORK = before


@dataclass(frozen=True)
class Split:
    """Which of n training images a net is trained on, and which are for its validation, drawn by its seed."""

    train: Int64[Tensor, " t"]
    validation: Int64[Tensor, " v"]

    @classmethod
    def draw(cls, n: int, seed: int, device: torch.device) -> Split:
        """A tenth at random for validation."""
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device)
        held = max(1, round(VALIDATION * n))
        return cls(order[held:], order[:held])


class Explorer:
    """Which entries of a net have ever existed."""

    def __init__(self, net: nn.Module):
        self.wirings = wirings(net)
        self.known = {name: Explored(each.shape, each.admissible.count(), each.stored_entries())
                      for name, each in self.wirings.items()}  # fmt: skip
        self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Note the entries that exist now."""
        for name, each in self.wirings.items():
            weight = each.rounded()
            assert weight is not None
            self.known[name].add(ravel(weight.indices, weight.shape).unique())

    @property
    def rate(self) -> float:
        """Their share of all entries; 1 of a dense net."""
        every = sum(each.admissible for each in self.known.values())
        return sum(each.count for each in self.known.values()) / every if every else 1.0


class Trial:
    """Nets of one wiring in training, each with its own split, order of the data and rewiring.

    Args:
        nets: see `sparsity_nets.build`. seeds: of each, for its split, its order of the data and its growth.
        recipe: how they are trained. epochs: passes over the training part of `images`, which are standardised.

    Attributes:
        epoch: passes that are done. step: optimizer steps.
    """

    def __init__(
        self, nets: Sequence[nn.Sequential], recipe: Recipe, images: Images, epochs: int, seeds: Sequence[int]
    ):
        self.nets, self.recipe, self.images, self.epochs = list(nets), recipe, images, epochs
        self.model = SideBySide(nets)
        self.optimizer = optimizer_for(self.model, recipe)
        self.descent = Descent(self.model, self.optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        device = images.train_x.device
        self.splits = [Split.draw(len(images.train_y), seed, device) for seed in seeds]
        self.orders = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.epoch = self.step = 0
        self.steps = epochs * math.ceil(len(self.splits[0].train) / recipe.batch)
        self.rewirers = [self._rewirer(net, seed) for net, seed in zip(nets, seeds, strict=True) if _dynamic(net)]
        self.explorers = [Explorer(net) for net in nets]

    def _rewirer(self, net: nn.Sequential, seed: int) -> Rewirer:
        recipe, end = self.recipe, max(1, round(self.recipe.rewire_until * self.steps))
        every = min(recipe.every, end)
        return Rewirer(
            net,
            self.optimizer,
            end=end,
            every=every,
            fraction=recipe.fraction,
            average_over=min(recipe.average_over, every),
            explored=False,
            seed=seed,
        )

    def run_epoch(self) -> list[float]:
        """One pass over the training images; the mean loss of every net."""
        x, y = self.images.train_x, self.images.train_y
        orders = [split.train[torch.randperm(len(split.train), generator=order).to(y.device)]
                  for split, order in zip(self.splits, self.orders, strict=True)]  # fmt: skip
        total = torch.zeros(len(self.nets), device=y.device)
        for batch in torch.stack(orders, 1).split(self.recipe.batch):
            chosen = batch.flatten()
            images = x.index_select(0, chosen).unflatten(0, batch.shape)
            total += self._step(images, y.index_select(0, chosen)) * len(batch)
        self.epoch += 1
        return (total / len(orders[0])).tolist()

    def _step(self, x: Float[Tensor, "b s h w"], y: Int64[Tensor, " b_s"]) -> Float[Tensor, " s"]:
        factor = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.step == round(FREEZE * self.steps):
            self._freeze()
        losses = cross_entropy(self.model(x).flatten(0, 1), y, reduction="none").unflatten(0, x.shape[:2]).mean(0)
        self.descent.step(losses.sum(), self.step)
        self.step += 1
        for rewirer in self.rewirers:
            rewirer.step()
        if self.step % LOOK == 0:
            for explorer in self.explorers:
                explorer.look()
        return losses.detach()

    def _freeze(self) -> None:
        for net in self.nets:
            for each in wirings(net).values():
                if isinstance(each, GaussianWiring):
                    each.freeze()

    def errors(self, part: str) -> list[float]:
        """Of every net the share of images of `part` (validation, test) that it takes for another class."""
        return [self._error(net, part, split) for net, split in zip(self.nets, self.splits, strict=True)]

    def _error(self, net: nn.Sequential, part: str, split: Split) -> float:
        images, x, y = self.images, self.images.test_x, self.images.test_y
        if part == "validation":
            x, y = images.train_x[split.validation], images.train_y[split.validation]
        net.eval()
        wrong = 1 - accuracy(net, x, y)
        net.train()
        return wrong

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        generators = {str(i): order for i, order in enumerate(self.orders)}
        return training_state(self.model, self.optimizer, **generators) | {
            "epoch": self.epoch,
            "step": self.step,
            "rewirers": [rewirer.state_dict() for rewirer in self.rewirers],
            "explored": [{name: each.state_dict() for name, each in explorer.known.items()}
                         for explorer in self.explorers],
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        own = ("epoch", "step", "rewirers", "explored")
        if state["step"] > round(FREEZE * self.steps):
            self._freeze()
        generators = {str(i): order for i, order in enumerate(self.orders)}
        rest = {key: value for key, value in state.items() if key not in own}
        restore(rest, self.model, self.optimizer, **generators)
        self.epoch, self.step = state["epoch"], state["step"]
        for rewirer, saved in zip(self.rewirers, state["rewirers"], strict=True):
            rewirer.load_state_dict(saved)
        for explorer, known in zip(self.explorers, state["explored"], strict=True):
            for name, each in explorer.known.items():
                each.load_state_dict(known[name])


def _dynamic(net: nn.Module) -> bool:
    return any(isinstance(each, DynamicWiring) for each in wirings(net).values())
