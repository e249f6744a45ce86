"""A two-layer classifier of digits whose hidden layer is sparse and learns which pixels it reads.

Every hidden unit has some index tuples: the unit is fixed, the pixel (row, column) is a Gaussian that is
learned, and so is the value. In training its weight spreads over sampled pixels around it; in evaluation
the means are rounded. `--model` chooses, the first three with equally many stored numbers:

  ash      Gaussians, learned
  frozen   the same Gaussians, rounded and frozen at the start; values are learned
  static   random different pixels for every unit (--placement uniform, or centre: by the same normal
           density from which the Gaussians start); values are learned
  dense    the dense net inputs-300-10
  conv     a convolution with about as many numbers behind it as there are hidden units (28 x 28 pixels,
           300 units: 12 channels of 5 x 5, kernel 8 x 8, stride 5), ReLU, a dense layer to the classes

Four more look at every image anew, or stand beside that (`experiments.adaptive`), with equally many learned numbers:

  hyper    two adaptive layers: a hypernetwork that sees the image at a quarter of its resolution (--view)
           emits the index tuples of every image's own sparse weights
  fixed    the same layers, without what is emitted: positions and values are learned, alike for all images
  trunk    the hypernetwork's trunk, on the same view, with a hidden and a linear layer instead
  convnet  hyper's convolutions at full resolution, with max-pooling in place of the adaptive layers

Stored numbers are a value and a flattened index for every tuple, and the weights of dense layers; biases
and row pointers apart. `--density` is their share of the weights of the dense net of the same shape, which is
always inputs-300-classes: 784*300 + 300*10 = 238,200 on MNIST. There are as many hidden units (300 at most)
as can have `--tuples` tuples each; what is left over goes to further tuples, dealt out evenly.

Data: IDX files in --data-dir (MNIST or a set in its format), else scikit-learn's digits, 8 x 8. A tenth
of the training set, drawn by the seed, is for validation; nothing is chosen by the test set.

Keys of summary.json: `dataset`, `model`, `density`, `hidden`, `tuples`, `test_accuracy` (final epoch, means
rounded), `test_accuracy_at_best_validation`, `best_epoch`, `validation_accuracy`, `train_accuracy`,
`stored_numbers`, `index_bytes`, `dense_weights`; where the network is sampled in training also
`test_accuracy_rounded` and `test_accuracy_sampled` (points drawn as in training), and `collided`, tuples
that end on the entry of another one.

Keys of hyper and the nets beside it: `dataset`, `model`, `parameters` (learned numbers), the accuracies as above; of
hyper and fixed `test_accuracy_rounded`, `test_accuracy_sampled`, the same of the validation set, `tuples` and
`emitted` (numbers, for one image), `codebook`.

What decides, in points of validation accuracy at 1 % (62 units; mean of seeds 0 to 2, whose noise is about
0.1): 28 epochs rather than 14 gain 0.4, and the dense second layer makes 14 tuples a unit the right number
(10: -0.3, 20: -0.2). Steps of the means of 0.05 and 0.1 scales are alike, 0.2 costs 0.3. Values need the rest
of the run after the means are frozen: then it hardly matters whether scales have shrunk to 0.3 or to 1.

`--evaluate FOLDER` judges the net that the run in that folder has trained, in the state of its --checkpoint (best:
where the validation accuracy was highest); with --model ash also as it is sampled.

Pictures: accuracy.png; pixels.png, how many hidden units read each pixel (dense: the sum of absolute
weights), over training; units.png, what the units of largest effect read; reading.png,
test images and what the first adaptive layer reads of each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ash import Context, Sampling, Wiring
from ash.checks import positive, require
from ash.count import count
from ash.optim import parameter_groups
from ash.plot import TupleTrack
from experiments import models, pixels
from experiments.adaptive_options import ADAPTIVE, AdaptiveOptions, check_adaptive, own_defaults
from experiments.adaptive_training import build as build_adaptive
from experiments.adaptive_training import classify
from experiments.classify import Plan, Training, gaussian_wirings, judge
from experiments.data import Images, cifar10, digits, download_mnist, mnist, standardise, train_validation
from experiments.evaluation import read_run
from experiments.loop import LoopOptions
from experiments.options import EvaluateOptions
from experiments.runs import Run
from experiments.state import load_model

VALIDATION, WIDTH, QUICK = 0.1, 300, 1000
MNIST: dict[str, Any] = {"density": 0.05, "epochs": 30, "batch": 256}
DIGITS: dict[str, Any] = {"density": 0.1, "epochs": 100, "batch": 64}
PARTS = ("train_x", "train_y", "validation_x", "validation_y", "test_x", "test_y")


@dataclass
class Options(AdaptiveOptions, EvaluateOptions, LoopOptions):
    """Options; where none is given, None stands for the data set's or the model's own."""

    model: Literal["ash", "static", "frozen", "dense", "conv", "hyper", "fixed", "trunk", "convnet"] = "ash"
    """What wires the hidden layer; hyper is two adaptive layers, and fixed, trunk, convnet stand beside it."""
    data_dir: Path | None = None
    """Folder with the data of --data; scikit-learn's digits without it."""
    download: bool = False
    """Fetch MNIST into --data-dir (data/mnist by default) and check it."""
    density: float | None = None
    """Stored numbers over the weights of the dense net; 0.05, digits 0.1."""
    tuples: int = 14
    """Tuples of a hidden unit."""
    outgoing: int = 0
    """Tuples from a hidden unit to the classes; 0: the second layer is dense."""
    placement: Literal["uniform", "centre"] = "uniform"
    """Where static entries lie."""
    spread: float = 0.2
    """Deviation of the starting positions around the centre, as a share of the image's size."""
    epochs: int | None = None
    """Passes over the training set; 30, digits 100; hyper 6, digits 60."""
    batch: int | None = None
    """Images in a batch; 256, hyper 128, digits 64."""
    lr: float = 1e-2
    """Learning rate of values, weights and biases."""
    mean_lr: float = 0.05
    """Step of the means, in units of a tuple's own scale."""
    scale_lr: float = 0.03
    """Learning rate of the logarithms of scales, where they are learned."""
    weight_decay: float = 0.1
    """Decoupled decay of values, weights and biases."""
    kernel: str | None = None
    """gaussian, student_t or student_t(nu); student_t, hyper gaussian."""
    context: Literal["tuple", "chunk", "all"] = "tuple"
    """Which tuples share their points: its own, those of as many neighbours as a unit has, all."""
    local_samples: int | None = None
    """Points around each mean, besides its corners; 2, hyper none."""
    global_samples: int = 0
    """Points anywhere in the image."""
    guided_samples: int = 0
    """Points where the last batch's gradient was largest."""
    scale: float | None = None
    """Scale at the start, in pixels; 3/28 of the image's size if not given, hyper 0.7."""
    scale_end: float | None = None
    """Scale when the means freeze; 0.3, hyper 0.05."""
    scheduled_scale: bool = True
    """Take the scale from start to end on a schedule; otherwise it is learned, with the end as floor."""
    freeze: float = 0.7
    """Share of the run after which means are rounded and frozen; 1: never."""
    subset: float = 1.0
    """Share of the tuples that is sampled and trained in a batch."""
    dimensions: Literal[1, 2] = 2
    """Whether a pixel is an index or a row and a column."""

    may_change: ClassVar[frozenset[str]] = EvaluateOptions.may_change - {"epochs"}
    """One cosine spans the run, so that another number of epochs is another run."""

    def resolved(self) -> Options:
        """These options with the data set's own where none is given."""
        own: dict[str, Any] = MNIST if self.data_dir or self.download else DIGITS
        missing = {name: value for name, value in own.items() if getattr(self, name) is None}
        if self.model in ADAPTIVE:
            missing = own_defaults(self)
        return dataclasses.replace(self, **missing | ({"epochs": 2} if self.quick else {}))


def blog(options: Options) -> Options:
    """The blog's two sparse layers, half of the tuples trained in a batch; it reports 'about 90 percent'."""
    return dataclasses.replace(options, outgoing=3, subset=0.5)


PRESETS = {"blog": blog}


def run(options: Options, run: Run) -> dict[str, object]:
    """Train, draw, and return the figures."""
    if options.evaluate is not None:
        return evaluate(options, run)
    options, images = prepare(options, run)
    if options.model in ADAPTIVE:
        return classify(options, images, run)
    height, width = images.train_x.shape[1:]
    n, shape = len(images.train_y), (height, width)
    plan, budget = plan_of(options), budget_of(options, images)
    model = build(options, budget, shape, plan.freeze_at(n)).to(run.device)
    rates = {"mean_lr": options.mean_lr, "scale_lr": options.scale_lr, "weight_decay": options.weight_decay}
    optimizer = torch.optim.AdamW(parameter_groups(model, options.lr, **rates), fused=True)

    def look(model: nn.Sequential) -> Tensor:
        return torch.zeros(0) if options.model == "conv" else pixels.readers(model, shape)

    training = Training(model, optimizer, images, plan, run, look, draws=options.model == "ash")
    training()
    draw(training, run, options, shape)
    return summary(options, images, budget, training)


def evaluate(options: Options, run: Run) -> dict[str, object]:
    """The accuracies of the net that a run has trained, by that run's options and on the parts that it had."""
    saved = read_run(options, "mnist")
    options, images = prepare(dataclasses.replace(options, **saved.meta["options"]), run)
    height, width = images.train_x.shape[1:]
    plan, n = plan_of(options), len(images.train_y[: options.train_images or None])
    if options.model in ADAPTIVE:
        model = build_adaptive(options, images, plan.steps(n))
    else:
        model = build(options, budget_of(options, images), (height, width), plan.freeze_at(n))
    load_model(saved.state["model"], model.to(run.device))
    figures = {"dataset": images.name, "model": options.model, "checkpoint": options.checkpoint}
    return {**figures, "trained_steps": saved.meta["step"], **judge(model, images, draws=options.model == "ash")}


def prepare(options: Options, run: Run) -> tuple[Options, Images]:
    """The options as resolved, and the data, standardised, on the device."""
    folder = options.data_dir
    if options.download:
        folder = download_mnist(folder or Path("data") / "mnist")
    options = options.resolved()
    check(options)
    read = cifar10 if options.data == "cifar10" else mnist
    images = digits() if folder is None else read(folder)
    if options.quick:
        images = change(images, lambda part: part[:QUICK])
    images = standardise(train_validation(images, VALIDATION, options.seed))
    return options, change(images, lambda part: part.to(run.device))


def change(images: Images, how: Callable[[Tensor], Tensor]) -> Images:
    """The same data with every tensor changed."""
    tensors: dict[str, Any] = {name: how(getattr(images, name)) for name in PARTS}
    return dataclasses.replace(images, **tensors)


def check(options: Options) -> None:
    """Raise `UserError` for numbers that no run can do with."""
    for name in ("lr", "spread", "scale_end", "scale"):
        if getattr(options, name) is not None:
            positive(f"--{name.replace('_', '-')}", getattr(options, name))
    for name in ("mean_lr", "scale_lr", "weight_decay"):
        positive(f"--{name.replace('_', '-')}", getattr(options, name), zero=True)
    for name in ("epochs", "batch"):
        require(getattr(options, name) >= 1, f"--{name} {getattr(options, name)}; expected at least 1.")
    require(0 <= options.freeze <= 1, f"--freeze {options.freeze}; expected a share from 0 to 1.")
    cifar = options.data == "cifar10"
    require(not cifar or options.data_dir is not None, "--data cifar10 without its folder; give it by --data-dir.")
    require(not cifar or not options.download, "--download fetches MNIST; leave it out with --data cifar10.")
    check_adaptive(options)


def plan_of(options: Options) -> Plan:
    """How the options train."""
    return Plan(options.epochs or 0, options.batch or 0, options.freeze)


def budget_of(options: Options, images: Images) -> models.Budget:
    """What the options allow a net for these images to store."""
    inputs = math.prod(images.train_x.shape[1:])
    return models.allot(options.density or 0.0, inputs, images.classes, options.tuples, options.outgoing, WIDTH)


def build(options: Options, budget: models.Budget, shape: tuple[int, int], steps: int) -> nn.Sequential:
    """The network that `--model` names; scales reach their end after `steps`."""
    if options.model == "dense":
        return models.dense_classifier(math.prod(shape), WIDTH, budget.classes)
    if options.model == "conv":
        return models.conv_classifier(shape, budget.hidden, budget.classes)
    first, second = (static if options.model == "static" else gaussian)(options, budget, shape, steps)
    model = models.sparse_classifier(first, budget.classes, second)
    if options.model == "frozen":
        for wiring in gaussian_wirings(model):
            wiring.freeze()
    return model


def static(options: Options, budget: models.Budget, shape: tuple[int, int], steps: int) -> tuple[Wiring, Wiring | None]:
    """Random entries for both layers (None: dense)."""
    centre = options.placement == "centre"
    weights = models.centre_weights(shape, options.spread) if centre else torch.ones(math.prod(shape))
    second = models.static_classes(budget) if budget.outgoing else None
    return models.static_pixels(budget, shape, options.dimensions == 1, weights), second


def gaussian(
    options: Options, budget: models.Budget, shape: tuple[int, int], steps: int
) -> tuple[Wiring, Wiring | None]:
    """Index tuples for both layers (None: dense)."""
    local = 2 if options.local_samples is None else options.local_samples
    samples = Sampling(True, options.global_samples, local, options.guided_samples)
    context = Context(options.context, chunk_size=options.tuples, shuffle=False)
    kernel, end = options.kernel or "student_t", 0.3 if options.scale_end is None else options.scale_end
    how = models.Gaussians(steps, kernel, context, samples, end, options.scheduled_scale, options.subset)
    scale = 3 / 28 * max(shape) if options.scale is None else options.scale
    second = models.gaussian_classes(budget, how) if budget.outgoing else None
    return models.gaussian_pixels(budget, shape, options.dimensions == 1, options.spread, scale, how), second


def draw(training: Training, run: Run, options: Options, shape: tuple[int, int]) -> None:
    """The pictures; a convolution has none of pixels."""
    training.draw(run.path("accuracy.png"))
    if len(training.frames):
        show_tuples(training, run)
    if options.model == "conv":
        return
    moving = options.freeze if options.model == "ash" else 1.0
    until = math.ceil(moving * training.plan.epochs)
    label = "sum of absolute weights" if options.model == "dense" else "hidden units that read the pixel"
    pixels.draw_readers(training.seen, until, run.path("pixels.png"), label)
    pixels.draw_units(training.model, shape, run.path("units.png"))


def show_tuples(training: Training, run: Run) -> None:
    """The tuples of the hidden layer over training, for the page: in the plane of the pixels, if they lie in one."""
    wiring = gaussian_wirings(training.model)[0]
    plane = (1, 2) if wiring.rank > 2 else None
    run.show("what the hidden units read", TupleTrack(training.frames, columns=plane, total=wiring.k))


def summary(options: Options, images: Images, budget: models.Budget, training: Training) -> dict[str, object]:
    """The keys that the module's docstring tells."""
    last, best, size = training.history[-1], training.best, count(training.model)
    result: dict[str, object] = {
        "dataset": images.name,
        "model": options.model,
        "density": size.stored_numbers / budget.dense_weights,
        "hidden": training.model[-1].in_features,
        "test_accuracy": last["test_accuracy"],
        "test_accuracy_at_best_validation": best["test_accuracy"],
        "best_epoch": best["epoch"],
        "validation_accuracy": last["validation_accuracy"],
        "train_accuracy": last["train_accuracy"],
    }
    if training.draws:
        result["test_accuracy_rounded"] = last["test_accuracy"]
        result["test_accuracy_sampled"] = last["test_accuracy_sampled"]
    wirings = gaussian_wirings(training.model)
    if wirings:
        entries = [wiring.rounded_indices() for wiring in wirings]
        result["tuples"] = sum(len(each) for each in entries)
        result["collided"] = sum(len(each) - len(each.unique(dim=0)) for each in entries)
    sizes = {"stored_numbers": size.stored_numbers, "index_bytes": size.index_bytes}
    return result | sizes | {"dense_weights": budget.dense_weights}
