"""Learning to sort with one adaptive layer: the loss, the training, the judging, the pictures of one run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ash import plot
from ash.contract import contract
from ash.layers.linear import SparseLayer
from ash.sampling import Sampling
from ash.schedules import Anneal
from ash.template import Template
from ash.wirings.hyper import HyperWiring
from experiments.descent import Descent
from experiments.frames import packed, take_up
from experiments.runs import Run, restore, training_state
from experiments.sort_options import Options
from experiments.sort_pictures import show
from experiments.sorters import make_hypernetwork

FRESH = 10_000
"""Vectors on which a sorter is judged at the end."""
SHOWN = 4
"""Vectors whose tuples the pictures follow."""
WARM_UP = 50
JUDGED = 1000
BLOCK = 1000


def make_layer(options: Options) -> SparseLayer:
    """One adaptive layer from n numbers to n: n tuples per vector, their values ones."""
    n = options.size
    assert options.means is not None and options.steps is not None and options.scale_start is not None
    makers = {"inputs": Template.per_input, "outputs": Template.per_output}
    template = makers[options.template]((n,), (n,), 1) if options.template in makers else None
    falling = Anneal(options.scale_start, options.scale_end, max(1, round(0.8 * options.steps)))
    wiring = HyperWiring(
        n,
        n,
        n,
        hypernetwork=make_hypernetwork(options),
        kernel=options.kernel,
        sampling=Sampling(True, options.global_samples, options.local_samples),
        template=template,
        values="ones",
        scales=options.scales,
        means=options.means,
        scale=falling if options.scales == "scheduled" else options.scale_start,
        scale_floor=options.scale_end,
        positions=_positions(options),
    )
    return SparseLayer(n, n, bias=False, wiring=wiring)


def _positions(options: Options) -> Tensor | None:
    """Where the means start: in the middle of the learned column; where both are learned, at one input each.

    Means that start at different outputs do worse: a tuple that starts low moves over to whichever input is low,
    and the assignment of tuples to inputs then has boundaries of its own, on which rounding fails.
    """
    n = options.size
    if options.template == "none":
        return torch.stack([torch.full((n,), (n - 1) / 2), torch.arange(n)], 1)
    if options.template == "outputs":
        return torch.zeros(n, 1) if options.hypernetwork != "mlp" else torch.full((n, 1), (n - 1) / 2)
    return torch.full((n if options.hypernetwork == "mlp" else 1, 1), (n - 1) / 2)


def make_optimizer(layer: nn.Module, options: Options) -> torch.optim.Adam:
    """Adam with a group for the log steepness, which takes larger steps."""
    named = list(layer.named_parameters())
    gains = [p for name, p in named if name.endswith("log_gain")]
    rest = [p for name, p in named if not name.endswith("log_gain")]
    groups: list[dict[str, Any]] = [{"params": rest, "rate": 1.0}, {"params": gains, "rate": options.gain_rate}]
    return torch.optim.Adam([g for g in groups if g["params"]], lr=options.learning_rate, betas=(0.9, 0.99))


def channels(x: Float[Tensor, "b n"], frequencies: Sequence[float]) -> Float[Tensor, "b n e"]:
    """x, and sin ωx and cos ωx for each ω."""
    return torch.stack([x, *(f(w * x) for w in frequencies for f in (torch.sin, torch.cos))], -1)


def nearest_gaps(ordered: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """How far each of the sorted numbers is from the nearest other one."""
    gaps, none = ordered.diff(dim=1), ordered.new_full((len(ordered), 1), math.inf)
    return torch.minimum(torch.cat([gaps, none], 1), torch.cat([none, gaps], 1))


def sorting_loss(layer: SparseLayer, x: Float[Tensor, "b n"], options: Options) -> Float[Tensor, ""]:
    """Mean absolute error of W^T · sort(x) against x, of W · x against sort(x), or both, in units of the gaps.

    Only the sorted vector supervises. Where two numbers all but tie, exchanging them hardly changes the output:
    measured in units of their gap, such a mistake counts as much as any other.
    """
    assert options.channels is not None
    ordered, order = x.sort(1)
    weight = layer.wiring(x)
    given, wanted = channels(x, options.channels), channels(ordered, options.channels)
    unit = (nearest_gaps(ordered) + options.gap_floor) if options.gap_floor else torch.ones_like(x)
    total = x.new_zeros(())
    if options.loss in ("forward", "both"):
        error = (contract(weight, given) - wanted).abs().mean(-1)
        total = total + (error / unit).mean()
    if options.loss in ("reverse", "both"):
        error = (contract(weight.transpose(), wanted) - given).abs().mean(-1)
        total = total + (error / torch.empty_like(unit).scatter(1, order, unit)).mean()
    return total


def is_sorting(dense: Float[Tensor, "b n n"], x: Float[Tensor, "b n"]) -> Bool[Tensor, " b"]:
    """Whether each matrix is x's sorting permutation, to within less than half in every entry."""
    truth = torch.zeros_like(dense).scatter_(2, x.argsort(1).unsqueeze(-1), 1.0)
    return ((dense - truth).abs() < 0.5).flatten(1).all(1)


@torch.no_grad()
def judge(layer: SparseLayer, x: Float[Tensor, "b n"]) -> dict[str, float]:
    """`exact` and `mse` of the rounded network, and of the one that is sampled in training, on x."""
    sums = dict.fromkeys(("exact", "exact_sampled", "mse_rounded", "mse_sampled"), 0.0)
    was = layer.training
    for part in x.split(BLOCK):
        ordered = part.sort(1).values
        for training, exact, mse in ((False, "exact", "mse_rounded"), (True, "exact_sampled", "mse_sampled")):
            weight = layer.train(training).wiring(part)
            sums[exact] += float(is_sorting(weight.to_dense(), part).sum())
            sums[mse] += float((contract(weight, part) - ordered).square().mean(1).sum())
    layer.train(was)
    return {name: total / len(x) for name, total in sums.items()}


class Sorter:
    """One adaptive layer that learns to sort, and what is recorded on the way.

    Args:
        options: resolved.
        device: where to compute.
    """

    def __init__(self, options: Options, device: torch.device):
        assert options.steps is not None and options.batch is not None
        self.options, self.steps, self.batch, self.device = options, options.steps, options.batch, device
        self.layer = make_layer(options).to(device)
        assert isinstance(self.layer.wiring, HyperWiring)
        self.wiring: HyperWiring = self.layer.wiring
        self.optimizer = make_optimizer(self.layer, options)
        self.descent = Descent(self.layer, self.optimizer)
        self.validation = torch.rand(JUDGED, options.size, device=device)
        self.shown = torch.rand(SHOWN, options.size, device=device)
        self.histories = [plot.History(60, keep=options.frames) for _ in range(SHOWN)]
        self.curve: list[dict[str, float]] = []
        self.before = 0.0

    def train(self, run: Run) -> None:
        """Train for all steps, or those after the checkpoint."""
        start = self._resume(run)
        bar = run.progress(self.steps, "sort", start)
        began, before = time.perf_counter(), self.before
        every = max(1, self.steps // (8 if self.options.quick else 40))
        for step in range(start, self.steps + 1):
            if step > start or not start:  # a checkpoint holds what was recorded at its own step
                self._record(run, step, every)
            self.before = before + time.perf_counter() - began
            if step == self.steps:
                break
            if step > start:
                run.keep(step, self.state, due=step % (10 * every) == 0)
            self.train_step(step)
            bar.update(1)

    def train_step(self, step: int) -> None:
        """One batch."""
        rate = 0.5 * self.options.learning_rate * (1 + math.cos(math.pi * step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * rate * min(1.0, (step + 1) / WARM_UP)
        x = torch.rand(self.batch, self.options.size, device=self.device)
        loss = sorting_loss(self.layer, x, self.options)
        self.descent.step(loss, step)

    @torch.no_grad()
    def _record(self, run: Run, step: int, every: int) -> None:
        if step % every == 0 or step == self.steps or step in self.options.frames:
            for x, history in zip(self.shown, self.histories, strict=True):
                history.add(plot.frame_of(self.wiring, step, x=x))
        if step % every == 0 or step == self.steps:
            with torch.random.fork_rng():
                figures = judge(self.layer, self.validation)
            self.curve.append({"step": step, **figures})
            run.log(step, **figures)
            run.time(step)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, pictures included."""
        shown = [packed(history) for history in self.histories]
        data = {"validation": self.validation, "shown": self.shown}
        training = training_state(self.layer, self.optimizer)
        return {"training": training, "frames": shown, "curve": self.curve, "seconds": self.before, "data": data}

    def _resume(self, run: Run) -> int:
        saved = run.load()
        if saved is None:
            return 0
        step, state = saved
        self.curve, self.before = list(state["curve"]), state["seconds"]
        self.validation.copy_(state["data"]["validation"])
        self.shown.copy_(state["data"]["shown"])
        for history, shown in zip(self.histories, state["frames"], strict=True):
            take_up(history, shown)
        restore(state["training"], self.layer, self.optimizer)
        return int(step)

    def summary(self) -> dict[str, object]:
        """The final figures, on fresh vectors."""
        fresh = torch.rand(FRESH, self.options.size, device=self.device)
        report = self.wiring.size_report()
        return {
            "size": self.options.size,
            **judge(self.layer.eval(), fresh),
            "hypernetwork_parameters": report.hypernetwork,
            "offset_parameters": report.offset,
            "stored_numbers": report.hypernetwork + report.offset,
            "emitted_numbers": report.emitted,
            "training_seconds": round(self.before, 3),
        }

    def draw(self, run: Run) -> None:
        """The pictures: means of four vectors at several steps, animations, errors over time."""
        show(run, self.histories, self.permutations(), self.curve, self.options.frames)

    def permutations(self) -> list[Int64[Tensor, "n 2"]]:
        """Of each vector that is shown: the entries (output, input) of its sorting permutation."""
        order = self.shown.argsort(1).cpu()
        return [torch.stack([torch.arange(len(places)), places], 1) for places in order]
