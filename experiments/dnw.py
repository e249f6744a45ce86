"""Discover the wiring of a neural graph: nodes are channels, edges are single weights, and training chooses the edges.

`--model small`: a stem, one node graph in one of three dynamics, pooling, a linear layer. On CIFAR-10 the published
net: 800 nodes, 32 of them inputs and 100 outputs, 32,000 edges, all of which can be used (in the static graph of
254,960); on MNIST one of 100 nodes and few edges, so that it matters which ones. `--model mobilenet`: five static
graphs one after the other, with the nodes of MobileNetV1 and the edges of MobileNetV1 x --width.

--wiring chooses how edges are found:

  top_k                  the k largest of dense candidates, all of which learn ("to but not through": DNW)
  no_update              the same, but only edges in use learn
  random                 k random edges that can be used, fixed
  set, rigl              edges are dropped and grown between batches
  gaussian               k index tuples, sampled in training and rounded after 70 % of the run (AdamW)
  complete               all edges
  fine_tune, one_shot    half of the run the complete graph, then its largest edges alone: trained on at a tenth of the
                         learning rate, or anew from the initial values
  targeted_dropout       all edges, of which those outside the k largest are dropped with probability --dropout
  ..._per_output         top_k and targeted_dropout with as many edges for every node

Equal --edges are equal numbers of usable edges for every wiring. The published random graph in the static dynamics has
about 13,250 usable ones of its 32,000: `--wiring random --edges 13250`.

Data: IDX files or cifar-10-batches-py in --data-dir, a folder with train/CLASS/… and val/CLASS/… pictures (mobilenet),
else scikit-learn's digits. The test set is evaluated after every epoch and used for nothing; `--validation 0.1` holds
out training images and tests on them instead, which is how settings were chosen (seeds 0 to 2).

What was learned: an instance norm leaves every channel the same mean and spread, so that averages over whole maps tell
little and `--pool` averages their middle. In discrete time the gradients of five steps add up and edges come and go
faster than they learn: on the digits (200 edges, 10 epochs, seed 0, validation) top_k reaches 0.71 with the edges'
learning rate as it is, 0.89 with 0.3 of it (`--edge-lr`), 0.78 with 0.1; in the static graph (60 edges, 12 epochs)
0.90, 0.90 and 0.85.

MNIST, 6,000 training images, 3 epochs, batch 32, 120 usable edges each (`--data-dir DIR --train-images 6000 --epochs 3
--batch 32 --wiring random|top_k --seed S`), seeds 100, 101, 102: random 85.3, 87.4, 85.1 %, top_k 87.6, 90.7, 87.0 %
of the test images at the final epoch. Discovered graphs end with 116 to 120 of their edges on a path from an input to
an output, random ones with 37 to 47, and take 25 to 27 thousand multiplications instead of 41 to 45, for fewer nodes.

CIFAR-10, 10,000 training images, 10 epochs, batch 128, 32,000 usable edges each, static (`--data cifar10 --data-dir DIR
--train-images 10000 --epochs 10 --batch 128 --wiring random|top_k --seed S`), same seeds: random 53.1, 53.7, 54.5 %,
top_k 55.6, 54.9, 55.3 % at the final epoch. The full 160 epochs have not been run.

Keys of summary.json: `dataset`, `train_images`, `model`, `dynamics`, `wiring`, `nodes`, `edges` (in use at the end),
`usable_edges` (how many can be), `moved_edges` (new ones from one epoch to the next, summed), `initial_edges_left`
(share of the first edges that is still there), `live_edges` (on a path from an input to an output), `test_accuracy`
(final epoch), `frozen_test_accuracy` (live nodes and edges alone), `train_accuracy`, `validation` (whether tested on
held out images), `stored_numbers`, `macs` (multiplications with addition for an image), `macs_224` (mobilenet).

Pictures: accuracy.png; moved.png, how many of the first edges are still there and of the last ones already; wiring.png
and wiring.gif, the edges (target, source) over training, new ones orange and those that are gone blue;
adjacency.png; graph.png for small graphs. Of a chain they show the first graph.

`--evaluate FOLDER` judges the checkpoint of a run, whose options must be the same: `test_accuracy`,
`frozen_test_accuracy`, `largest_difference` of outputs, `milliseconds` and `frozen_milliseconds` for a batch of 100.

The whole experiment of the paper, 160 epochs on a GPU, resumable at every epoch:
`python -m experiments dnw --data-dir DIR --data cifar10 --preset blog --dynamics static --device cuda --resume`
(first without --resume), and --dynamics discrete and continuous.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ash import freeze
from ash.checks import positive, require
from ash.count import count
from experiments import node_pictures
from experiments.data import DataError, Images, cifar10, digits, mnist, standardise, train_validation
from experiments.evaluation import read_run
from experiments.image_source import InMemory, PictureFolder, Source, is_picture_folder
from experiments.node_nets import CHAIN, ChainedGraphs, Shape, SmallNet, graphs_of
from experiments.node_training import GraphTraining, accuracy
from experiments.node_wirings import PHASED, Driver, make_optimizer, wire
from experiments.options import EvaluateOptions
from experiments.runs import Run
from experiments.state import restore

SHAPES = {
    "digits": Shape(8, (16, 16), 12, 60, strides=(1, 2)),
    "mnist": Shape(8, (24, 24, 24), 20, 120),
    "cifar10": Shape(32, (192, 192, 192, 92), 100, 32_000),
}
QUICK_CHAIN = ((8, 16, 1, 1), (16, 24, 2, 2))
Ways = Literal[
    "top_k", "top_k_per_output", "no_update", "random", "complete", "set", "rigl", "gaussian", "targeted_dropout",
    "targeted_dropout_per_output", "fine_tune", "one_shot",
]  # fmt: skip


@dataclass
class Options(EvaluateOptions):
    """Options; where none is given, None stands for the data set's or the model's own."""

    data: Literal["mnist", "cifar10", "digits", "folder"] | None = None
    """The data set; digits without --data-dir, and with one MNIST."""
    data_dir: Path | None = None
    """Folder with the data."""
    model: Literal["small", "mobilenet"] = "small"
    """One graph, or a chain of five."""
    dynamics: Literal["static", "discrete", "continuous"] = "static"
    """How the graph is evaluated."""
    wiring: Ways = "top_k"
    """How edges are found."""
    edges: int | None = None
    """k of the small model; CIFAR-10 32,000, MNIST 120, digits 60."""
    width: float = 0.225
    """mobilenet: edges as in MobileNetV1 of this width."""
    small: bool = False
    """mobilenet: the last layer is sparse too."""
    pool: int | None = None
    """Small model: side of the square in the middle that is averaged, MNIST 3, others 2; 0: everything."""
    norm: Literal["instance", "batch"] = "instance"
    """Norm in the nodes of the small model."""
    dropout: float = 0.95
    """Of targeted dropout."""
    train_images: int = 0
    """So many training images, the first ones; 0: all."""
    validation: float = 0.0
    """Share of the training images that is held out and tested on, instead of the test set."""
    augment: bool | None = None
    """Flip and shift training images; CIFAR-10 and mobilenet yes."""
    epochs: int | None = None
    """Passes over the training images; CIFAR-10 160, MNIST 4, digits 20."""
    batch: int | None = None
    """Images in a batch; CIFAR-10 512, mobilenet 128, MNIST 128, digits 64."""
    lr: float | None = None
    """Learning rate at the start; 0.1, gaussian 0.01."""
    edge_lr: float | None = None
    """Factor of the edges' learning rate; static 1, in time 0.3."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """Of all parameters."""
    schedule: Literal["steps", "cosine"] = "cosine"
    """steps: a tenth from the middle on, a hundredth in the last quarter."""
    rewire_every: int | None = None
    """Steps between rewirings of set and rigl; a hundredth of the run."""
    rewire_fraction: float = 0.3
    """Share of the edges that the first rewiring drops."""

    may_change: ClassVar[frozenset[str]] = EvaluateOptions.may_change - {"epochs"}
    """One schedule spans the run, so that another number of epochs is another run."""

    def resolved(self) -> Options:
        """These options with the data set's and the model's own where none is given."""
        data = self.data or ("digits" if self.data_dir is None else "mnist")
        given = data == "digits" or self.data_dir is not None
        require(given, f"--data {data} without --data-dir; expected the folder where it lies.")
        own: dict[str, Any] = {**DEFAULTS[data], "data": data}
        if self.model == "mobilenet":
            own |= {"batch": 128, "augment": data != "mnist", "pool": 0, "edges": 0}
        own["edge_lr"] = 1.0 if self.dynamics == "static" else 0.3
        if self.wiring == "gaussian":
            own["lr"] = 0.01
        missing = {name: value for name, value in own.items() if getattr(self, name) is None}
        chosen = dataclasses.replace(self, **missing)
        for name in ("epochs", "batch", "lr", "edge_lr"):
            positive(f"--{name}", getattr(chosen, name))
        return dataclasses.replace(chosen, epochs=2, train_images=200, batch=50) if self.quick else chosen


DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"edges": 60, "epochs": 20, "batch": 64, "augment": False, "pool": 2, "lr": 0.1},
    "mnist": {"edges": 120, "epochs": 4, "batch": 128, "augment": False, "pool": 3, "lr": 0.1},
    "cifar10": {"edges": 32_000, "epochs": 160, "batch": 512, "augment": True, "pool": 2, "lr": 0.1},
    "folder": {"edges": 0, "epochs": 250, "batch": 512, "augment": True, "pool": 0, "lr": 0.1},
}


def _blog(options: Options) -> Options:
    """The paper's small-scale setting: 160 epochs, batch 512, steps at 80 and 120, the 2 x 2 pixels in the middle."""
    settings: dict[str, Any] = {"epochs": 160, "batch": 512, "lr": 0.1, "edge_lr": 1.0, "weight_decay": 1e-4}
    return dataclasses.replace(options, **settings, schedule="steps", pool=2)


PRESETS = {"blog": _blog}


def run(options: Options, run: Run) -> dict[str, object]:
    """Train one network; the keys stand in the module's docstring."""
    source = load(options, run.device)
    assert options.epochs is not None and options.batch is not None and options.lr is not None
    total = options.epochs * source.steps(options.batch)
    model = build(options, source, total).to(run.device)
    if options.evaluate is not None:
        return judge(options, model, source)
    rates = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
    optimizer = make_optimizer(options.wiring, model, **rates, edge_lr=options.edge_lr or 1.0)
    every = options.rewire_every or max(1, total // 100)
    driver = Driver(options.wiring, model, optimizer, total, every, options.rewire_fraction)
    training = GraphTraining(
        model, optimizer, driver, source, run, epochs=options.epochs, batch=options.batch, schedule=options.schedule
    )
    training()
    graphs = graphs_of(model)
    frames = [(step, edges[0]) for step, edges in training.record.frames]
    node_pictures.draw(run, graphs[0], frames, training.history)
    return summary(options, source, model.eval(), training)


# --- what is trained -----------------------------------------------------------------------------------


def load(options: Options, device: torch.device) -> Source:
    """The images, standardised."""
    folder = options.data_dir
    if options.data == "folder":
        assert folder is not None
        if not is_picture_folder(folder):
            raise DataError(f"{folder} has no train/ and val/; expected pictures in train/CLASS/ and val/CLASS/.")
        return PictureFolder(folder, device)
    images = digits() if folder is None else (cifar10 if options.data == "cifar10" else mnist)(folder)
    return InMemory(standardise(_part(images, options)), bool(options.augment), device)


def _part(images: Images, options: Options) -> Images:
    if options.validation:
        images = train_validation(images, options.validation, options.seed)
        images = dataclasses.replace(images, test_x=images.validation_x, test_y=images.validation_y)
    n = options.train_images or len(images.train_y)
    return dataclasses.replace(images, train_x=images.train_x[:n], train_y=images.train_y[:n])


def build(options: Options, source: Source, total: int) -> nn.Module:
    """The network that the options name."""
    wires = wire(options.wiring, total, options.dropout)
    if options.model == "mobilenet":
        chain, stride = (QUICK_CHAIN if options.quick else CHAIN), 1 if source.size <= 64 else 2
        kind: dict[str, Any] = {"small": options.small, "stride": stride, "chain": chain, "dynamics": options.dynamics}
        return ChainedGraphs(options.width, wires, source.channels, source.classes, **kind)
    assert options.edges is not None and options.pool is not None and options.data is not None
    shape = dataclasses.replace(SHAPES[options.data], edges=options.edges)
    return SmallNet(shape, source.channels, source.classes, wires, options.dynamics, options.pool, options.norm)


# --- what was found ------------------------------------------------------------------------------------


def summary(options: Options, source: Source, model: nn.Module, training: GraphTraining) -> dict[str, object]:
    """The keys that the module's docstring tells."""
    first, last = training.record.frames[0][1], training.record.last
    kept = sum(int(torch.isin(now, then).sum()) for now, then in zip(last, first, strict=True))
    frozen, figures = freeze(model), training.history[-1]
    size = count(model, _example(source))
    found: dict[str, object] = {
        "dataset": source.name,
        "train_images": source.train_images,
        "model": options.model,
        "dynamics": options.dynamics,
        "wiring": options.wiring,
        "nodes": sum(graph.nodes for graph in graphs_of(model)),
        "edges": sum(map(len, last)),
        "usable_edges": sum(graph.wiring.admissible.count() for graph in graphs_of(model)),
        "moved_edges": training.record.moved,
        "initial_edges_left": None if options.wiring in PHASED else kept / sum(map(len, first)),
        "live_edges": sum(graph.wiring.stored_entries() for graph in graphs_of(frozen)),
        "test_accuracy": figures["test_accuracy"],
        "frozen_test_accuracy": accuracy(frozen, source),
        "train_accuracy": figures["train_accuracy"],
        "validation": options.validation > 0,
        "stored_numbers": size.stored_numbers,
        "macs": size.flops // 2,
    }
    if options.model == "mobilenet" and source.channels == 3 and not options.quick:
        found["macs_224"] = _at_224(options, model)
    return found


def _example(source: Source) -> Tensor:
    x = next(iter(source.test()))[0]
    return x[:1]


def _at_224(options: Options, model: nn.Module) -> int:
    """Of the same wiring at 224 x 224, where the first convolution has stride 2."""
    graphs = graphs_of(model)
    stem = next(module for module in graphs[0].modules() if isinstance(module, nn.Conv2d))
    stride, stem.stride = stem.stride, (2, 2)
    flops = count(model, torch.zeros(1, 3, 224, 224, device=next(model.parameters()).device)).flops
    stem.stride = stride
    return flops // 2


@torch.no_grad()
def judge(options: Options, model: nn.Module, source: Source) -> dict[str, object]:
    """The figures of `--evaluate`."""
    saved = read_run(options, "dnw")
    restore({**saved.state, "optimizer": None}, model)
    model.eval()
    x = next(iter(source.test()))[0][:100]
    frozen = freeze(model)
    return {
        "dataset": source.name,
        "wiring": options.wiring,
        "test_accuracy": accuracy(model, source),
        "frozen_test_accuracy": accuracy(frozen, source),
        "largest_difference": float((model(x) - frozen(x)).abs().max()),
        "milliseconds": _milliseconds(model, x),
        "frozen_milliseconds": _milliseconds(frozen, x),
        "macs": count(model, x[:1]).flops // 2,
        "frozen_macs": count(frozen, x[:1]).flops // 2,
    }


def _milliseconds(model: nn.Module, x: Tensor) -> float:
    """The median of nine passes."""
    taken = []
    for _ in range(10):
        begin = time.perf_counter()
        model(x).sum().item()
        taken.append(1000 * (time.perf_counter() - begin))
    return sorted(taken[1:])[4]
