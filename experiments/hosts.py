"""Every wiring in every host: does the wiring reach what the host does with its weight?

A small classifier of scikit-learn's digits (8 x 8 pixels, 1,438 for training and 359 for testing) has a dense stem,
one host and a dense head; see `experiments.hosts_nets` for their sizes. The host's weight is wired in seven ways, at
equal density in a host, and in an eighth: no entry at all, where nothing of the picture comes through and the
classes' frequencies are all that is left to learn. Same steps, optimizer and learning rates everywhere; Gaussian
tuples are rounded for good, and the others rewired for the last time, at two thirds of the run. Adaptive tuples look
at the picture. `gate` has as many entries as the others, drawn once, each with a value and a gate.

Seeds 100-102: every cell beats the empty wiring (10 %) by at least 72 points, the spreads are at most 2. From 82 %
(Gaussian, node graph in discrete time) to 97.6 % (adaptive, linear); where a host has room (a convolution, layers)
the wirings are within two points of one another. 18 minutes on one busy core.

Keys of `summary.json` besides the standard ones: `cells`, an object keyed `wiring/host`, with `accuracy` (on the test
images after the last step, rounded, mean over the seeds), `spread` (its standard deviation), `empty` (accuracy of
the same host with an empty wiring), `empty_spread`, `density` (entries stored over those admissible), `entries`,
`beats_empty` (whether the accuracies lie further apart than both spreads together), `accuracies` and `seconds` (per
net); and `all_beat_empty`.

`--evaluate FOLDER` judges the nets that the run in that folder has trained: `cells`, keyed as above, with `accuracy`
and `accuracies`.

Files: `hosts.md`, the table; `hosts.png`, the same as a heat map.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ash import GaussianWiring, Rewirer, parameter_groups
from ash.checks import positive, require
from ash.plot import heat_map
from experiments.data import Images, digits, standardise
from experiments.descent import Descent
from experiments.evaluation import read_run
from experiments.hosts_nets import DENSITIES, HOSTS, Net, wirings
from experiments.options import EvaluateOptions
from experiments.runs import Run

__all__ = ["Options", "run"]

WiringName = Literal["static", "gaussian", "hyper", "top_k", "set", "rigl", "gate"]
HostName = Literal[
    "linear", "conv", "node_graph_static", "node_graph_discrete", "node_graph_continuous", "layer_graph"
]
WIRINGS: tuple[WiringName, ...] = ("static", "gaussian", "hyper", "top_k", "set", "rigl", "gate")
HOST_NAMES: tuple[HostName, ...] = (
    "linear",
    "conv",
    "node_graph_static",
    "node_graph_discrete",
    "node_graph_continuous",
    "layer_graph",
)


@dataclass(kw_only=True)
class Options(EvaluateOptions):
    """Options of the table of hosts. --seed is the first of the seeds."""

    wiring: tuple[WiringName, ...] = WIRINGS
    """Rows of the table."""
    host: tuple[HostName, ...] = HOST_NAMES
    """Columns of the table."""
    seeds: int = 3
    """Nets of a cell."""
    steps: int = 100
    """Batches."""
    batch: int = 128
    """Pictures in a batch."""
    lr: float = 1e-2
    """Adam's learning rate of values, stem and head; one cosine takes it to 0."""
    mean_lr: float = 0.05
    """Step of the means, in units of a tuple's scale."""
    every: int = 10
    """Steps between rewirings."""
    fraction: float = 0.3
    """Share of the entries dropped in a rewiring, falling to 0."""


    may_change: ClassVar[frozenset[str]] = EvaluateOptions.may_change - {"steps"}
    """One cosine spans the run, so that another number of steps is another run."""

    @property
    def settled_at(self) -> int:
        """The step after which no entry moves."""
        return max(self.every, self.steps * 2 // 3)

    def resolved(self) -> Options:
        """The options with what depends on others decided. Raises `UserError` for impossible ones."""
        for name in ("seeds", "steps", "batch", "lr", "every"):
            positive(f"--{name.replace('_', '-')}", getattr(self, name))
        require(len(self.wiring) > 0 and len(self.host) > 0, "no wiring or no host; expected at least one of each.")
        require(self.every <= self.steps, f"--every {self.every} of --steps {self.steps}; expected a rewiring.")
        if not self.quick:
            return self
        few = dataclasses.replace(self, seeds=min(2, self.seeds), batch=min(32, self.batch))
        return dataclasses.replace(few, steps=min(6, self.steps), every=min(3, self.every))


def run(options: Options, run: Run) -> dict[str, object]:
    """Train every net of the table, draw, and return the figures; or judge those of an earlier run."""
    if options.evaluate is not None:
        return judge(options)
    names = [(host, wiring) for host in options.host for wiring in ("empty", *options.wiring)]
    jobs = [(host, wiring, seed) for host, wiring in names for seed in range(options.seeds)]
    saved = run.load()
    state: dict[str, Any] = {"done": [], "nets": []} if saved is None else saved[1]
    done = state["done"]
    bar = run.progress(len(jobs), "nets", len(done))
    images = standardise(digits())
    for host, wiring, seed in jobs[len(done) :]:
        begun = time.perf_counter()
        net, figures = train(options, images, host, wiring, options.seed + seed)
        state["nets"].append(net.state_dict())
        done.append(figures | {"host": host, "wiring": wiring, "seconds": time.perf_counter() - begun})
        run.log(len(done), host=host, wiring=wiring, seed=options.seed + seed, accuracy=figures["accuracy"])
        run.keep(len(done), partial(dict, state))
        bar.update(1)
    cells = table_of(done, options)
    run.path("hosts.md").write_text(markdown(cells, options), encoding="utf-8")
    shares = [[100 * cells[f"{wiring}/{host}"]["accuracy"] for host in options.host] for wiring in options.wiring]
    columns = [host.replace("_", " ") for host in options.host]
    heat_map(shares, options.wiring, columns, run.path("hosts.png"), form="{:.1f}", label="test accuracy, %")
    return {"cells": cells, "all_beat_empty": all(cell["beats_empty"] for cell in cells.values())}


def train(options: Options, images: Images, host: str, wiring: str, seed: int) -> tuple[Net, dict[str, Any]]:
    """One net from its first to its last batch, with its accuracy, and how many entries it stores of how many."""
    torch.manual_seed(seed)
    net = HOSTS[host](wirings(DENSITIES[host], options.settled_at)[wiring])
    optimizer = torch.optim.Adam(parameter_groups(net, options.lr, mean_lr=options.mean_lr, scale_lr=options.mean_lr))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    rewire = _rewiring(options, net, optimizer, seed)
    descent = Descent(net, optimizer)
    for step, (x, y) in enumerate(_batches(images, options)):
        if step == options.settled_at:
            freeze(net)
        descent.step(cross_entropy(net(x), y), step)
        schedule.step()
        rewire()
    entries, admissible = net.wiring.stored_entries(), net.wiring.admissible.count()
    return net, {"accuracy": accuracy(net, images), "entries": entries, "admissible": admissible}


@torch.no_grad()
def accuracy(net: Net, images: Images) -> float:
    """The share of the test images that a net tells right, as it is evaluated."""
    right = net.eval()(_pictures(images.test_x)).argmax(1) == images.test_y
    return float(right.double().mean())


def judge(options: Options) -> dict[str, object]:
    """The accuracies of the nets that the run of `--evaluate` has trained."""
    saved, images = read_run(options, "hosts"), standardise(digits())
    given = {name: saved.meta["options"][name] for name in ("steps", "every")}
    settled_at = Options(**given).settled_at
    found: dict[str, list[float]] = {}
    for each, state in zip(saved.state["done"], saved.state["nets"], strict=True):
        host, wiring = each["host"], each["wiring"]
        net = HOSTS[host](wirings(DENSITIES[host], settled_at)[wiring])
        net.load_state_dict(state)
        found.setdefault(f"{wiring}/{host}", []).append(accuracy(net, images))
    return {"cells": {name: {"accuracy": statistics.mean(own), "accuracies": own} for name, own in found.items()}}


def _pictures(x: Tensor) -> Tensor:
    return x.unsqueeze(1)


def _batches(images: Images, options: Options) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shuffled images, pass after pass."""
    x, y = _pictures(images.train_x), images.train_y
    each = max(1, len(x) // options.batch)
    for step in range(options.steps):
        if step % each == 0:
            order = torch.randperm(len(x))
        chosen = order[step % each * options.batch :][: options.batch]
        yield x[chosen], y[chosen]


def freeze(net: Net) -> None:
    """Round Gaussian tuples for good."""
    for module in net.modules():
        if isinstance(module, GaussianWiring):
            module.freeze()


def _rewiring(
    options: Options, net: Net, optimizer: torch.optim.Optimizer, seed: int
) -> Callable[[], object]:
    """What is called after every step."""
    end, fraction = options.settled_at, options.fraction
    return Rewirer(net, optimizer, every=options.every, end=end, fraction=fraction, explored=False, seed=seed).step


# --- the table ---------------------------------------------------------------------------------------


def table_of(done: Sequence[dict[str, Any]], options: Options) -> dict[str, dict[str, Any]]:
    """The cells, each beside the empty wiring of its host."""
    nets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in done:
        nets.setdefault((each["host"], each["wiring"]), []).append(each)
    return {
        f"{wiring}/{host}": cell(nets[host, wiring], nets[host, "empty"])
        for wiring in options.wiring
        for host in options.host
    }


def cell(nets: Sequence[dict[str, Any]], empty: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one wiring in one host, beside those of the empty wiring in that host."""
    (mean, spread), (nothing, own_spread) = (_mean([net["accuracy"] for net in each]) for each in (nets, empty))
    return {
        "accuracy": mean,
        "spread": spread,
        "empty": nothing,
        "empty_spread": own_spread,
        "density": nets[0]["entries"] / nets[0]["admissible"],
        "entries": nets[0]["entries"],
        "beats_empty": mean - nothing > spread + own_spread,
        "accuracies": [net["accuracy"] for net in nets],
        "seconds": round(statistics.mean(net["seconds"] for net in nets), 2),
    }


def _mean(figures: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(figures), statistics.stdev(figures) if len(figures) > 1 else 0.0


def markdown(cells: dict[str, dict[str, Any]], options: Options) -> str:
    """The table in Markdown: accuracy and spread in percent, those of the empty wiring in the last row."""
    lines = [f"| wiring | {' | '.join(host.replace('_', ' ') for host in options.host)} |"]
    lines.append("|---" * (1 + len(options.host)) + "|")
    for wiring in options.wiring:
        shown = [_shown(cells[f"{wiring}/{host}"], "accuracy", "spread") for host in options.host]
        lines.append(f"| {wiring} | {' | '.join(shown)} |")
    first = options.wiring[0]
    shown = [_shown(cells[f"{first}/{host}"], "empty", "empty_spread") for host in options.host]
    lines.append(f"| empty | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _shown(figures: dict[str, Any], mean: str, spread: str) -> str:
    return f"{100 * figures[mean]:.1f} ± {100 * figures[spread]:.1f}"
