"""Layers fed by all earlier ones through gates that are learned, beside nets without gates.

The net of the blog post on 'Differentiable Architecture': two (or three) blocks of convolution, convolution,
max-pooling, dropout, with 32 maps and twice as many in each next block, then a dense layer of 512 and dropout. Every
layer is fed by the image and all earlier layers, each through a gate. `--net` chooses:

  gated    the gates are learned (with Adam, at --gate-lr)
  open     the same net with every connection at weight 1
  chain    the same layers, each fed by the one before alone, widened to as many learned numbers as `gated` has
  narrow   the same chain, not widened

Beside `gated` the chain of equal size is trained too (--no-baseline leaves it out). With --retrain also: the net with
its low gates removed (`--prune`, their share), as it is and trained on for a third of the epochs; the whole net
trained on as long; and nets with the connections that were left, or with as many at random, from scratch.

Data: CIFAR-10 (--data cifar10) or MNIST in --data-dir, else scikit-learn's digits, enlarged to 16 x 16. Images are
shifted by up to a tenth of their size, CIFAR-10's mirrored too. The test set is looked at, and chooses nothing: all
accuracies are of the final epoch.

Keys of summary.json: `dataset`, `variant` (the options that make it another net), `net`, `parameters` (learned
numbers), `epochs`, `seeds`, `test_accuracies` (of each seed), `test_accuracy` (mean), `train_accuracy`. Where gates are
learned: `connections` (names), `gates` (final, for each seed; of unique ones the mean over a source's maps), and from
two seeds on `agreement` (mean correlation of the gates of two seeds, null where all gates are equal) and
`gate_difference` (mean absolute difference). With the chain: `baseline_accuracies`, `baseline_accuracy`,
`baseline_parameters`. With --retrain, means over the seeds: `pruned_connections` (gates left, for each seed),
`pruned_accuracy`, `trained_on_accuracy`, `continued_accuracy` (not pruned), `scratch_accuracy`, `random_accuracy`. A
finished run can be resumed with --retrain, with --baseline, or with more seeds.

Pictures: gates.png, gates over epochs (a panel for each layer, a line for each layer that feeds it); accuracy.png.

Test accuracy in %, final epoch, CIFAR-10 at half width, 10,000 training images, 15 epochs, batch 256, mean and standard
deviation of seeds 100 to 102 (commands in `experiments.gate_table`), and how the blog's questions look:

- Gates or none: gated 55.8 ± 0.8; all connections open 52.5 ± 1.4; a chain of as many learned numbers 52.0 ± 1.4, the
  narrow one 47.4 ± 0.5.
- The gate: linear, without a sigmoid, 57.4 ± 0.6, so it is not slow here; one for each map 55.3 ± 0.8; hard-concrete
  51.6 ± 0.8. A sparsity term of 0.1: sigmoid 54.8 ± 0.4 (mean gate 0.51 instead of 0.68), hard-concrete 50.5 ± 0.7
  (some gates at 0).
- Merging: concatenation 55.8; with fewer numbers squeeze 51.8 ± 0.2, sum 50.4 ± 0.5, max 48.8 ± 0.3.
- Other sizes: bilinear 55.8, area 55.6 ± 0.9, nearest 55.6 ± 0.5, bicubic 55.4 ± 0.6: alike; zero-padding 52.1 ± 0.6.
- Start of the gates (as logits): 0 55.8, Gaussian 55.7 ± 1.4, 0.5 55.5 ± 0.8, forward 55.0 ± 1.1, 1 54.9 ± 1.7: within
  the spreads.
- Seeds agree on the gates: correlation 0.92 (hard-concrete 0.56), mean difference 0.06.
- Half of the gates removed, the lowest (before 55.5, 56.8, 55.2 by seed): 22.1, 38.1, 26.5; trained on for a third of
  the epochs 54.4, 57.8, 55.0 (the whole net as long 57.9, 59.3, 57.9); these connections from scratch 53.0, 55.0, 52.6,
  as many at random 45.2, 52.6, 50.2. So low gates tell what to leave out, at a small cost.
- Three blocks 53.7 ± 0.8; pooling and dropout as layers of their own 55.6 ± 1.0, with eight times the numbers.

`--table FOLDER` trains nothing: it collects the runs in the subfolders of FOLDER into table.md, runs of one variant
with different seeds into one row; keys: `rows`. `--evaluate FOLDER` trains nothing: it judges the nets in that run's
checkpoint; keys: `test_accuracy`, an object with a figure for each net.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ash import LayerGraph
from ash.checks import positive, require
from ash.plot import GateTrack, curves
from ash.plot.gates import gates as draw_gates
from experiments import gate_nets
from experiments.data import Images, cifar10, digits, mnist, standardise
from experiments.evaluation import read_run
from experiments.gate_nets import BASE, Shapes, learned
from experiments.gate_retraining import retrain
from experiments.gate_table import agreement, collect, label, mean
from experiments.gate_training import Recipe, Session, Trained
from experiments.options import EvaluateOptions
from experiments.runs import Run

QUICK = 300


@dataclass
class Options(EvaluateOptions):
    """Options; where none is given, None stands for the data set's own."""

    net: Literal["gated", "open", "chain", "narrow"] = "gated"
    """Which net is trained."""
    data: Literal["cifar10", "mnist"] = "cifar10"
    """Which data lie in --data-dir."""
    data_dir: Path | None = None
    """Folder of the data; scikit-learn's digits without it."""
    train_images: int = 0
    """Train on the first so many images; 0: all."""
    width: float = 1.0
    """Maps and units, as a share of the blog's 32, 64 and 512."""
    blocks: Literal[2, 3] = 2
    """Blocks of two convolutions."""
    every_layer: bool = False
    """Pooling and dropout are layers of their own that feed later ones, as in the blog."""
    merge: Literal["concat", "sum", "max", "squeeze"] = "concat"
    """How what feeds a layer becomes one."""
    resize: Literal["nearest", "bilinear", "bicubic", "area", "pad"] = "bilinear"
    """How maps get one size; with pad, the largest, the last maps are averaged to the size they would have."""
    gates: Literal["shared", "unique"] = "shared"
    """A gate for a connection, or for each map of it."""
    gate: Literal["sigmoid", "linear", "hard_concrete"] = "sigmoid"
    """What a gate is of its logit."""
    gate_init: str | None = None
    """Logit at the start (linear: the gate), gaussian (around 0.5), or forward (1 to the next layer, else 0.5)."""
    gate_lr: float = 2e-2
    """Learning rate of the gates."""
    sparsity: float = 0.0
    """Weight of the mean gate in the loss."""
    epochs: int | None = None
    """Passes over the training images; 15."""
    batch: int | None = None
    """Images in a batch; 256, digits 64."""
    lr: float = 1e-3
    """Learning rate of all else."""
    cosine: bool = True
    """Take the rates to 0 by a cosine; otherwise they stay."""
    bfloat16: bool = False
    """Compute convolutions in bfloat16."""
    seeds: int = 1
    """Train with so many seeds, from --seed on."""
    baseline: bool = True
    """Train the chain of equal size beside the gated net."""
    retrain: bool = False
    """Remove low gates; train on, and again from scratch."""
    prune: float = 0.5
    """Share of the gates that --retrain removes, the lowest."""
    table: Path | None = None
    """Collect the runs in the subfolders of this folder."""

    may_change: ClassVar[frozenset[str]] = EvaluateOptions.may_change - {"epochs"} | {
        "table",
        "baseline",
        "retrain",
        "seeds",
    }
    """A finished run can be resumed with more seeds, with the chain, or to remove gates."""

    def resolved(self) -> Options:
        """These options with the data set's own where none is given."""
        own: dict[str, Any] = {"epochs": 15, "batch": 64 if self.data_dir is None else 256}
        missing: dict[str, Any] = {name: value for name, value in own.items() if getattr(self, name) is None}
        found = dataclasses.replace(self, **missing)
        if not self.quick:
            return found
        return dataclasses.replace(found, epochs=min(found.epochs or 0, 2), train_images=found.train_images or QUICK)


def blog(options: Options) -> Options:
    """The blog's: all layers are sources, batch 32, 200 epochs, Adam at one constant rate, seed 1337."""
    fixed: dict[str, Any] = {"every_layer": True, "epochs": 200, "batch": 32, "seed": 1337, "cosine": False}
    return dataclasses.replace(options, gate_init="0.5", gate_lr=options.lr, **fixed)


PRESETS = {"blog": blog}


def run(options: Options, run: Run) -> dict[str, object]:
    """Train, draw, and return the figures."""
    if options.table is not None:
        return collect(options.table, run.path("table.md"))
    check(options)
    if options.evaluate is not None:
        return evaluate(options, run)
    images = read(options, run.device)
    session = Session(run, images, recipe(options, images))
    shapes = shapes_of(options, images)
    seeds, epochs, make = range(options.seed, options.seed + options.seeds), options.epochs or 0, maker(options, shapes)
    mains = [session.train(f"{options.net} {seed}", seed, make, epochs) for seed in seeds]
    result = summary(options, images, mains)
    if options.net == "gated" and options.baseline:
        wide = partial(gate_nets.chain_as_large_as, learned(mains[0].net), shapes)
        chains = [session.train(f"chain {seed}", seed, wide, epochs) for seed in seeds]
        result |= accuracies("baseline_", chains) | {"baseline_parameters": learned(chains[0].net)}
    if options.net == "gated" and options.retrain:
        result |= retrain(session, make, dict(zip(seeds, mains, strict=True)), options.prune, epochs)
    draw(mains, run, session.steps)
    return result


def check(options: Options) -> None:
    """Raise `UserError` for numbers that no run can do with."""
    for name in ("lr", "gate_lr", "width"):
        positive(f"--{name.replace('_', '-')}", getattr(options, name))
    positive("--sparsity", options.sparsity, zero=True)
    for name in ("epochs", "batch", "seeds"):
        require(getattr(options, name) >= 1, f"--{name} {getattr(options, name)}; expected at least 1.")
    require(options.train_images >= 0, f"--train-images {options.train_images}; expected a number, 0 for all.")
    require(0 < options.prune < 1, f"--prune {options.prune}; expected a share above 0 and below 1.")
    require(
        not options.retrain or options.net == "gated",
        f"--retrain with --net {options.net}, which has no gates; take --net gated.",
    )
    gate_nets.start(options.gate_init, options.gate)


# --- data and nets -------------------------------------------------------------------------------------


def read(options: Options, device: torch.device) -> Images:
    """The images, standardised, `(n, c, h, w)`, on the device."""
    if options.data_dir is None:
        images = digits()
    else:
        images = {"cifar10": cifar10, "mnist": mnist}[options.data](options.data_dir)
    few = slice(options.train_images or None)
    images = standardise(dataclasses.replace(images, train_x=images.train_x[few], train_y=images.train_y[few]))
    if options.quick:
        images = dataclasses.replace(images, test_x=images.test_x[:QUICK], test_y=images.test_y[:QUICK])
    large = options.data_dir is None

    def pictures(x: Tensor) -> Tensor:
        x = x if x.dim() == 4 else x.unsqueeze(1)
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if large else x
        return x.to(device, memory_format=torch.channels_last)

    parts: dict[str, Any] = {name: pictures(getattr(images, name)) for name in ("train_x", "test_x")}
    labels: dict[str, Any] = {name: getattr(images, name).to(device) for name in ("train_y", "test_y")}
    return dataclasses.replace(images, **parts, **labels)


def recipe(options: Options, images: Images) -> Recipe:
    """How the options train."""
    return Recipe(
        batch=options.batch or 0,
        lr=options.lr,
        gate_lr=options.gate_lr,
        cosine=options.cosine,
        shift=images.train_x.shape[-1] // 10,
        mirror=images.name == "cifar10",
        sparsity=options.sparsity,
        bfloat16=options.bfloat16,
    )


def shapes_of(options: Options, images: Images) -> Shapes:
    """The sizes of the net for these images."""
    c, h, w = images.train_x.shape[1:]
    return Shapes((c, h, w), images.classes, options.blocks, max(1, round(BASE * options.width)))


def maker(options: Options, shapes: Shapes) -> Callable[[], nn.Module]:
    """What makes the net that `--net` names."""
    gate_nets.final_side(shapes)
    given: dict[str, Any] = {"merge": options.merge, "resize": options.resize, "every_layer": options.every_layer}
    given["unique"] = options.gates == "unique"
    if options.net == "open":
        return partial(gate_nets.open_net, shapes, **given)
    if options.net == "narrow":
        return partial(gate_nets.chain, shapes)
    gated = partial(gate_nets.gated, shapes, **given, gate=options.gate, init=options.gate_init)
    if options.net == "chain":
        return partial(gate_nets.chain_as_large_as, learned(gated()), shapes)
    return gated


# --- figures ---------------------------------------------------------------------------------------------


def accuracies(prefix: str, nets: list[Trained]) -> dict[str, object]:
    """Those of each seed, and their mean."""
    each = [net.test_accuracy for net in nets]
    plural = "baseline_accuracies" if prefix else "test_accuracies"
    return {plural: each, (f"{prefix}accuracy" if prefix else "test_accuracy"): mean(each)}


def summary(options: Options, images: Images, mains: list[Trained]) -> dict[str, object]:
    """The keys that the module's docstring tells."""
    result: dict[str, object] = {
        "dataset": images.name,
        "variant": label(options),
        "net": options.net,
        "parameters": learned(mains[0].net),
        "epochs": options.epochs,
        "seeds": options.seeds,
        **accuracies("", mains),
        "train_accuracy": mean([main.history[-1]["train_accuracy"] for main in mains]),
    }
    if options.net == "gated":
        net = mains[0].net
        assert isinstance(net, LayerGraph)
        gates = [main.history[-1]["gates"] for main in mains]
        result |= {"connections": list(net.connections().values()), "gates": gates}
        if len(gates) > 1:
            result |= agreement(gates)
    return result


def draw(mains: list[Trained], run: Run, steps: int) -> None:
    """Gates of the first seed, and accuracies of all, over the epochs of so many steps."""
    first = mains[0]
    if first.history[0]["gates"] and isinstance(first.net, LayerGraph):
        epochs = [each["epoch"] for each in first.history]
        values = [each["gates"] for each in first.history]
        panels: dict[str, dict[str, list[float]]] = {}
        for column, name in enumerate(first.net.connections().values()):
            source, target = name.split(" → ")
            panels.setdefault(f"into {target}", {})[source] = [row[column] for row in values]
        draw_gates(epochs, panels, run.path("gates.png"))
        run.show("gates", GateTrack([epoch * steps for epoch in epochs], panels))
    series = {}
    for number, main in enumerate(mains):
        for name in ("train_accuracy", "test_accuracy"):
            points = [(each["epoch"], each[name]) for each in main.history if name in each]
            series[f"{name.split('_')[0]} {number}" if len(mains) > 1 else name.split("_")[0]] = tuple(
                map(list, zip(*points, strict=True))
            )
    curves(series, run.path("accuracy.png"), ylabel="accuracy", xlabel="epoch")  # type: ignore[arg-type]


# --- judging trained nets ----------------------------------------------------------------------------------


def evaluate(options: Options, run: Run) -> dict[str, object]:
    """Test accuracies of the nets in the checkpoint of a run."""
    saved = read_run(options, "gates")
    names = {field.name for field in dataclasses.fields(Options)} - Options.may_change
    options = dataclasses.replace(options, **{k: v for k, v in saved.meta["options"].items() if k in names})
    images = read(options, run.device)
    session, shapes = Session(run, images, recipe(options, images)), shapes_of(options, images)
    size = learned(maker(dataclasses.replace(options, net="gated"), shapes)())
    found = {}
    for name, state in saved.state["done"].items():
        chained = name.startswith("chain ")
        make = partial(gate_nets.chain_as_large_as, size, shapes) if chained else maker(options, shapes)
        net = make()
        net.load_state_dict(state["model"])
        found[name] = session.accuracy(net.to(run.device))
    require(bool(found), f"--evaluate {options.evaluate}: no net is finished there; expected one; --resume it.")
    return {"test_accuracy": found}
