"""A two-layer classifier of digits whose hidden layer is sparse and learns which pixels it reads.

Every hidden unit has some index tuples: the unit is fixed, the pixel (row, column) is a Gaussian that is
learned, and so is the value. At the end of training the means are rounded, and the network is a sparse
matrix. `--model` chooses what stands beside it, all with the same number of stored numbers:

  ash      Gaussians, learned
  frozen   the same Gaussians, rounded and frozen at the start; values are learned
  static   random different pixels for every unit (--placement uniform, or centre: by the same normal
           density from which the Gaussians start); values are learned
  dense    the dense net inputs-300-10
  conv     one convolution with about as many numbers behind it as there are hidden units (28 x 28 pixels,
           300 units: 12 channels of 5 x 5, kernel 8 x 8, stride 5), ReLU, a dense layer to the classes

Stored numbers are a value and a flattened index for every tuple, and the weights of dense layers; biases
and row pointers apart. `--density` is their share of the weights of the dense net of the same shape, which is
always inputs-300-classes: 784*300 + 300*10 = 238,200 on MNIST. There are as many hidden units (300 at most)
as can have `--tuples` tuples each; what is left over goes to further tuples, dealt out evenly.

Data: IDX files in --data-dir (MNIST or a set in its format), else scikit-learn's digits, 8 x 8. A tenth of the
training set, drawn by the seed, is for validation; nothing is chosen by the test set.

Keys of summary.json: `dataset`, `model`, `density`, `hidden`, `tuples`, `test_accuracy` (final epoch, means
rounded), `test_accuracy_at_best_validation`, `best_epoch`, `validation_accuracy`, `train_accuracy`,
`stored_numbers`, `index_bytes`, `dense_weights`; where the network is sampled in training also
`test_accuracy_rounded` and `test_accuracy_sampled` (points drawn as in training), and `collided`, tuples
that end on the entry of another one.

Pictures: accuracy.png; pixels.png, how many hidden units read each pixel (dense: the sum of absolute
weights), over training; units.png, what the units of largest effect read.
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

from ash import Anneal, Context, GaussianWiring, Sampling, SparseLayer, StaticWiring, Template, Wiring
from ash.checks import positive, require
from ash.count import count
from ash.optim import parameter_groups
from ash.plot import curves, image_grid
from experiments import models
from experiments.classify import Plan, Training, gaussian_wirings
from experiments.data import Images, digits, download_mnist, mnist, standardise, train_validation
from experiments.runs import Run, RunOptions

VALIDATION = 0.1
WIDTH = 300


@dataclass
class Options(RunOptions):
    """Options; where none is given, None stands for the data set's own."""

    model: Literal["ash", "static", "frozen", "dense", "conv"] = "ash"
    """What wires the hidden layer."""
    data_dir: Path | None = None
    """Folder with the four IDX files, gzip or not; scikit-learn's digits without it."""
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
    """Passes over the training set; 14, digits 100."""
    batch: int | None = None
    """Images in a batch; 256, digits 64."""
    lr: float = 1e-2
    """Learning rate of values, weights and biases."""
    mean_lr: float = 0.05
    """Step of the means, in units of a tuple's own scale."""
    weight_decay: float = 0.1
    """Decoupled decay of values, weights and biases."""
    kernel: str = "student_t"
    """gaussian, student_t or student_t(nu)."""
    context: Literal["tuple", "chunk", "all"] = "tuple"
    """Which tuples share their points; a chunk is a hidden unit."""
    local_samples: int = 2
    """Points around each mean, besides its corners."""
    global_samples: int = 0
    """Points anywhere in the image."""
    guided_samples: int = 0
    """Points where the last batch's gradient was largest."""
    scale: float | None = None
    """Scale at the start, in pixels; 3/28 of the image's size if not given."""
    scale_end: float = 0.3
    """Scale when the means freeze."""
    scheduled_scale: bool = True
    """Take the scale from start to end on a schedule; otherwise it is learned, with the end as floor."""
    freeze: float = 0.7
    """Share of the run after which means are rounded and frozen; 1: never."""
    subset: float = 1.0
    """Share of the tuples that is sampled and trained in a batch."""
    dimensions: Literal[1, 2] = 2
    """Whether a pixel is an index or a row and a column."""

    may_change: ClassVar[frozenset[str]] = RunOptions.may_change - {"epochs"}


def blog(options: Options) -> Options:
    """The blog's two sparse layers, half of the tuples trained in a batch; it reports 'about 90 percent'."""
    return dataclasses.replace(options, outgoing=3, subset=0.5)


PRESETS = {"blog": blog}


def run(options: Options, run: Run) -> dict[str, object]:
    """Train, draw, and return the figures."""
    options, images = prepare(options, run)
    shape = (images.train_x.shape[1], images.train_x.shape[2])
    budget = models.allot(
        options.density or 0.0, math.prod(shape), images.classes, options.tuples, options.outgoing, WIDTH
    )
    plan = Plan(options.epochs or 1, options.batch or 1, options.freeze)
    model = build(options, budget, shape, anneal_steps(plan, images)).to(run.device)
    optimizer = torch.optim.AdamW(
        parameter_groups(
            model, options.lr, mean_lr=options.mean_lr, weight_decay=options.weight_decay
        )
    )
    training = Training(model, optimizer, images, plan, run, look, draws=options.model == "ash")
    training()
    draw(training, run, options)
    return summary(options, images, budget, model, training)


def prepare(options: Options, run: Run) -> tuple[Options, Images]:
    """The options with the data set's own filled in, and the data on the device, standardised."""
    folder = options.data_dir
    if options.download:
        folder = download_mnist(folder or Path("data") / "mnist")
    images = digits() if folder is None else mnist(folder)
    own = {"density": 0.1, "epochs": 100, "batch": 64} if folder is None else {"density": 0.05, "epochs": 14, "batch": 256}
    chosen = dataclasses.replace(options, **{k: v for k, v in own.items() if getattr(options, k) is None})
    if options.quick:
        chosen = dataclasses.replace(chosen, epochs=2)
        images = first(images, 1000)
    check(chosen)
    images = standardise(train_validation(images, VALIDATION, options.seed))
    parts = {k: v.to(run.device) for k, v in vars(images).items() if isinstance(v, Tensor)}
    return chosen, dataclasses.replace(images, **parts)
