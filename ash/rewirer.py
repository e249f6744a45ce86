"""`Rewirer`: drives the rewiring of a whole model, in two lines of anybody's training loop.

One makes it, `rewirer = ash.Rewirer(model, optimizer, every=100, end=7500)`; the other is `rewirer.step()` after
`optimizer.step()`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ash.checks import require
from ash.explored import Explored
from ash.growth import DenseGradient, Factors, Score, lean_sum
from ash.optim import clear_state, reorder_state
from ash.pattern import ravel
from ash.ranks import over_ranks
from ash.schedules import Anneal, Schedule
from ash.wirings.base import RewireReport, Wiring
from ash.wirings.drop_grow import distribute
from ash.wirings.dynamic import DynamicWiring
from ash.wirings.gaussian import GaussianWiring
from ash.wirings.rescue import Rescue

_DRIVERS: weakref.WeakKeyDictionary[Wiring, weakref.ref[Rewirer]] = weakref.WeakKeyDictionary()
"""Which Rewirer drives a wiring."""


@dataclass(frozen=True)
class RewireEvent:
    """What one rewiring of a model did; the keys of the dicts are names of the model's modules.

    Attributes:
        step: the optimizer step that it followed.
        fraction: of the entries that was to be dropped.
        moves: how many entries moved. entries: how many are in use now.
        explored: share of the admissible entries that has ever been in use. explored_total: of all layers together.
    """

    step: int
    fraction: float
    moves: dict[str, int] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)
    explored: dict[str, float] = field(default_factory=dict)
    explored_total: float | None = None

    @property
    def moved(self) -> int:
        """How many entries moved in all layers together."""
        return sum(self.moves.values())


class Rewirer:
    """Rewires a model's dynamic wirings at the right steps, and takes the optimizer's state along.

    Args:
        model: every `DynamicWiring` in it is rewired; other wirings are left as they are, but told of the steps.
        optimizer: SGD, Adam, AdamW or any other that holds a state per entry in tensors of a parameter's shape.
        every: optimizer steps between rewirings.
        start, end: the first and last optimizer step at which there may be a rewiring.
        fraction: share of a layer's entries that is dropped: a number α, annealed as α/2·(1 + cos(π·t/end)), or a
            schedule t -> share.
        average_over: steps before a rewiring whose gradients are averaged; all micro-batches of a step count anyway.
            One batch is noisy: where a second product with the weight's gradient in each step can be afforded, as in
            small nets, averaging over all `every` steps grows much better entries. The sum is held as factors, or
            dense where that takes less memory.
        rescue: what is done to Gaussian wirings at the same steps; by default nothing.
        explored: keep count of the entries that have ever been in use.
        seed: of random choices; the same on every rank of a distributed run.

    `step()` after each `optimizer.step()` is all there is to do; `close()` lets go of the model, so that another
    Rewirer may drive it, and so does the end of the Rewirer's life. Gradients are collected in the backward passes that
    precede a rewiring, in training mode alone; layers that have had none, or one that is not finite, are left out
    of that rewiring. In a distributed run those of all ranks count, and every rank rewires in the same way.

    Raises `UserError` for a schedule without a rewiring, numbers out of range, a model without wirings or with
    another Rewirer at work on it, and an optimizer that does not hold the parameters.

    Source: Evci et al., arXiv 1911.11134. Departure: the step of a rewiring trains the weights too.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        end: int,
        every: int = 100,
        start: int = 0,
        fraction: float | Schedule = 0.3,
        average_over: int = 1,
        rescue: Rescue | None = None,
        explored: bool = True,
        seed: int = 0,
    ):
        _check_schedule(every, start, end, average_over)
        self.every, self.start, self.end, self.average_over = every, start, end, average_over
        self.fraction: Schedule = fraction if callable(fraction) else Anneal(_share(fraction), 0.0, end, "cosine")
        self.rescue, self.optimizer = rescue, optimizer
        self.steps = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.wirings = {name: each for name, each in model.named_modules() if isinstance(each, Wiring)}
        require(bool(self.wirings), f"{type(model).__name__} has no wirings; expected sparse layers: see ash.sparsify.")
        self.driven = {name: each for name, each in self.wirings.items() if self._drives(each)}
        _check_optimizer(model, optimizer, self.driven)
        self._take_over()
        self._scores: dict[str, Score] = {}
        self._explored: dict[str, Explored] = {}
        if explored:
            self._begin_exploring()
        self._prepare()

    def _drives(self, wiring: Wiring) -> bool:
        if isinstance(wiring, GaussianWiring):
            return self.rescue is not None
        return type(wiring).rewire is not Wiring.rewire

    def _take_over(self) -> None:
        for name, wiring in self.wirings.items():
            other = _DRIVERS.get(wiring)
            require(
                other is None or other() is None,
                f"a second Rewirer on one model: {name or 'the model'} has one; use that, or close() it first.",
            )
        own = weakref.ref(self)
        _DRIVERS.update(dict.fromkeys(self.wirings.values(), own))
        self.close = weakref.finalize(self, _release, list(self.wirings.values()))
        self.close.atexit = False

    # --- steps ---------------------------------------------------------------------------------------

    def step(self) -> RewireEvent | None:
        """To be called after every optimizer step; what was rewired, if it was time."""
        self.steps += 1
        for wiring in self.wirings.values():
            wiring.advance(self.steps)
        self._gather()
        event = self._event() if self._next(self.steps - 1) == self.steps else None
        self._prepare()
        return event

    def _next(self, after: int) -> int | None:
        """The first step later than `after` at which there is a rewiring."""
        number = max(after // self.every + 1, -(-self.start // self.every), 1)
        return number * self.every if number * self.every <= self.end else None

    def _prepare(self) -> None:
        """Tell the wirings whether the gradients of the coming step are wanted."""
        event = self._next(self.steps)
        for wiring in self.driven.values():
            wiring.collecting = event is not None and self._wants(wiring, event - self.steps)

    def _wants(self, wiring: Wiring, ahead: int) -> bool:
        if not isinstance(wiring, DynamicWiring):
            return ahead <= self.average_over
        everything = wiring.window is None
        return wiring.needs_score and (everything or ahead <= max(wiring.window or 1, self.average_over))

    def _gather(self) -> None:
        """Add the gradients of the step that has just been to those of the steps before."""
        for name, wiring in self.driven.items():
            fresh, before = wiring.collected(), self._scores.get(name)
            fresh = None if fresh is None else over_ranks(fresh)
            if fresh is None or not fresh.is_finite():
                continue
            if isinstance(wiring, DynamicWiring):
                self._scores[name] = wiring.remember(before, fresh)
            else:
                self._scores[name] = fresh if before is None else lean_sum(before, fresh)

    # --- a rewiring ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _event(self) -> RewireEvent:
        fraction = _share(self.fraction(self.steps))
        moves: dict[str, int] = {}
        pools: dict[type, list[str]] = {}
        for name, wiring in self.driven.items():
            if name not in self._scores and (not isinstance(wiring, DynamicWiring) or wiring.needs_score):
                continue
            if isinstance(wiring, DynamicWiring) and wiring.exchanges:
                pools.setdefault(type(wiring), []).append(name)
            else:
                moves[name] = self._finish(wiring, self._rewire(wiring, self._scores.get(name), fraction))
        for names in pools.values():
            moves |= self._exchange(names, fraction)
        self._forget()
        return RewireEvent(self.steps, fraction, moves, self._entries(), *self._explore())

    def _rewire(self, wiring: Wiring, score: Score | None, fraction: float) -> RewireReport:
        if isinstance(wiring, DynamicWiring):
            return wiring.rewire(score, fraction, self.generator)
        assert score is not None
        return wiring.rewire(score, self.rescue) if isinstance(wiring, GaussianWiring) else wiring.rewire(score)

    def _exchange(self, names: list[str], fraction: float) -> dict[str, int]:
        """Rewire layers that pool what they drop."""
        layers = [(self.driven[name], self._scores.get(name)) for name in names]
        wirings = [(w, score) for w, score in layers if isinstance(w, DynamicWiring)]
        wanted = round(fraction * sum(w.stored_entries() for w, _ in wirings))
        drops = [w.to_drop(fraction, score, self.generator) for w, score in wirings]
        found = sum(map(len, drops))
        if sum(w.room(d) for (w, _), d in zip(wirings, drops, strict=True)) < found:
            drops = [d[: w.free] for (w, _), d in zip(wirings, drops, strict=True)]
        claims = [w.claim(d, score) for (w, score), d in zip(wirings, drops, strict=True)]
        limits = [w.room(d) for (w, _), d in zip(wirings, drops, strict=True)]
        grows = distribute(sum(map(len, drops)), claims, limits)
        moves = {}
        for name, (w, score), dropped, n in zip(names, wirings, drops, grows, strict=True):
            moves[name] = self._finish(w, w.exchange(dropped, n, score, self.generator))
            w.after_event(found, wanted)
        return moves

    def _finish(self, wiring: Wiring, report: RewireReport) -> int:
        """Move the optimizer's state along; how many entries moved."""
        if report.order is not None:
            reorder_state(self.optimizer, wiring, report.order)
        clear_state(self.optimizer, wiring, report.moved)
        if isinstance(wiring, DynamicWiring):
            order = wiring.arrange(report.moved if report.order is None else None)
            if order is not None:
                reorder_state(self.optimizer, wiring, order)
            unused = torch.arange(wiring.stored_entries(), wiring.capacity, device=report.moved.device)
            clear_state(self.optimizer, wiring, unused)  # a momentum would move their values
        return report.moves

    def _forget(self) -> None:
        """Drop the gradients that were for this rewiring; a momentum over all steps stays."""
        lasting = {name for name, w in self.driven.items() if isinstance(w, DynamicWiring) and w.window is None}
        self._scores = {name: score for name, score in self._scores.items() if name in lasting}

    # --- what is reported ----------------------------------------------------------------------------

    def _begin_exploring(self) -> None:
        for name, wiring in self.driven.items():
            if wiring.rounded() is not None:
                count = wiring.admissible.count()
                self._explored[name] = Explored(wiring.shape, count, wiring.stored_entries())
        self._explore()

    def _explore(self) -> tuple[dict[str, float], float | None]:
        """Note the entries in use; the share ever in use, by layer and in all."""
        for name, each in self._explored.items():
            wiring = self.driven[name]
            weight = wiring.rounded()
            assert weight is not None
            ids = ravel(weight.indices, weight.shape)
            each.add(ids if isinstance(wiring, DynamicWiring) else ids.unique())
        return {name: each.rate for name, each in self._explored.items()}, self.explored_total

    @property
    def explored_total(self) -> float | None:
        """Share of all layers' admissible entries that has ever been in use; None where nothing is counted."""
        every = sum(each.admissible for each in self._explored.values())
        return sum(each.count for each in self._explored.values()) / every if every else None

    def _entries(self) -> dict[str, int]:
        return {name: wiring.stored_entries() for name, wiring in self.driven.items()}

    # --- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What another Rewirer needs to go on in the same way, between two steps: numbers and tensors only."""
        return {
            "steps": self.steps,
            "generator": self.generator.get_state(),
            "scores": {name: _pack(score) for name, score in self._scores.items()},
            "explored": {name: each.state_dict() for name, each in self._explored.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a Rewirer of the same model. Raises `UserError` where the layers differ."""
        names = {*state["scores"], *state["explored"]}
        strange = sorted(names - self.driven.keys())
        require(not strange, f"a state with {', '.join(strange)}, which this model has not; load that of this model.")
        self.steps = int(state["steps"])
        self.generator.set_state(state["generator"])
        self._scores = {name: _unpack(packed) for name, packed in state["scores"].items()}
        for name, each in self._explored.items():
            if name in state["explored"]:
                each.load_state_dict(state["explored"][name])
        self._prepare()


def _release(wirings: list[Wiring]) -> None:
    for wiring in wirings:
        wiring.collecting = False
        wiring.collected()
        _DRIVERS.pop(wiring, None)


def _pack(score: Score) -> dict[str, Any]:
    """A score as numbers and tensors."""
    if isinstance(score, Factors):
        return {"x": score.x.unflatten(1, score.in_shape), "g": score.g.unflatten(1, score.out_shape)}
    return {"gradient": score.dense(), "out_rank": len(score.out_shape)}


def _unpack(packed: dict[str, Any]) -> Score:
    if "x" in packed:
        return Factors(packed["x"], packed["g"])
    return DenseGradient(packed["gradient"], int(packed["out_rank"]))


def _share(fraction: float) -> float:
    require(0 <= fraction <= 1, f"fraction={fraction}; expected a share of the entries to drop, from 0 to 1.")
    return float(fraction)


def _check_schedule(every: int, start: int, end: int, average_over: int) -> None:
    require(every >= 1, f"every={every}; expected at least 1 step between rewirings.")
    require(start >= 0, f"start={start}; expected a step, at least 0.")
    require(end > start, f"a schedule that ends before it begins: start={start}, end={end}; expected end > start.")
    first = max(1, -(-start // every)) * every
    require(first <= end, f"no rewiring from step {start} to {end} with every={every}; expected end >= {first}.")
    require(1 <= average_over <= every, f"average_over={average_over}; expected 1 to every={every} steps.")


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, driven: dict[str, Wiring]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        f"{name}.{own}".lstrip(".")
        for name, wiring in driven.items()
        for own, p in wiring.named_parameters()
        if p.requires_grad and id(p) not in held
    ]
    strange = not held & set(map(id, model.parameters()))
    words = ", ".join(missing) if missing else f"any parameter of {type(model).__name__}"
    require(
        not missing and not strange,
        f"an optimizer that does not hold {words}; make it after the sparse layers, from model.parameters().",
    )
