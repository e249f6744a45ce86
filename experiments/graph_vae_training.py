"""Training a graph VAE, and judging it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ash import parameter_groups, reconstruction_loss
from ash.count import count
from experiments.descent import Descent
from experiments.graph_vae_code import GraphCode
from experiments.graph_vae_data import Graphs, Parts, classes
from experiments.graph_vae_density import Mixture, fit
from experiments.graph_vae_nets import GraphVAE, Shape, log_density, rate, sample
from experiments.graph_vae_scores import random_graphs, reconstruction_scores, sample_scores
from experiments.runs import restore, training_state

FITTED_TO = 10_000
"""Training graphs to whose codes a density is fitted, at most."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        steps, batch: batches, and graphs in each. lr, mean_lr: Adam's, and that of means in units of a tuple's scale;
            one cosine takes both to 0.
        beta_start, beta: weight of the rate in the loss, rising from the first to the second until `rise` of the run.
        freeze: share of the run after which Gaussian tuples are rounded for good.
        reconstruction: weight of the reconstruction terms of all sparse layers together.
    """

    steps: int = 3000
    batch: int = 256
    lr: float = 2e-3
    mean_lr: float = 0.1
    beta_start: float = 0.02
    beta: float = 0.3
    rise: float = 0.7
    freeze: float = 0.6
    reconstruction: float = 0.01

    def weight(self, step: int) -> float:
        """The weight of the rate at a step."""
        return self.beta_start + (self.beta - self.beta_start) * min(1.0, step / max(1.0, self.rise * self.steps))

    @property
    def freeze_at(self) -> int:
        """The step before which Gaussian tuples are rounded for good."""
        return round(self.freeze * self.steps)


class Trial:
    """One network in training.

    Args:
        code: of graphs as vectors. shape: of the network. recipe: how it is trained. parts: the graphs.
        seed: of its start and all that is drawn in its training.

    Attributes:
        step: batches that are done.
    """

    def __init__(self, code: GraphCode, shape: Shape, recipe: Recipe, parts: Parts, seed: int):
        torch.manual_seed(seed)
        self.code, self.recipe, self.parts, self.step = code, recipe, parts, 0
        self.net = GraphVAE(code, shape)
        self.terms = shape.reconstruct and shape.wiring != "dense"
        groups = parameter_groups(self.net, recipe.lr, mean_lr=recipe.mean_lr)
        self.optimizer = torch.optim.Adam(groups)
        self.descent = Descent(self.net, self.optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.vectors = code.vectors(parts.train)

    def train_step(self) -> dict[str, float]:
        """One batch; what it cost in nats for each graph."""
        self._set_rates()
        chosen = torch.randint(len(self.vectors), (self.recipe.batch,))
        graphs = self.parts.train.select(chosen)
        mean, log = self.net.encode(self.vectors[chosen])
        likelihood = self.code.log_likelihood(self.net.decode(sample(mean, log)), graphs)
        rates = rate(mean, log)
        loss = (self.recipe.weight(self.step) * rates - likelihood).sum() / graphs.nodes.sum()
        if self.terms:
            loss = loss + self.recipe.reconstruction * reconstruction_loss(self.net)
        self.descent.step(loss, self.step)
        self.step += 1
        return {"rate": float(rates.detach().mean()), "distortion": -float(likelihood.detach().mean())}

    def _set_rates(self) -> None:
        recipe = self.recipe
        if self.step == recipe.freeze_at:
            self.net.freeze()
        factor = 0.5 * (1 + math.cos(math.pi * self.step / recipe.steps))
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * factor

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"step": self.step, **training_state(self.net, self.optimizer)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        restore({name: part for name, part in state.items() if name != "step"}, self.net, self.optimizer)
        self.step = int(state["step"])
        if self.step > self.recipe.freeze_at:
            self.net.freeze()


# --- judging -------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(net: GraphVAE, graphs: Graphs, sampled: bool = False) -> Graphs:
    """The likeliest graph of each one's mean code, or of a code that is drawn."""
    mean, log = net.eval().encode(net.code.vectors(graphs))
    return net.code.most_likely(net.decode(sample(mean, log) if sampled else mean))


@torch.no_grad()
def progress(trial: Trial) -> dict[str, float]:
    """F1 on the validation graphs; nothing is drawn."""
    found = reconstruct(trial.net, trial.parts.validation)
    trial.net.train()
    return {"validation_f1": reconstruction_scores(found, trial.parts.validation)["f1"]}


@torch.no_grad()
def density_of(net: GraphVAE, graphs: Graphs, components: int) -> Mixture:
    """A mixture fitted to one code of each of the graphs."""
    return fit(sample(*net.eval().encode(net.code.vectors(graphs.select(slice(FITTED_TO))))), components)


@torch.no_grad()
def generate(net: GraphVAE, codes: Float[Tensor, "b latent"]) -> Graphs:
    """A graph drawn from what each code is decoded to."""
    return net.code.draw(net.eval().decode(codes))


@torch.no_grad()
def bounds(net: GraphVAE, graphs: Graphs, density: Mixture) -> dict[str, float]:
    """Evidence lower bounds in nats for each graph, by one code of each: with the prior, with a fitted density."""
    mean, log = net.eval().encode(net.code.vectors(graphs))
    z = sample(mean, log)
    likelihood = net.code.log_likelihood(net.decode(z), graphs)
    fitted = density.log_density(z) - log_density(z, mean, log)
    rates = rate(mean, log)
    return {
        "elbo": float((likelihood - rates).mean()),
        "elbo_fitted": float((likelihood + fitted).mean()),
        "rate": float(rates.mean()),
        "distortion": -float(likelihood.mean()),
    }


Judged = tuple[dict[str, Any], dict[str, Graphs]]


def judge(net: GraphVAE, parts: Parts, components: int, count_of: int) -> Judged:
    """All figures of a trained network, and the sets of graphs that stand beside the test graphs, by name.

    Args:
        components: of the density that is fitted to the codes. count_of: graphs in each set.
    """
    density = density_of(net, parts.train, components)
    test, latent = parts.test, net.shape.latent
    shown = {
        "prior": generate(net, torch.randn(count_of, latent)),
        "fitted": generate(net, density.draw(count_of)),
        "train": parts.train.select(slice(count_of)),
        "random": random_graphs(test.select(torch.arange(count_of) % len(test.nodes))),
    }
    known = frozenset(classes(parts.train))
    found = reconstruction_scores(reconstruct(net, test), test)
    noisy = reconstruction_scores(reconstruct(net, test, sampled=True), test)
    return {
        **found,
        "f1_sampled": noisy["f1"],
        "exact_sampled": noisy["exact"],
        **bounds(net, test, density),
        "samples": {name: sample_scores(graphs, test, known) for name, graphs in shown.items()},
        "stored_numbers": count(net).stored_numbers,
    }, shown
