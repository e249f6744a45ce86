"""Personalised PageRank by one adaptive layer, unrolled: where a walker from a seed node is found.

The state is a number for every node, at first 1 at the seed. In each of ten steps the layer's input holds the number
of u at every edge (u, v); its wiring has looked at every edge and says to which node that number goes (a pointer: u,
v or one of two further neighbours of v; it starts at u) and with what weight; the restart, one learned number, is
added at the seed. The ten steps share one weight, made once for a graph. Nothing says that an edge leads to its end,
that the weight is 0.85 over the degree of u, or that the restart is 0.15: the loss is the L1 distance of the last
state from the exact ranks, summed over the nodes. What is emitted of a value is its logarithm, so that one of
log(1 + degree) that is close to linear serves hubs larger than those seen.

Every graph has several seeds, each a channel of the input; the wiring, which sees degrees alone, serves all. Graphs
are of three families in turn (`experiments.graph_data`). Isolated corners are no seeds: more than ten other nodes can
be reached from each. `experiments.graph_ranks` has the exact solution, the agreement and how it treats ties.

Seeds 100 to 102 (`python -m experiments graphs --task pagerank --seed 100`): `overlap` 0.972, 0.970 and 0.964, on
512 nodes 0.973, 0.973 and 0.971, on the three real graphs 0.95 to 0.99, with 1,381 numbers learned in 17 to 27 seconds
each. Exact power iteration of ten steps, which knows the rule, has
0.982, 0.975 and 0.974, so that most of what is missing is what ten steps cannot see; neighbours by degree have 0.57 to
0.59, degree alone 0.31; layers with a fixed weight (`--baselines`, seed 100) 0.16 dense and 0.14 with Gaussian tuples.
Every pointer is found (`pointed` 1.0), `restart` is 0.147 to 0.148, `value_error` 0.024 to 0.026: values are worst at
degree 1 and for hubs larger than those of the training graphs. With the value emitted as it is, not as a logarithm, a
first version had 0.87 on seed 0, where one with the logarithm had 0.95 (eight steps each). Pointers that are spread
evenly rank fairly well already: the network as made has 0.73 sampled, but 0.08 rounded (two batches, seed 0).

Keys of summary.json:
- `overlap`: the mean share of the true first ten nodes that is among the predicted first ten, seeds left out of both,
  on held-out graphs, the network rounded; `overlap_sampled` is that of the network as trained. `f1`, `precision` and
  `recall` are the same number, as both sets have ten nodes; `overlap_with_seed` counts the seed, which any method
  finds; `overlap_larger` is on graphs four times as large; `overlap_real` on three real graphs, by name.
- `baselines`: the same for `degree` (nodes by degree), `neighbours` (those of the seed first, by degree) and `power`
  (as many steps of exact power iteration), each with `overlap`, `overlap_with_seed`, `overlap_larger`, `overlap_real`.
- `--baselines` trains two layers more whose weight is the same for every graph, `dense` and `gaussian` (see
  `experiments.graph_rank_baselines`); their `overlap_larger` and `overlap_real` are null: they cannot be applied, and
  they have `stored_numbers`.
- `l1`, the loss on held-out graphs, and `l1_power`; `restart`, the learned one; `pointed`, the share of edges whose
  number goes to their end; `value_error`, the mean of |value · degree / 0.85 - 1|.
- `stored_numbers`, all that the model learns; `training_seconds`.

Pictures: `top.png` (a held-out graph of each family and a real one, the first ten nodes by agreement), `values.png`
(emitted against wanted values, by degree), `overlap.png` (validation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import networkx
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash import Anneal, EdgeHypernetwork, EdgeWiring, SparseBatch
from ash.checks import positive, require
from ash.plot import curves
from experiments import graph_rank_baselines as fixed_layers
from experiments import graph_ranks as ranks
from experiments.graph_data import make, real_graphs, split, to_batch, unlabelled
from experiments.graph_learning import Learner, load_trained, stored_numbers
from experiments.graph_pictures import Panel, draw
from experiments.runs import Run

__all__ = ["Options", "resolved", "run"]

LARGER = 4


@dataclass(kw_only=True)
class Options:
    """Options of PageRank."""

    unrolled: int = 10
    """Steps of a walker, each the same layer."""
    neighbours: int = 2
    """Neighbours of v to which the number at an edge (u, v) could be sent, besides u and v."""
    hidden: int = 32
    """Units of each of the two hidden layers of the hypernetwork."""
    train_graphs: int = 300
    """Graphs to learn from."""
    test_graphs: int = 60
    """Held-out graphs; half as many for validation, a fifth as many larger ones."""
    batch: int = 6
    """Graphs in a batch."""
    seeds: int = 4
    """Seed nodes of each graph."""
    lr: float = 0.01
    """Learning rate at its height."""
    baseline_steps: int = 400
    """Batches for each layer of `--baselines`."""


def resolved(options: Any) -> Any:
    """All options with this task's own nodes and steps. Raises `UserError` for impossible ones."""
    own: Options = options.pagerank
    for field in dataclasses.fields(own):
        flag = f"--pagerank.{field.name.replace('_', '-')}"
        positive(flag, getattr(own, field.name), zero=field.name == "neighbours")
    chosen = dataclasses.replace(options, nodes=options.nodes or 128, steps=options.steps or 600)
    require(chosen.nodes > 2 * ranks.TOP, f"--nodes {chosen.nodes}; expected more than {2 * ranks.TOP}.")
    if not options.quick:
        return chosen
    few = dataclasses.replace(own, train_graphs=6, test_graphs=6, batch=3, seeds=2, unrolled=min(4, own.unrolled),
                              baseline_steps=2)  # fmt: skip
    return dataclasses.replace(chosen, pagerank=few, steps=min(8, chosen.steps), nodes=min(32, chosen.nodes))


# --- the model -------------------------------------------------------------------------------------------


class LogValues(EdgeHypernetwork):
    """An `EdgeHypernetwork` whose last number, the value, is given as a logarithm, which starts at -2."""

    start = -2.0

    def forward(self, features: Tensor, instance: Tensor, b: int) -> Float[Tensor, "s t width"]:
        raw: Tensor = super().forward(features, instance, b)
        # The wiring adds an offset that starts at 1.
        return torch.cat([raw[..., :-1], torch.expm1(raw[..., -1:] + self.start)], -1)


class Walk(nn.Module):
    """Unrolled steps of one adaptive layer, and a restart.

    Args:
        options: of the task. falling: optimizer steps within which the scale of the pointers falls.
    """

    def __init__(self, options: Options, falling: int = 300):
        super().__init__()
        self.unrolled = options.unrolled
        self.wiring = EdgeWiring(
            partial(LogValues, hidden=(options.hidden, options.hidden)),
            out_rank=1,
            neighbours=options.neighbours,
            scale=Anneal(2.0, 0.1, max(1, falling)),
            positions=torch.zeros(1, 1),
        )
        self.restart = nn.Parameter(torch.tensor(0.5))

    def forward(self, graphs: SparseBatch, seeds: Int64[Tensor, "b c"]) -> Float[Tensor, "nodes c"]:
        """The state after the last step, for every node of the batch and every seed of its graph."""
        weight, (source, _) = self.wiring(graphs), ranks.ends(graphs)
        first, start = ranks.first_nodes(graphs), ranks.one_hot(graphs, seeds)
        state = start
        for _ in range(self.unrolled):
            sent = weight.contract(graphs.with_values(state[source]), coalesce=False)  # index_add adds up
            place = sent.indices[:, 0] + first[sent.instance]
            state = (self.restart * start).index_add(0, place, sent.values)
        return state


# --- data and figures ------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Graphs with seeds and the exact ranks."""

    graphs: SparseBatch
    seeds: Tensor
    ranks: Tensor

    def to(self, device: torch.device) -> Case:
        return Case(self.graphs.to(device), self.seeds.to(device), self.ranks.to(device))


def case(graphs: Sequence[networkx.Graph[int]], seeds: int, generator: torch.Generator | None = None) -> Case:
    """The graphs as a batch, so many seeds of each, and the ranks."""
    batch = to_batch(graphs)
    drawn = ranks.draw_seeds(batch, seeds, generator)
    return Case(batch, drawn, ranks.personalised(batch, drawn).float())


class Task:
    """The graphs of a run: those to train on, and cases to judge by."""

    def __init__(self, options: Any):
        own, seed = options.pagerank, options.seed
        links, count = 2 * options.nodes, own.test_graphs
        parts = split("mixed", (own.train_graphs, max(3, count // 2), count), options.nodes, links, seed)
        more = np.random.default_rng([seed, LARGER])
        larger = make("mixed", max(3, count // 5), LARGER * options.nodes, LARGER * links, more)
        generator = torch.Generator().manual_seed(seed)
        self.options, self.train, self.shown = own, parts.train, parts.test[:3]
        self.validation = case(parts.validation, own.seeds, generator)
        self.cases = {"test": case(parts.test, own.seeds, generator), "larger": case(larger, own.seeds, generator)}
        self.real = {name: case([graph], 10, generator) for name, graph in real_graphs().items()}

    def batch(self) -> Case:
        """Some training graphs with fresh seeds, by torch's default generator."""
        chosen = torch.randint(len(self.train), (self.options.batch,)).tolist()
        return case([self.train[i] for i in chosen], self.options.seeds)


def distance(state: Float[Tensor, "nodes c"], each: Case) -> Float[Tensor, ""]:
    """The L1 distance from the ranks, summed over nodes, mean over graphs and seeds."""
    return (state - each.ranks).abs().sum() / each.seeds.numel()


Scorer = Callable[[SparseBatch, Tensor], Tensor]


def by_network(model: Walk) -> Scorer:
    """The last state as a score; computed where the model is, given on the CPU."""
    device = model.restart.device
    return lambda graphs, seeds: model(graphs.to(device), seeds.to(device)).cpu()


def agreement(scorer: Scorer, each: Case, with_seed: bool = False) -> float:
    """The mean overlap of the first ten."""
    return float(ranks.overlaps(*each[:2], scorer(*each[:2]), each.ranks, with_seed).mean())


def judge(scorer: Scorer, task: Task) -> dict[str, Any]:
    """The overlaps of anything that gives nodes scores."""
    return {
        "overlap": agreement(scorer, task.cases["test"]),
        "overlap_with_seed": agreement(scorer, task.cases["test"], True),
        "overlap_larger": agreement(scorer, task.cases["larger"]),
        "overlap_real": {name: agreement(scorer, each) for name, each in task.real.items()},
    }


@torch.no_grad()
def figures(model: Walk, task: Task) -> dict[str, Any]:
    """The figures of a trained model."""
    test, power = task.cases["test"], partial(ranks.power_iteration, steps=model.unrolled)
    sampled = agreement(by_network(model.train()), test)
    network = by_network(model.eval())
    found = judge(network, task)
    beside: dict[str, Scorer] = {**ranks.BASELINES, "power": power}
    known = {name: judge(each, task) for name, each in beside.items()}
    return {
        **found,
        "overlap_sampled": sampled,
        **dict.fromkeys(("f1", "precision", "recall"), found["overlap"]),
        "baselines": known,
        "l1": float(distance(network(*test[:2]), test)),
        "l1_power": float(distance(power(*test[:2]), test)),
        "restart": float(model.restart),
        **rules(model, test.graphs),
        "stored_numbers": stored_numbers(model),
    }


def emitted(model: Walk, graphs: SparseBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Of every entry of the rounded weight: whether it goes to its edge's end, its value, the degree of its start."""
    weight = model.eval().wiring(graphs.to(model.restart.device))
    source = weight.source.cpu()
    aimed = weight.indices[:, 0].cpu() == graphs.indices[source, 1]
    return aimed, weight.values.cpu(), ranks.degrees(graphs)[ranks.ends(graphs)[0][source]]


def rules(model: Walk, graphs: SparseBatch) -> dict[str, float]:
    """How close the wiring is to that of a walk."""
    aimed, values, degree = emitted(model, graphs)
    error = (values * degree / (1 - ranks.RESTART) - 1).abs().mean()
    return {"pointed": float(aimed.sum() / graphs.entries), "value_error": float(error)}


# --- the run ---------------------------------------------------------------------------------------------


def run(options: Any, run: Run) -> dict[str, object]:
    """Train, or read what was trained; judge, draw; the keys of the summary."""
    task, steps = Task(options), options.steps
    model = Walk(options.pagerank, steps // 2).to(run.device)
    learner = Learner(model, steps, options.pagerank.lr, options.quick)
    if options.evaluate is not None:
        load_trained(model, options)
    else:
        learner.train(run, partial(_loss, model, task), partial(_progress, model, task))
        series = {name: [each[name] for each in learner.curve] for name in ("step", "overlap", "overlap_sampled")}
        at, lines = series.pop("step"), {"rounded": series["overlap"], "sampled": series["overlap_sampled"]}
        curves({name: (at, line) for name, line in lines.items()}, run.path("overlap.png"), ylabel="overlap")
    show(model, task, run)
    summary = {**figures(model, task), "training_seconds": round(learner.seconds, 3)}
    if options.baselines:
        summary["baselines"] |= {name: fixed(name, options, task, run) for name in fixed_layers.MAKERS}
    return summary


def fixed(name: str, options: Any, task: Task, run: Run) -> dict[str, Any]:
    """Train a layer whose weight is the same for every graph; its figures."""
    torch.manual_seed(options.seed)
    steps = options.pagerank.baseline_steps
    model, stored = fixed_layers.MAKERS[name](options.nodes, steps)
    bar = run.progress(steps, name)
    fixed_layers.train(name, model, steps, partial(_loss, task=task), partial(bar.update, 1))
    with torch.no_grad():
        found = {tail: agreement(model, task.cases["test"], bool(tail)) for tail in ("", "_with_seed")}
    missing = dict.fromkeys(("overlap_larger", "overlap_real"))
    return {**{f"overlap{tail}": each for tail, each in found.items()}, **missing, "stored_numbers": stored}


def _loss(model: nn.Module, task: Task) -> Tensor:
    each = task.batch().to(next(model.parameters()).device)
    return distance(model(*each[:2]), each)


@torch.no_grad()
def _progress(model: Walk, task: Task) -> dict[str, float]:
    """On validation graphs."""
    sampled = agreement(by_network(model.train()), task.validation)
    rounded = agreement(by_network(model.eval()), task.validation)
    about = rules(model, task.validation.graphs)
    model.train()
    return {"overlap": rounded, "overlap_sampled": sampled, **about, "restart": float(model.restart)}


# --- pictures --------------------------------------------------------------------------------------------


@torch.no_grad()
def show(model: Walk, task: Task, run: Run) -> None:
    """top.png and values.png."""
    model.eval()
    shown = [*task.shown, real_graphs()["les_miserables"]]
    names = ("Erdős–Rényi", "Barabási–Albert", "stochastic blocks", "Les Misérables")
    draw([panel(model, graph, name) for graph, name in zip(shown, names, strict=True)], run.path("top.png"))
    _, values, degree = emitted(model, task.cases["larger"].graphs)
    at = torch.arange(1.0, float(degree.max()) + 1)
    means = torch.stack([values[degree == each].mean() for each in at])
    there = ~means.isnan()
    series = {"emitted, mean": (at[there], means[there]), "0.85 / degree": (at, (1 - ranks.RESTART) / at)}
    curves(series, run.path("values.png"), ylabel="value of an edge", xlabel="degree of its start", logy=True)


def panel(model: Walk, graph: networkx.Graph[int], title: str) -> Panel:
    """What can be reached from one seed of a graph, and the first ten other nodes by agreement."""
    largest = unlabelled(graph.subgraph(max(networkx.connected_components(graph), key=len)))
    each = case([largest], 1, torch.Generator().manual_seed(0))
    seed, exact, scores = int(each.seeds), each.ranks[:, 0].clone(), by_network(model)(*each[:2])[:, 0].clone()
    exact[seed], scores[seed] = -1.0, -1.0
    true, guess = (set(part.topk(ranks.TOP).indices.tolist()) for part in (exact, scores))
    kinds = {"seed": {seed}, "hit": true & guess, "missed": true - guess, "spurious": guess - true}
    return Panel(largest, title, {name: sorted(nodes) for name, nodes in kinds.items()})
