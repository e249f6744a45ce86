"""A variational autoencoder of small graphs, of sparse layers.

Graphs of 8 to 12 nodes are vectors over pairs of nodes, in breadth-first order (`experiments.graph_vae_data`). Three
sparse layers with ReLUs take a vector to the mean and the log variances of a code, three take a code to logits, which
are a distribution over graphs: of the size, then of each link on its own (`experiments.graph_vae_code`). Every layer's
weight is made of Gaussian index tuples, a tenth as many as a dense one has numbers, and has a small reconstruction
term: what it makes of its input is to give that back when the same weight, transposed, is applied to it.

The loss is -log p(graph | code) + β · KL(code's Gaussian, standard normal), per node, + 0.01 times those terms.

What --vae.decoder slots has instead of the last layer is a hypernetwork that emits the links themselves: its index
tuples are (node, node), its weight tensor is the graph. --vae.wiring static, dense stand beside the Gaussians;
--baselines trains the same network without reconstruction terms, static and dense, too.

Seeds 100 to 102 with `--baselines`, means (narrow: degree_mmd at the median distance of two test graphs, 0.42):

|                                | Gaussian | without terms | static | dense   |
|--------------------------------|----------|---------------|--------|---------|
| stored numbers                 | 39,116   | 39,116        | 39,116 | 195,584 |
| F1, by the mean code           | 0.949    | 0.928         | 0.980  | 0.970   |
| F1, by a code that is drawn    | 0.909    | 0.900         | 0.944  | 0.940   |
| test graphs without an error   | 0.42     | 0.28          | 0.67   | 0.59    |
| elbo, nats                     | -27.7    | -27.7         | -31.1  | -28.2   |
| degree_mmd, prior              | 0.0019   | 0.0050        | 0.0033 | 0.0021  |
| narrow, prior                  | 0.010    | 0.018         | 0.014  | 0.010   |
| narrow, fitted density         | 0.009    | 0.008         | 0.009  | 0.007   |
| connected samples, prior       | 0.86     | 0.91          | 0.87   | 0.92    |

Of the Gaussian network F1 is 0.948 to 0.951 (drawn 0.906 to 0.910), degree_mmd at most 0.0020 (fitted 0.0022).
Of training graphs degree_mmd is at most 0.0004 (narrow 0.0015), of random ones 0.0018 to 0.0025 (narrow 0.008 to
0.012; 77 to 81 % of them are connected). So at bandwidth 1 even random graphs of the right sizes and density are near,
and at the sharper one samples are hardly nearer; by the earth mover's distance they are (0.008 to 0.012, random ones
0.015 to 0.018). 97 to 98 % of the samples are new. A run without baselines: 100 s of a core. --nodes 20
--vae.latent 64, as it is otherwise (seed 0): F1 0.841, degree_mmd 0.0034.

What was learned (static, 1,500 batches, seed 0, unless said otherwise):
- Reconstruction and samples pull apart by β. A pair of nodes tells half a nat, and a Gaussian code that is to tell
  it for sure pays more than that in divergence. At β = 1 a dense network's codes say next to nothing, which is best
  for the elbo (-23.2) and no reconstruction (F1 0.69). At 0.1 F1 is 0.971, but codes are far from the prior (elbo
  -42) and its samples have too many links (narrow 0.023, of the fitted density 0.007); at 0.3 F1 is 0.932, elbo
  -29.7. Rising from 0.02 to 0.3 gives 0.962 and -31.2: the network first finds a code for all pairs, then narrows it.
- A density fitted to the codes mends what a low β spoils, and leaves the rest: one Gaussian or 64 are much alike.
- The order decides. By degree F1 is 0.951 and elbo -35.0, as the generators number the nodes 0.899 and -39.7.
- Reconstruction terms help Gaussian tuples from the first batches on (at batch 500 of 2,500, F1 of validation graphs
  0.89 against 0.80), as the source says, and static entries hardly (0.964 against 0.962; their codes are narrower).
- Hidden units have no neighbours, so that a wide tuple does nothing but spread its value: Gaussian tuples with scales
  from 2 and fat tails reached 0.79 in 1,500 batches. They stay behind static entries in F1, and ahead in elbo.
- Links as index tuples (--vae.decoder slots): F1 0.80, elbo -39.9. Tuples that look for a pair move one node at a
  time through numbers that mean little; but 92 % of the samples are connected.

Source: `Sparse, Adaptive Hypernetworks` (2017), 'Real tasks'. Kingma and Welling (arXiv 1312.6114); β: Higgins et al.
(2017); a density fitted afterwards: Ghosh et al. (arXiv 1903.12436).

Keys of `summary.json`:
- `f1`, `precision`, `recall` over the links of held-out graphs, `exact` (graphs without an error), `size` (graphs of
  the right size), by the mean of the code and the likeliest graph; `f1_sampled`, `exact_sampled` by a code drawn from
  its Gaussian. Nothing is chosen by these graphs, of which no isomorphic one is trained on.
- `elbo`, the evidence lower bound in nats for each test graph (weight 1 on the divergence), `rate` (the divergence),
  `distortion` (the other part); `elbo_fitted`, with the density in place of the prior that was fitted, after training,
  to the codes of training graphs: a mixture of Gaussians (`experiments.graph_vae_density`).
- `degree_mmd` of samples to the test graphs at bandwidth 1, `degree_mmd_fitted` of samples of the fitted density,
  `degree_mmd_train` of training graphs, `degree_mmd_random` of graphs of the test graphs' sizes and density whose
  links are independent; 500 each. At this bandwidth the last is small, too: `samples` has of all four two sharper
  ones, and all else that is told of samples (`experiments.graph_vae_scores`). A sample is drawn from what a code is
  decoded to: its size, then its links.
- `valid` (connected graphs; sizes are always in range, and all graphs of the data are connected), `novel` (not
  isomorphic to a training graph), `unique`: shares of the samples of the prior.
- `stored_numbers` (a value and an index for every entry), `train_graphs`, `test_graphs`; `baselines`, by name, with
  some of these figures, and with `degree_mmd_narrow` and `valid` of both kinds of samples.

Pictures: samples.png (beside training graphs), reconstructions.png (of test graphs), degrees.png, training.png.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from ash.checks import positive, require
from experiments.graph_learning import read_task
from experiments.graph_vae_code import GraphCode
from experiments.graph_vae_data import Graphs, Parts, split
from experiments.graph_vae_nets import DecoderName, GraphVAE, Shape, WiringName
from experiments.graph_vae_pictures import course, degrees, gallery, reconstructions
from experiments.graph_vae_scores import BANDWIDTH
from experiments.graph_vae_training import Recipe, Trial, judge, progress, reconstruct
from experiments.runs import Run
from experiments.state import load_model

__all__ = ["Options", "resolved", "run"]

OWN = "vae"
"""The name of the network that the options describe, beside those of `BASELINES`."""
BASELINES: dict[str, dict[str, Any]] = {
    "without_terms": {"reconstruction_weight": 0.0},
    "static": {"wiring": "static", "reconstruction_weight": 0.0},
    "dense": {"wiring": "dense", "reconstruction_weight": 0.0},
}
"""Networks beside it, and the options in which they differ."""
SHARED = ("f1", "f1_sampled", "exact", "elbo", "elbo_fitted", "rate", "stored_numbers")


@dataclass(kw_only=True)
class Options:
    """Options of the graph VAE; --nodes is the largest size of a graph."""

    least_nodes: int = 8
    """Smallest size of a graph."""
    graphs: Literal["er", "ba", "sbm", "mixed"] = "mixed"
    """Erdős–Rényi, Barabási–Albert, two blocks, or each in turn."""
    order: Literal["bfs", "degree", "given"] = "bfs"
    """Order of the nodes: breadth-first, by degree, or as the generator numbers them."""
    counts: tuple[int, int, int] = (20000, 500, 500)
    """Graphs drawn for training (those that occur twice are left out), validation and test."""
    samples: int = 500
    """Graphs drawn from the model, and as many of each kind that stand beside them."""
    wiring: WiringName = "gaussian"
    """What wires the layers; dense: ordinary layers."""
    decoder: DecoderName = "layers"
    """Sparse layers to the end, or last a hypernetwork that emits the links as index tuples."""
    density: float = 0.1
    """Share of the dense layers' weights that exist."""
    latent: int = 32
    """Numbers of a code."""
    hidden: int = 256
    """Units of a hidden layer."""
    depth: int = 2
    """Hidden layers of encoder and of decoder."""
    slots: int = 60
    """slots: index tuples emitted for a graph."""
    reconstruction_weight: float = 0.01
    """Weight of the layers' reconstruction terms; 0: none."""
    beta_start: float = 0.02
    """Weight of the rate (the codes' divergence from the prior) in the loss, at the start."""
    beta: float = 0.3
    """The same from 70 % of the run on; it rises linearly."""
    batch: int = 256
    """Graphs in a batch."""
    lr: float = 2e-3
    """Adam's step, with a cosine to 0."""
    mean_lr: float = 0.1
    """Step of the means, in units of a tuple's scale."""
    scale: float = 0.7
    """Scale of the tuples at the start."""
    freeze: float = 0.5
    """Share of the run after which the tuples are rounded for good."""
    components: int = 16
    """Gaussians of the density that is fitted to the codes after training."""

    def check(self, nodes: int) -> None:
        """Raise `UserError` for impossible options beside graphs of at most so many nodes."""
        names = ("samples", "latent", "hidden", "slots", "batch", "lr", "scale", "components")
        for name in names:
            positive(f"--vae.{name}", getattr(self, name))
        for name in ("depth", "mean_lr", "reconstruction_weight", "beta_start", "beta"):
            positive(f"--vae.{name.replace('_', '-')}", getattr(self, name), zero=True)
        require(min(self.counts) >= 2, f"--vae.counts {self.counts}; expected at least 2 graphs of each.")
        require(0 <= self.freeze <= 1, f"--vae.freeze {self.freeze}; expected a share from 0 to 1.")
        require(0 < self.density <= 1, f"--vae.density {self.density}; expected a share above 0 and at most 1.")
        require(
            4 <= self.least_nodes <= nodes <= 64,
            f"--vae.least-nodes {self.least_nodes} and --nodes {nodes}; expected 4 <= least <= most <= 64.",
        )

    def recipe(self, steps: int) -> Recipe:
        """How the network is trained."""
        shared = ("batch", "lr", "mean_lr", "beta_start", "beta", "freeze")
        own = {name: getattr(self, name) for name in shared}
        return Recipe(steps=steps, reconstruction=self.reconstruction_weight, **own)

    def shape(self, steps: int) -> Shape:
        """What the network is made of."""
        shared = ("latent", "hidden", "depth", "wiring", "density", "decoder", "slots", "scale")
        own = {name: getattr(self, name) for name in shared}
        settle = max(1, self.recipe(steps).freeze_at)
        return Shape(reconstruct=self.reconstruction_weight > 0, settle=settle, **own)


def resolved(options: Any) -> Any:
    """All options with this task's own nodes and steps. Raises `UserError` for impossible ones."""
    own: Options = options.vae
    chosen = dataclasses.replace(options, nodes=options.nodes or 12, steps=options.steps or 3000)
    own.check(chosen.nodes)
    if not options.quick:
        return chosen
    few = dataclasses.replace(
        own, counts=(100, 30, 30), samples=30, hidden=min(32, own.hidden), latent=min(8, own.latent), batch=16,
        slots=min(10, own.slots), components=min(2, own.components),
    )  # fmt: skip
    return dataclasses.replace(chosen, vae=few, steps=min(12, chosen.steps))


def run(options: Any, run: Run) -> dict[str, object]:
    """Train the network and those beside it, or take it from a run; judge, draw, and return the figures."""
    own: Options = options.vae
    code = GraphCode(own.least_nodes, options.nodes)
    parts = split(own.graphs, own.counts, (own.least_nodes, options.nodes), options.seed, own.order)
    done = _evaluated(options, code, parts) if options.evaluate else _train_all(options, code, parts, run)
    net, figures = done["net"], done["figures"]
    torch.manual_seed(options.seed)
    whole, shown = judge(net, parts, own.components, own.samples)
    draw(net, parts, shown, done["curves"], run)
    table = whole.pop("samples")
    prior = table["prior"]
    named = {f"degree_mmd_{name}": scores["degree_mmd"] for name, scores in table.items() if name != "prior"}
    return {
        **whole,
        "degree_mmd": prior["degree_mmd"],
        **named,
        "bandwidth": BANDWIDTH,
        **{name: prior[name] for name in ("valid", "novel", "unique")},
        "samples": table,
        "train_graphs": len(parts.train.nodes),
        "test_graphs": len(parts.test.nodes),
        **({"baselines": figures} if figures else {}),
    }


def _train_all(options: Any, code: GraphCode, parts: Parts, run: Run) -> dict[str, Any]:
    """The network of the options, trained, and the figures of those beside it."""
    saved = run.load()
    state = {"figures": {}, "curves": {}, "model": {}, "trial": None} if saved is None else saved[1]
    kinds = {OWN: options.vae}
    if options.baselines:
        kinds |= {name: dataclasses.replace(options.vae, **other) for name, other in BASELINES.items()}
    bar = run.progress(options.steps * len(kinds), "graphs", 0 if saved is None else saved[0])
    for place, (name, own) in enumerate(kinds.items()):
        if name in state["figures"]:
            continue
        trial = _trial(options, own, code, parts)
        if state["trial"] is not None:
            trial.load(state["trial"])
        _train(trial, name, place * options.steps, state, run, bar)
        torch.manual_seed(options.seed)
        state["figures"][name] = _row(judge(trial.net, parts, own.components, own.samples)[0]) if place else {}
        state["model"] = state["model"] or dict(trial.net.state_dict())
        state["trial"] = None
        run.keep((place + 1) * options.steps, partial(dict, state))
    net = _trial(options, options.vae, code, parts).net
    restore_net(net, state["model"])
    return {"net": net, "figures": {name: row for name, row in state["figures"].items() if name != OWN},
            "curves": state["curves"]}  # fmt: skip


def _trial(options: Any, own: Options, code: GraphCode, parts: Parts) -> Trial:
    return Trial(code, own.shape(options.steps), own.recipe(options.steps), parts, options.seed)


def _train(trial: Trial, name: str, before: int, state: dict[str, Any], run: Run, bar: Any) -> None:
    """All steps, or those after the checkpoint."""
    steps = trial.recipe.steps
    every = max(1, steps // (20 if steps > 100 else 4))
    while trial.step < steps:
        costs = trial.train_step()
        bar.update(1)
        due = trial.step % every == 0
        if due or trial.step == steps:
            figures = {"step": trial.step, **costs, **progress(trial)}
            state["curves"].setdefault(name, []).append(figures)
            run.log(before + trial.step, network=name, **costs, validation_f1=figures["validation_f1"])
            run.time(before + trial.step)
        run.keep(before + trial.step, lambda: {**state, "trial": trial.state()}, due=due and trial.step < steps)


def _row(figures: dict[str, Any]) -> dict[str, Any]:
    """What is told of a network that stands beside another."""
    of = figures["samples"]
    both = {f"degree_mmd_narrow_{name}": of[name]["degree_mmd_narrow"] for name in ("prior", "fitted")}
    valid = {f"valid_{name}": of[name]["valid"] for name in ("prior", "fitted")}
    return {name: figures[name] for name in SHARED} | {"degree_mmd": of["prior"]["degree_mmd"]} | both | valid


def restore_net(net: GraphVAE, state: dict[str, torch.Tensor]) -> None:
    """Give a network what another has learned. Raises `UserError` where they are not alike."""
    load_model(state, net)
    net.freeze()


def _evaluated(options: Any, code: GraphCode, parts: Parts) -> dict[str, Any]:
    """The trained network of a run's folder."""
    saved = read_task(options, "vae")
    require(
        bool(saved.state["model"]),
        f"--evaluate {options.evaluate}: a run that was not trained to its end; go on with it by --resume.",
    )
    net = _trial(options, options.vae, code, parts).net
    restore_net(net, saved.state["model"])
    return {"net": net, "figures": {}, "curves": saved.state["curves"]}


def draw(net: GraphVAE, parts: Parts, shown: dict[str, Graphs], curves: dict[str, Any], run: Run) -> None:
    """The four pictures."""
    rows = {"training graphs": "train", "samples, density fitted to the codes": "fitted", "samples, prior": "prior"}
    gallery({title: shown[name] for title, name in rows.items()}, run.path("samples.png"))
    reconstructions(parts.test, reconstruct(net, parts.test), run.path("reconstructions.png"))
    degrees({"test": parts.test, **shown}, run.path("degrees.png"))
    course(curves, run.path("training.png"))
