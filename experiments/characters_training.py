"""Training one character transformer of the experiment `characters`, from wherever its checkpoint stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ash import Rewirer, count, parameter_groups, sparsify
from ash.checks import require
from experiments.characters_net import CharacterTransformer, bits
from experiments.loop import Loop
from experiments.runs import Run

HEADS, WARM_UP, CLIP, REWIRE_UNTIL = 4, 50, 1.0, 0.75
KEPT_DENSE = "head"
"""The layer that stays as it is: the logits."""


@dataclass(frozen=True)
class Recipe:
    """How a net is made and trained; see `characters.Options`."""

    wiring: str
    density: float
    distribution: str
    width: int
    layers: int
    context: int
    batch: int
    steps: int
    lr: float
    weight_decay: float
    every: int
    fraction: float


def build(recipe: Recipe) -> CharacterTransformer:
    """The net, drawn from torch's default generator: `dense`, `narrow`, or dense and then made sparse."""
    make = partial(CharacterTransformer, heads=HEADS, layers=recipe.layers, context=recipe.context)
    if recipe.wiring == "narrow":
        return make(narrow_width(recipe))
    net = make(recipe.width)
    if recipe.wiring != "dense":
        sparsify(net, recipe.wiring, density=recipe.density, distribution=recipe.distribution, skip=KEPT_DENSE)
    return net


def narrow_width(recipe: Recipe) -> int:
    """The largest width of a dense net that stores no more numbers than a sparse one of `recipe.width`.

    A sparse layer stores a value and an index for each entry. Raises `UserError` where there is none.
    """
    with torch.random.fork_rng(), torch.device("cpu"):
        full = CharacterTransformer(recipe.width, HEADS, recipe.layers, recipe.context)
        sparse = sparsify(full, "static", density=recipe.density, distribution=recipe.distribution, skip=KEPT_DENSE)
        most = count(sparse).stored_numbers
        sizes = range(HEADS, recipe.width + 1, HEADS)
        nets = (CharacterTransformer(width, HEADS, recipe.layers, recipe.context) for width in sizes)
        fits = [width for width, net in zip(sizes, nets, strict=True) if count(net).stored_numbers <= most]
    require(bool(fits), f"no dense net stores as few numbers as a sparse one of --width {recipe.width}; give more.")
    return fits[-1]


class Trial:
    """A net in training on random windows of a text.

    Args:
        recipe: how. text: its characters' numbers. seed: of the windows and of random growth. run: that it is part of.

    Attributes:
        step: optimizer steps that are done.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, text: Int64[Tensor, " n"], seed: int, run: Run):
        self.net, self.recipe, self.text, self.step = net, recipe, text, 0
        groups = parameter_groups(net, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        self.loop = Loop(run, net, self.optimizer, CLIP)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.windows = torch.Generator().manual_seed(seed)
        self.rewirer: Rewirer | None = None
        if recipe.wiring not in ("dense", "narrow"):
            end = max(1, round(REWIRE_UNTIL * recipe.steps))
            every = min(recipe.every, end)
            self.rewirer = Rewirer(net, self.optimizer, end=end, every=every, fraction=recipe.fraction, seed=seed,
                                   average_over=every, explored=False)  # fmt: skip

    def train_step(self) -> float:
        """One step of the optimizer, and maybe a rewiring; the loss before it, in bits of a character."""
        recipe, length = self.recipe, self.recipe.context + 1
        starts = torch.randint(len(self.text) - length + 1, (recipe.batch,), generator=self.windows)
        self._set_rates()
        for part, share in self.loop.parts(starts):
            batch = self.text[(part.unsqueeze(1) + torch.arange(length)).to(self.text.device)]
            self.loop.backward(bits(self.loop, batch) * share)
        loss = self.loop.step(self.step)
        self.step += 1
        if self.rewirer is not None:
            self.rewirer.step()
        return float(loss)

    def _set_rates(self) -> None:
        """A short rise, then one cosine to 0."""
        factor = 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor * min(1.0, (self.step + 1) / WARM_UP)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        state = self.loop.state(windows=self.windows)
        return state | {"step": self.step, "rewirer": None if self.rewirer is None else self.rewirer.state_dict()}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.loop.restore(state, windows=self.windows)
        self.step = state["step"]
        if self.rewirer is not None:
            self.rewirer.load_state_dict(state["rewirer"])
