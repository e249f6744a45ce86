"""The ways to choose the wiring of a node graph: their factories, and what they do in the course of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ash import (
    Anneal,
    GaussianWiring,
    Rewirer,
    RigLWiring,
    SETWiring,
    StaticWiring,
    TopKWiring,
    Wiring,
    parameter_groups,
)
from experiments.node_nets import Wire, graphs_of

PHASED = ("fine_tune", "one_shot")
"""Ways that train the complete graph first, and then the edges that are largest there."""


@dataclass(frozen=True)
class Phases:
    """A share of the admissible edges: all of them before step `switch`, `share` from there on."""

    switch: int
    share: float

    def __call__(self, step: int) -> float:
        return 1.0 if step < self.switch else self.share


def wire(way: str, total: int, dropout: float) -> Wire:
    """From a number of edges to a factory of wirings, for a run of `total` optimizer steps."""
    choices: dict[str, Wire] = {
        "top_k": lambda k: partial(TopKWiring, k=k),
        "top_k_per_output": lambda k: partial(TopKWiring, k=k, per_output=True),
        "no_update": lambda k: partial(TopKWiring, k=k, update=False),
        "random": lambda k: partial(StaticWiring, k=k),
        "complete": lambda k: partial(StaticWiring, density=1.0),
        "set": lambda k: partial(SETWiring, k=k),
        "rigl": lambda k: partial(RigLWiring, k=k),
        "gaussian": lambda k: partial(_gaussian, k, total),
        "targeted_dropout": lambda k: partial(TopKWiring, k=k, dropout=dropout),
        "targeted_dropout_per_output": lambda k: partial(TopKWiring, k=k, dropout=dropout, per_output=True),
        "fine_tune": lambda k: partial(_phased, k, total // 2),
        "one_shot": lambda k: partial(_phased, k, total // 2),
    }
    return choices[way]


WAYS = (
    "top_k", "top_k_per_output", "no_update", "random", "complete", "set", "rigl", "gaussian", "targeted_dropout",
    "targeted_dropout_per_output", "fine_tune", "one_shot",
)  # fmt: skip


def _gaussian(k: int, total: int, out_shape: tuple[int, ...], in_shape: tuple[int, ...], **options: Any) -> Wiring:
    """Tuples whose scales shrink to 0.3 in the first 60 % of the run."""
    scale = out_shape[0] / 8
    ceiling = Anneal(scale, 0.3, max(1, round(0.6 * total)))
    return GaussianWiring(out_shape, in_shape, k, scale=scale, scale_ceiling=ceiling, **options)


def _phased(k: int, switch: int, out_shape: tuple[int, ...], in_shape: tuple[int, ...], **options: Any) -> Wiring:
    share = k / options["admissible"].count() if "admissible" in options else k / (out_shape[0] * in_shape[0])
    return TopKWiring(out_shape, in_shape, density=Phases(switch, share), update=False, **options)


class Driver:
    """What a way of wiring asks for besides gradient steps: rewirings, the end of a phase, frozen means.

    Args:
        way: its name. model, optimizer: in training. total: optimizer steps of the run. every: steps between rewirings.
        fraction: share of the edges that the first rewiring drops.
    """

    def __init__(
        self, way: str, model: nn.Module, optimizer: torch.optim.Optimizer, total: int, every: int, fraction: float
    ):
        self.way, self.model, self.total, self.step = way, model, total, 0
        self.initial = {name: value.clone() for name, value in model.state_dict().items()} if way in PHASED else {}
        self.rewirer: Rewirer | None = None
        if way in ("set", "rigl"):
            end = max(every, 3 * total // 4)
            self.rewirer = Rewirer(model, optimizer, every=every, end=end, fraction=fraction, explored=False)

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """To be called after every optimizer step."""
        self.step += 1
        if self.rewirer is not None:
            self.rewirer.step()
            return
        for graph in self._wirings():
            graph.advance(self.step)
        if self.way in PHASED and self.step == self.total // 2:
            self._second_phase(optimizer)
        if self.way == "gaussian" and self.step == round(0.7 * self.total):
            self._freeze()

    def _wirings(self) -> list[Wiring]:
        return [each for each in self.model.modules() if isinstance(each, Wiring)]

    def _second_phase(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the largest edges; the one-shot lottery starts anew from the initial values."""
        optimizer.state.clear()
        for each in self._wirings():
            if isinstance(each, TopKWiring):
                each.freeze()
        if self.way == "one_shot":
            kept = {name: v for name, v in self.model.state_dict().items() if name.endswith((".mask", ".frozen"))}
            self.model.load_state_dict({**self.initial, **kept})

    def _freeze(self) -> None:
        for each in self._wirings():
            if isinstance(each, GaussianWiring):
                each.freeze()

    def rate(self, factor: Callable[[float], float]) -> float:
        """The learning rate's factor at this step; fine-tuning stays at a tenth, the lottery goes through it twice."""
        half = self.total // 2
        if self.way not in PHASED:
            return factor(self.step / self.total)
        if self.step < half:
            return factor(self.step / half)
        return 0.1 if self.way == "fine_tune" else factor((self.step - half) / (self.total - half))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        rewirer = None if self.rewirer is None else self.rewirer.state_dict()
        return {"step": self.step, "initial": self.initial, "rewirer": rewirer}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the model and the optimizer have been restored."""
        self.step, self.initial = state["step"], state["initial"]
        if self.rewirer is not None:
            self.rewirer.load_state_dict(state["rewirer"])
        if self.way == "gaussian" and self.step >= round(0.7 * self.total):
            self._freeze()


def make_optimizer(
    way: str, model: nn.Module, lr: float, momentum: float, weight_decay: float, edge_lr: float = 1.0
) -> torch.optim.Optimizer:
    """SGD, with `edge_lr` times the rate for edges; Gaussians have AdamW, whose steps of the means are in units of a
    tuple's scale."""
    if way == "gaussian":
        return torch.optim.AdamW(parameter_groups(model, lr, mean_lr=0.05, weight_decay=weight_decay))
    groups = parameter_groups(model, lr, value_lr=edge_lr * lr, weight_decay=weight_decay)
    return torch.optim.SGD(groups, lr, momentum)


def edges_now(model: nn.Module) -> list[Tensor]:
    """Of every node graph the edges in evaluation, flattened `(k,)`, ascending and each once."""
    found = []
    for graph in graphs_of(model):
        weight = graph.wiring.rounded()
        assert weight is not None  # none of these ways depends on the input
        found.append((weight.indices[:, 0] * graph.nodes + weight.indices[:, 1]).unique().cpu())
    return found
