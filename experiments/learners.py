"""Ways to learn a sparse matrix from examples: index tuples, and two baselines beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ash import Anneal, Context, Factors, GaussianWiring, Rescue, Sampling, SparseLayer, SparseWeight, clear_state, plot
from ash.contract import contract
from ash.pattern import ravel, unravel
from experiments.descent import Descent
from experiments.identity_options import Options
from experiments.runs import restore, training_state

MOVES = 0.05
"""Share of the tuples that a rescue may move in a run where values are fixed."""


class Learner(ABC):
    """Learns a matrix `(n, n)` from pairs (x, T x), both `(b, n)`.

    `moves` counts the tuples moved by anything but the gradient of their means.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    learned_values: bool
    moves = 0
    merged = 0

    @abstractmethod
    def train_step(self, x: Tensor, y: Tensor, step: int) -> None:
        """Required. Learn from one batch."""

    @abstractmethod
    def indices(self) -> Tensor:
        """Required. The entries of the rounded network, `(k, 2)`."""

    @abstractmethod
    def rounded(self, x: Tensor) -> Tensor:
        """Required. The output of the rounded network, `(b, n)`."""

    @abstractmethod
    def frame(self, step: int) -> plot.Frame:
        """Required. The tuples, for a picture."""

    def sampled(self, x: Tensor) -> Tensor:
        """The output of the network as it is sampled in training; by default it is the rounded one."""
        return self.rounded(x)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**training_state(self.module, self.optimizer), "moves": self.moves, "merged": self.merged}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        own = {name: value for name, value in state.items() if name not in ("moves", "merged")}
        self.moves, self.merged = state["moves"], state["merged"]
        restore(own, self.module, self.optimizer)


class Tuples(Learner):
    """Index tuples in a `SparseLayer`, trained by Adam; with learned values a `Rescue` now and then."""

    def __init__(self, options: Options, shape: tuple[int, int], device: torch.device):
        n = max(shape)
        self.learned_values = options.values == "learned"
        ceiling = Anneal(max(1.0, n / 2), 1.0, options.ceiling_steps) if options.ceiling_steps else max(1.0, n / 2)
        self.wiring = GaussianWiring(
            *shape,
            options.k,
            kernel=options.kernel,
            context=Context(options.context, options.chunk_size),
            sampling=Sampling(
                global_samples=options.global_samples,
                local_samples=options.local_samples,
                guided_samples=options.guided_samples,
                kept_samples=options.kept_samples,
            ),
            values=options.values or "ones",
            value_std=1.0 if self.learned_values else None,
            scale=options.scale,
            scale_floor=options.scale_floor or 0.3,
            scale_ceiling=ceiling,
            scale_decay=options.scale_decay or 0.0,
            means=options.means,
            subset=options.subset,
            device=device,
        )
        self.module = self.layer = SparseLayer(shape[1], shape[0], bias=False, wiring=self.wiring)
        groups = [
            {"params": [self.wiring.means.offset], "lr": options.mean_lr},
            {"params": [self.wiring.log_scale], "lr": options.scale_lr},
        ]
        if self.learned_values:
            groups.append({"params": [self.wiring.values], "lr": options.value_lr})
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
        self.descent = Descent(self.module, self.optimizer)
        self.rescue, self.every = Rescue(), options.rescue_every or 0

    def train_step(self, x: Tensor, y: Tensor, step: int) -> None:
        loss = (self.layer(x) - y).square().sum(-1).mean()
        self.descent.step(loss, step)
        if self.every and step % self.every == self.every - 1:
            self._rescue(x, y)

    @torch.no_grad()
    def _rescue(self, x: Tensor, y: Tensor) -> None:
        gradient = (self.rounded(x) - y) * (2 / len(x))
        left = max(0.0, MOVES - self.moves / self.wiring.k)
        rescue = replace(self.rescue, most=min(self.rescue.most, left))
        report = self.wiring.rewire(Factors(x, gradient), rescue)
        clear_state(self.optimizer, self.wiring, report.moved)  # type: ignore[arg-type]
        self.moves, self.merged = self.moves + report.moves, self.merged + report.merged

    def indices(self) -> Tensor:
        return self.wiring.rounded_indices()

    def rounded(self, x: Tensor) -> Tensor:
        return contract(self.wiring.rounded(), x)

    def sampled(self, x: Tensor) -> Tensor:
        return contract(self.wiring(x), x)

    def frame(self, step: int) -> plot.Frame:
        return plot.frame_of(self.wiring, step)


class Greedy(Learner):
    """Drop and grow on the gradient, without Gaussians: entries are swapped as long as a swap pays.

    For a squared error and x ~ N(0, 1), with R the negative half gradient: taking the value v off an entry costs
    2 v R + v²; giving an empty entry its best value R gains R², or 2 R − 1 where values are ones. This is greedy
    selection (orthogonal matching pursuit; RigL with the full gradient), the fair baseline to the tuples.
    """

    every = 10

    def __init__(self, options: Options, shape: tuple[int, int], device: torch.device):
        self.shape, self.learned_values = shape, options.values == "learned"
        ids = torch.randperm(shape[0] * shape[1], device=device)[: options.k]
        self.module = nn.Module()
        self.module.register_buffer("ids", ids)
        start = torch.zeros(len(ids), device=device) if self.learned_values else torch.ones(len(ids), device=device)
        self.values = nn.Parameter(start, requires_grad=self.learned_values)
        self.module.register_parameter("values", self.values)
        if self.learned_values:
            self.optimizer = torch.optim.Adam([self.values], lr=options.value_lr, betas=(0.9, 0.98))

    @property
    def weight(self) -> SparseWeight:
        """The entries as they stand."""
        return SparseWeight(self.indices(), self.values, self.shape[:1], self.shape[1:])

    def train_step(self, x: Tensor, y: Tensor, step: int) -> None:
        if self.optimizer is not None:
            loss = (contract(self.weight, x) - y).square().sum(-1).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        if step % self.every == self.every - 1:
            self._swap(x, y)

    @torch.no_grad()
    def _swap(self, x: Tensor, y: Tensor) -> None:
        factors = Factors(x, (self.rounded(x) - y) / len(x))
        values = self.values
        cost = 2 * values * -factors.at(self.indices()) + values.square()
        by = "largest" if self.learned_values else "negative"
        entries, gradient = factors.top(len(values), exclude=self._ids, by=by)
        gain = gradient.square() if self.learned_values else -2 * gradient - 1
        worst = cost.argsort()[: len(entries)]
        pays = gain.sort(descending=True).values > cost[worst] + 0.1
        moved, new = worst[pays], entries[gain.argsort(descending=True)[pays]]
        self._ids[moved] = ravel(new, self.shape)
        self.moves += len(moved)
        if self.optimizer is not None:
            values[moved] = 0.0
            clear_state(self.optimizer, self.module, moved)

    @property
    def _ids(self) -> Tensor:
        return self.module.get_buffer("ids")

    def indices(self) -> Tensor:
        return unravel(self._ids, self.shape)

    def rounded(self, x: Tensor) -> Tensor:
        return contract(self.weight, x)

    def frame(self, step: int) -> plot.Frame:
        entries = self.indices()
        return plot.Frame(step, entries.double(), torch.zeros_like(entries), self.values.detach(), None, self.shape)


class Reinforce(Learner):
    """The score function: every vector of the batch draws an entry for each tuple from its Gaussian.

    The reward of a vector is its negative squared error, against the batch's mean as a baseline. The blog calls
    this way slow and hard to train; it is here to be seen beside the others. Source: Schulman et al. 2015.
    """

    learned_values = False

    def __init__(self, options: Options, shape: tuple[int, int], device: torch.device):
        self.shape, k = shape, int(options.k or 1)
        self.module = nn.Module()
        self.top = torch.tensor(shape, device=device) - 1
        self.means = nn.Parameter(torch.rand(k, 2, device=device) * self.top)
        self.log_scale = nn.Parameter(torch.full((k, 1), max(shape) / 8, device=device).log())
        self.module.register_parameter("means", self.means)
        self.module.register_parameter("log_scale", self.log_scale)
        groups = [{"params": [self.means], "lr": options.mean_lr}, {"params": [self.log_scale], "lr": 0.003}]
        self.optimizer = torch.optim.Adam(groups)

    def _draw(self, b: int) -> tuple[SparseWeight, Tensor]:
        """A weight per vector, and the log density of its draws, `(b, k)`."""
        normal = torch.distributions.Normal(self.means, self.log_scale.exp())
        where = normal.sample((b,))
        entries = torch.minimum(where.round().long().clamp(min=0), self.top)
        values = torch.ones(b, len(self.means), device=entries.device)
        return SparseWeight(entries, values, self.shape[:1], self.shape[1:]), normal.log_prob(where).sum(-1)

    def train_step(self, x: Tensor, y: Tensor, step: int) -> None:
        weight, density = self._draw(len(x))
        loss = (contract(weight, x) - y).square().sum(-1)
        advantage = loss - loss.mean()
        objective = (advantage.unsqueeze(-1) * density).mean()
        self.optimizer.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        objective.backward()
        self.optimizer.step()  # type: ignore[union-attr]
        with torch.no_grad():
            self.means.copy_(torch.minimum(self.means.clamp(min=0), self.top))
            self.log_scale.clamp_(min=-1.2)

    def indices(self) -> Tensor:
        return torch.minimum(self.means.detach().round().long().clamp(min=0), self.top)

    def rounded(self, x: Tensor) -> Tensor:
        ones = torch.ones(len(self.means), device=x.device)
        return contract(SparseWeight(self.indices(), ones, self.shape[:1], self.shape[1:]), x)

    def sampled(self, x: Tensor) -> Tensor:
        return contract(self._draw(len(x))[0], x)

    def frame(self, step: int) -> plot.Frame:
        scales = self.log_scale.detach().exp().expand(-1, 2)
        return plot.Frame(step, self.means.detach(), scales, torch.ones(len(scales)), None, self.shape)


METHODS = {"ash": Tuples, "greedy": Greedy, "reinforce": Reinforce}


def make_learner(options: Options, shape: tuple[int, ...], device: torch.device) -> Learner:
    """The learner of `options.method` for a matrix of `shape`."""
    return METHODS[options.method](options, (shape[0], shape[1]), device)  # type: ignore[abstract]
