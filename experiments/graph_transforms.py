"""Transforms of graphs that one adaptive layer learns edge by edge.

Every edge (u, v) is looked at by the same small perceptron, which emits where the edge goes in the output, as pointers
to nodes near it, and with what value: the weight tensor has the rank 4 (n⁴ entries), and stored is only what meets
edges that exist. Graphs have 128 nodes and about 256 links (`experiments.graph_data`); the layer is judged rounded.

  identity   an edge stays. Never given: at first no tuple points at the edge's own entry
  reverse    an edge is turned round
  symmetric  the symmetric closure: an edge goes both ways; two tuples for each edge. The value is the number of
             directions that were there, 1 or 2, so that the transform is linear
  two_hop    friends of friends in an undirected graph: pairs u ≠ w that are not linked and have friends in common. The
             value is how many, so that it is linear in the paths u-v-w: the sites are paths, and the perceptron learns
             which of them to switch off. It is told whether w = u and whether u and w are linked, not what to do then
  relabel    node u becomes node π(u), a fixed permutation: no pointer can know it, means are positions in the tensor

Train, validation and test graphs are different ones of the same families; nothing is chosen by the test graphs.
Directed graphs have a random direction for every link, and both for a tenth of them. The real graphs are test graphs
too; where edges have a direction, it is that from the lower to the higher number.

Seeds 100 to 104 (`python -m experiments graphs --task reverse --seed 100`), 60 test graphs of 128 and 12 of 512 nodes;
seconds are processor time of a whole run on one core, pictures included, numbers are `stored_numbers`:

| task      | `f1`               | `exact`      | `f1_larger`      | karate  | Les Misérables | seconds | numbers |
|-----------|--------------------|--------------|------------------|---------|----------------|---------|---------|
| identity  | 1                  | 1            | 1                | 1       | 1              | 10-14   | 324     |
| reverse   | 1                  | 1            | 1                | 1       | 1              | 9-14    | 324     |
| symmetric | 1                  | 1            | 1                | 1       | 1              | 12-18   | 392     |
| relabel   | 1                  | 1            | not possible     | 1       | 1              | 16-22   | 128     |
| two_hop   | 0.99969 to 0.99990 | 0.70 to 0.80 | 0.9994 to 0.9999 | ≥ 0.994 | 0.925 to 0.999 | 22-31   | 486     |

1 stands for all five seeds; the Florentine families are without an error on all. The errors of `two_hop` are spurious
edges: paths that should not count do a little, and in a dense neighbourhood (Les Misérables) many of them add up. At
first a tuple points at one of the three places of its list that are not the edge's own: a reversal is there from the
start on two of the five seeds (101 and 103).

A dense layer at 128 nodes would hold 128⁴ = 268 million weights: 1.07 GB, with gradient and Adam 4.3 GB. It was run at
12 nodes (`--nodes 12 --baselines --seed 100`: 240 graphs to learn from, 600 batches), where it has 20,736 weights: F1 1
for identity, reverse and relabel, 0.995 for symmetric, and 0.72 for two_hop, which is not linear in the graph. Gaussian
tuples of the same tensor of rank 4, one for each input position (288 stored numbers; symmetric 576), reach 0.44, 0.47,
0.51, 0.64 and 0.39 there, and 0.02 for reverse at 128 nodes (32,768 stored numbers, 600 batches in 136 s): a tuple
meets its entry by chance, at one position in n². Neither can be applied to a graph of another size at all. The layer
that looks at every edge has an F1 of 1 for all five at 12 nodes.

What decides, on seeds 0 to 9:

- Values that are ones, where the transform allows. Emitted, two tuples of `symmetric` that start at one place share the
  value there, or cancel each other on the diagonal, where all edges of a node add up: 3 of 5 seeds failed.
- A target that is linear in the edges. With a closure whose values are all 1, tuples of links that have both directions
  left their places to make 1 of 2 (F1 0.988 to 1 on 6 seeds). Its edges are the same.
- Wide scales at first for `two_hop`: from narrow ones values can go to 0 before the place is found (at 24 nodes on 2 of
  8 seeds, at 128 nodes on none of 6).
- Degrees for `relabel`: how the degree of a node varies from graph to graph tells which row of the target it belongs
  to, and the wiring takes its guided points from there (`ash.PositionWiring`). Validation F1 is 1 after 70 batches.

Keys of `summary.json`: `nodes`; `f1`, `precision`, `recall` over the edges of the test graphs, `exact` (share of graphs
without an error), rounded; `f1_sampled` (one draw as in training); `f1_larger`, `exact_larger` (graphs of four times as
many nodes and links; null for relabel, whose permutation has no more nodes); `f1_karate`, `f1_les_miserables`,
`f1_florentine`; `loss` (of the test graphs, rounded, per target entry); `stored_numbers` (perceptron and offset;
of relabel a position for each node); `training_seconds`; `dense_weights`, `dense_bytes`, `dense_training_bytes` (of a
dense layer here, with gradient and Adam's two moments); and with `--baselines` those of `experiments.graph_baselines`.

Pictures: pair.png, a test graph, its transform, what was predicted; adjacency.png, the same as images; real_NAME.png;
f1.png, over training; pointers.png, share of the tuples that point at each place in the list of candidates, over
training (relabel: at each node); values.png (two_hop), the mean value of each kind of path over training.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ash import EdgeLayer, SparseBatch, edge_scores, sparse_loss
from ash.checks import positive, require
from experiments.descent import Descent
from experiments.graph_data import Family
from experiments.graph_learning import read_task
from experiments.graph_transform_data import Data, Pairs, prepare
from experiments.graph_transform_nets import make_layer, stored_numbers
from experiments.graph_transform_pictures import draw, look
from experiments.runs import Run, restore, training_state

__all__ = ["Options", "resolved", "run"]

STEPS = {"identity": 300, "reverse": 300, "symmetric": 300, "two_hop": 400, "relabel": 200}
JUDGED = 8  # graphs in a batch that is judged
LOGGED = 20


@dataclass(kw_only=True)
class Options:
    """Options of the transforms."""

    graphs: Family = "mixed"
    """Erdős–Rényi, Barabási–Albert, stochastic blocks, or each in turn."""
    links: int | None = None
    """Links of a graph; twice the nodes if not given."""
    counts: tuple[int, int, int] = (240, 30, 60)
    """Graphs for training, validation and test."""
    larger: int = 12
    """Graphs of four times as many nodes and links to judge by."""
    both: float = 0.1
    """Share of the links that have both directions, where links have one."""
    batch: int | None = None
    """Graphs in a batch; 4 for two_hop, whose paths are many, else 8."""
    hidden: tuple[int, ...] = (32,)
    """Hidden layers of the perceptron."""
    tuples: int | None = None
    """Tuples of a site: 2 for symmetric, 1 for the others."""
    values: Literal["emitted", "shared", "ones"] | None = None
    """Whether values are emitted; ones where that serves the task."""
    lr: float | None = None
    """Adam's step, with a cosine to 0; 0.2 for relabel, 0.03 for the others."""
    scale: float | None = None
    """Scale of the tuples at first, in places of the list of candidates; 3 for two_hop, else 1."""
    scale_end: float = 0.1
    """Scale after two thirds of the run and from then on."""
    baseline_steps: int = 600
    """Batches of each of the other layers."""


def resolved(options: Any) -> Any:
    """The options with what depends on others decided. Raises `UserError` for impossible ones."""
    own = options.transform
    for name in ("batch", "lr", "scale", "scale_end", "baseline_steps"):
        value = getattr(own, name)
        positive(f"--transform.{name.replace('_', '-')}", 1 if value is None else value)
    require(min(own.counts) >= 1, f"--transform.counts {own.counts}; expected at least one graph of each part.")
    require(0 <= own.both <= 1, f"--transform.both {own.both}; expected a share from 0 to 1.")
    positive("--transform.larger", own.larger, zero=True)
    nodes = options.nodes or (16 if options.quick else 128)
    require(nodes >= 4, f"--nodes {nodes}; expected at least 4.")
    given: dict[str, Any] = {"links": min(own.links or 2 * nodes, nodes * (nodes - 1) // 2)}
    given["tuples"] = own.tuples or (2 if options.task == "symmetric" else 1)
    given["batch"] = own.batch or (4 if options.task == "two_hop" else 8)
    given["lr"] = own.lr or (0.2 if options.task == "relabel" else 0.03)
    given["scale"] = own.scale or (3.0 if options.task == "two_hop" else 1.0)
    given["values"] = own.values or ("emitted" if options.task == "two_hop" else "ones")
    given["larger"] = 0 if options.task == "relabel" else own.larger
    steps = options.steps or STEPS[options.task]
    if options.quick:
        steps, given["counts"], given["larger"] = min(steps, 20), (6, 3, 3), min(2, given["larger"])
        given["baseline_steps"] = min(5, own.baseline_steps)
    return dataclasses.replace(options, nodes=nodes, steps=steps, transform=dataclasses.replace(own, **given))


class Learner:
    """A layer that learns one transform, and what is recorded on the way.

    Args:
        options: resolved. device: where to compute.
    """

    def __init__(self, options: Any, device: torch.device):
        self.options, self.own, self.steps = options, options.transform, options.steps
        self.data: Data = prepare(options, device)
        self.layer: EdgeLayer = make_layer(options).to(device)
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=self.own.lr, betas=(0.9, 0.99))
        self.descent = Descent(self.layer, self.optimizer)
        self.curve: list[dict[str, float]] = []
        self.seen: list[dict[str, torch.Tensor]] = []
        self.before = 0.0

    def train(self, run: Run) -> None:
        """Train for all steps, or those after the checkpoint."""
        start = self._resume(run)
        bar, already = run.progress(self.steps, self.options.task, start), self.before - run.seconds
        every = max(1, self.steps // (4 if self.options.quick else LOGGED))
        for step in range(start, self.steps + 1):
            if (step > start or not start) and (step % every == 0 or step == self.steps):
                self._record(run, step)
            self.before = already + run.seconds
            if step > start:
                run.keep(step, self.state, due=step == self.steps or step % (5 * every) == 0)
            if step < self.steps:
                self.train_step(step)
                bar.update(1)

    def train_step(self, step: int) -> float:
        """One batch, the `step`-th from 0; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.5 * self.own.lr * (1 + math.cos(math.pi * step / self.steps))
        x, y = self.data.train.batch(torch.randint(len(self.data.train.x), (self.own.batch,)).tolist())
        prediction = self.layer(x)
        loss = sparse_loss(prediction, y)
        self.descent.check(loss, step)
        self.optimizer.zero_grad()
        loss.backward()
        self.layer.guide(x, prediction, y)
        self.descent.move()
        return float(loss.detach())

    @torch.no_grad()
    def _record(self, run: Run, step: int) -> None:
        pairs = self.data.validation
        with torch.random.fork_rng():
            figures = {"f1": self.judge(pairs)["f1"], "f1_sampled": self.judge(pairs, sampled=True)["f1"]}
        self.curve.append({"step": step, **figures})
        self.seen.append(look(self.layer, pairs.x[0]))
        run.log(step, **figures)
        run.time(step)

    @torch.no_grad()
    def judge(self, pairs: Pairs, sampled: bool = False) -> dict[str, float]:
        """Scores and loss of the rounded layer, or of one draw as in training."""
        was = self.layer.training
        self.layer.train(sampled)
        found = [self.layer(SparseBatch.cat(pairs.x[i : i + JUDGED])) for i in range(0, len(pairs.x), JUDGED)]
        self.layer.train(was)
        prediction, target = SparseBatch.cat(found), SparseBatch.cat(pairs.y)
        return edge_scores(prediction, target)._asdict() | {"loss": float(sparse_loss(prediction, target))}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, pictures included."""
        training = training_state(self.layer, self.optimizer)
        return {"training": training, "curve": self.curve, "seen": self.seen, "seconds": self.before}

    def _resume(self, run: Run) -> int:
        saved = run.load()
        return 0 if saved is None else self.take(saved[1], saved[0])

    def take(self, state: dict[str, Any], step: int) -> int:
        """Go on from a `state`."""
        self.curve, self.seen, self.before = list(state["curve"]), list(state["seen"]), state["seconds"]
        restore(state["training"], self.layer, self.optimizer)
        return step

    def summary(self) -> dict[str, object]:
        """The figures of the test graphs, the larger and the real ones."""
        scores, nodes = self.judge(self.data.test), self.options.nodes
        larger = self.judge(self.data.larger) if self.data.larger.x else {}
        return {
            "nodes": nodes,
            **scores,
            "f1_sampled": self.judge(self.data.test, sampled=True)["f1"],
            "f1_larger": larger.get("f1"),
            "exact_larger": larger.get("exact"),
            **{f"f1_{name}": self.judge(pairs)["f1"] for name, pairs in self.data.real.items()},
            "stored_numbers": stored_numbers(self.layer),
            "training_seconds": round(self.before, 3),
            "dense_weights": nodes**4,
            "dense_bytes": 4 * nodes**4,
            "dense_training_bytes": 16 * nodes**4,
        }


def run(options: Any, run: Run) -> dict[str, object]:
    """Train (or take what a run has trained), judge, draw; the keys of the summary."""
    learner = Learner(options, run.device)
    if options.evaluate is not None:
        saved = read_task(options, options.task)
        learner.take(saved.state, int(saved.meta["step"]))
    else:
        learner.train(run)
    summary = learner.summary()
    draw(learner.layer, learner.data, learner.curve, learner.seen, run)
    if options.baselines:
        from experiments.graph_baselines import baselines

        summary |= baselines(options, learner.data, run)
    return summary
