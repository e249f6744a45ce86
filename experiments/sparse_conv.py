"""Accuracy of a residual network against its sparsity, with all layers sparse and with the first one dense.

The figure of the seed document on discovered wirings: every convolution and the linear layer keep the k largest
weights of a dense tensor, all of which learn (`--wiring top_k`); biases and batch norms stay dense. `small` is a
ResNet of three blocks, 16, 32 and 64 channels, which starts with stride 2 and a pooling, so that a network takes
about a minute on one core; `resnet18` and `resnet50` are the usual ones. By default the figure at a scale for the CPU:
10,000 training images, 15 epochs; `--preset cifar10` is the whole of CIFAR-10 with ResNet-18, `--preset blog`
ResNet-50 on ImageNet, with the schedule of ours where the document gives none.

Data: CIFAR-10 in --data-dir (cifar-10-batches-py), or a folder with train/CLASS/… and val/CLASS/… pictures, as
ImageNet's; without it scikit-learn's digits. The test set is looked at once for each network, at its final epoch.

Keys of summary.json: `dataset`, `model`, `width`, `wiring`, `dense_weights`, `epochs`, `train_images`, `seeds`, and
`rows`, a list with, for each sparsity and each choice of the first layer, `sparsity` (share of the weights of every
sparse layer that do not exist; 0: the dense network), `first_dense`, `test_accuracy` (final epoch, mean of the seeds),
`spread` (standard deviation), `seeds` (how many), `stored_numbers`. Also table.md and, as a picture, accuracy.png.
A run that is resumed may be given more densities or seeds.

By `--seed 100 --seeds 3 --data-dir CIFAR` on the CPU (settings the usual ones, not tuned; test accuracy in per cent,
mean of the seeds and their deviation): dense 59.4 ± 0.2; from 10 to 50 % sparsity both lie within 1.4 of it; at 70 %
the first layer dense 57.7 ± 0.2, all sparse 56.6 ± 0.2; at 90 % 55.8 ± 0.9 and 48.6 ± 0.8.

With `--evaluate FOLDER`, nothing is trained: the last network of that run's checkpoint is judged, as it is and
frozen by `ash.freeze`. Keys: `density`, `first_dense`, `network_seed`, `test_accuracy`, `frozen_test_accuracy`,
`largest_difference` (of outputs on a batch), `forms`, `milliseconds` and `frozen_milliseconds` for that batch.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ash import freeze
from ash.checks import positive, require
from ash.plot import curves
from experiments import conv_training
from experiments.conv_training import Network, Row, Training
from experiments.data import DataError, Images, cifar10, digits, standardise
from experiments.evaluation import read_run
from experiments.image_source import InMemory, PictureFolder, Source, is_picture_folder
from experiments.options import EvaluateOptions
from experiments.runs import Run
from experiments.state import restore

QUICK = 200


@dataclass
class Options(EvaluateOptions):
    """Options; where none is given, None stands for the model's own."""

    model: Literal["small", "resnet18", "resnet50"] = "small"
    """The residual network."""
    width: int | None = None
    """Channels of its first stage; small 16, the others 64."""
    wiring: Literal["top_k", "random", "set", "rigl", "gaussian"] = "top_k"
    """What decides which weights exist."""
    density: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Shares of the weights that exist, one network each; a dense network stands beside them."""
    first: Literal["both", "sparse", "dense"] = "both"
    """Whether the first layer is sparse too."""
    distribution: Literal["uniform", "er", "erk"] = "uniform"
    """How the weights that exist are shared out among layers."""
    seeds: int = 3
    """Networks for each density, with seeds from --seed on."""
    data_dir: Path | None = None
    """Folder with CIFAR-10 or with ImageNet's pictures; scikit-learn's digits without it."""
    train_images: int | None = 10_000
    """So many training images, the first ones; 0: all. Pictures in folders are always taken whole."""
    augment: bool = True
    """Flip and shift training images."""
    epochs: int = 15
    """Passes over the training images."""
    batch: int = 256
    """Images in a batch."""
    lr: float | None = None
    """Learning rate at the start of its cosine; 0.1, gaussian 0.003 (AdamW)."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Of all weights."""
    rewire_every: int | None = None
    """Steps between rewirings of set and rigl; a fiftieth of the run."""

    may_change: ClassVar[frozenset[str]] = EvaluateOptions.may_change - {"steps", "epochs", "download"} | {
        "density",
        "seeds",
        "first",
    }

    def resolved(self) -> Options:
        """The options with those of the model and the quick run; raises `UserError` for numbers out of range."""
        for density in self.density:
            require(0 < density <= 1, f"--density {density}; expected numbers above 0 and at most 1.")
        for name in ("seeds", "epochs", "batch"):
            positive(f"--{name}", getattr(self, name))
        width = (16 if self.model == "small" else 64) if self.width is None else self.width
        positive("--width", width)
        lr = (3e-3 if self.wiring == "gaussian" else 0.1) if self.lr is None else self.lr
        chosen = dataclasses.replace(self, width=width, lr=lr)
        return _quick(chosen) if self.quick else chosen


def _quick(options: Options) -> Options:
    """Two densities, a narrow network, a few images."""
    return dataclasses.replace(
        options, density=(0.1, 0.5), seeds=1, width=4, train_images=QUICK, epochs=2, batch=64, augment=False
    )


TENTHS = tuple(round(0.1 * i, 1) for i in range(1, 10))


def _cifar10(options: Options) -> Options:
    """ResNet-18 on all of CIFAR-10, 160 epochs, batch 128, all multiples of 10 %."""
    return dataclasses.replace(options, model="resnet18", density=TENTHS, train_images=0, epochs=160, batch=128)


def _blog(options: Options) -> Options:
    """ResNet-50 on ImageNet, 100 epochs, batch 256, weight decay 1e-4, all multiples of 10 %, one seed."""
    return dataclasses.replace(
        options, model="resnet50", density=TENTHS, train_images=0, epochs=100, seeds=1, weight_decay=1e-4
    )


PRESETS = {"cifar10": _cifar10, "blog": _blog}


def run(options: Options, run: Run) -> dict[str, object]:
    """Train the networks of all rows; the keys that the module's docstring tells."""
    source = load(options, run.device)
    if options.evaluate is not None:
        return judge(options, source, run.device)
    training = Training(network(options, source), _plan(options), source, run)
    results = training(rows(options))
    found = summary(options, source, results, training.dense_weights())
    draw(found["rows"], run)  # type: ignore[arg-type]
    (run.path("table.md")).write_text(table(found["rows"]), encoding="utf-8")  # type: ignore[arg-type]
    return found


def load(options: Options, device: torch.device) -> Source:
    """The images of --data-dir."""
    folder = options.data_dir
    if folder is not None and is_picture_folder(folder):
        return PictureFolder(folder, device)
    if folder is not None and not folder.is_dir():
        raise DataError(f"--data-dir {folder} is no folder; expected CIFAR-10's, or one with train/ and val/.")
    images = digits() if folder is None else cifar10(folder)
    return InMemory(standardise(_first(images, options.train_images)), options.augment, device)


def _first(images: Images, count: int | None) -> Images:
    if not count:
        return images
    return dataclasses.replace(images, train_x=images.train_x[:count], train_y=images.train_y[:count])


def network(options: Options, source: Source) -> Network:
    """What the networks have in common."""
    assert options.width is not None
    return Network(options.model, options.width, options.wiring, options.distribution, source)


def _plan(options: Options) -> conv_training.Plan:
    assert options.lr is not None
    return conv_training.Plan(
        options.epochs, options.batch, options.lr, options.momentum, options.weight_decay, options.rewire_every
    )


def rows(options: Options) -> list[Row]:
    """All networks to train: those of the first seed before those of the second, the dense one last of each."""
    firsts = {"both": (False, True), "sparse": (False,), "dense": (True,)}[options.first]
    seeds = range(options.seed, options.seed + options.seeds)
    sparse = [(density, first) for density in options.density for first in firsts if density < 1]
    return [Row(density, first, seed) for seed in seeds for density, first in [*sparse, (1.0, True)]]


# --- what was found ------------------------------------------------------------------------------------


def summary(options: Options, source: Source, results: list[dict[str, Any]], weights: int) -> dict[str, object]:
    """The keys that the module's docstring tells."""
    return {
        "dataset": source.name,
        "model": options.model,
        "width": options.width,
        "wiring": options.wiring,
        "dense_weights": weights,
        "epochs": options.epochs,
        "train_images": source.train_images,
        "seeds": options.seeds,
        "rows": _merged(results),
    }


def _merged(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each density and first layer: mean and spread over its seeds."""
    keys = sorted({(each["density"], each["first_dense"]) for each in results}, reverse=True)
    merged = []
    for density, first in keys:
        own = [each for each in results if (each["density"], each["first_dense"]) == (density, first)]
        accuracies = torch.tensor([each["test_accuracy"] for each in own], dtype=torch.float64)
        merged.append({
            "sparsity": round(1 - density, 6),
            "first_dense": first,
            "test_accuracy": float(accuracies.mean()),
            "spread": float(accuracies.std()) if len(own) > 1 else 0.0,
            "seeds": len(own),
            "stored_numbers": own[0]["stored_numbers"],
        })  # fmt: skip
    return merged


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, accuracies in per cent."""
    head = "| sparsity | first layer | test accuracy, % | seeds | stored numbers |\n|---|---|---|---|---|\n"
    lines = []
    for row in rows:
        first = "dense" if row["first_dense"] else "sparse"
        accuracy = f"{100 * row['test_accuracy']:.2f} ± {100 * row['spread']:.2f}"
        cells = (f"{100 * row['sparsity']:g} %", first, accuracy, row["seeds"], f"{row['stored_numbers']:,}")
        lines.append(f"| {' | '.join(map(str, cells))} |\n")
    return head + "".join(lines)


def draw(rows: list[dict[str, Any]], run: Run) -> None:
    """Accuracy against sparsity, a line for each choice of the first layer; both begin at the dense network."""
    series = {}
    for first, label in ((True, "first layer dense"), (False, "all layers sparse")):
        mine = [row for row in rows if row["first_dense"] == first or not row["sparsity"]]
        own = sorted((row["sparsity"], row["test_accuracy"]) for row in mine)
        if any(sparsity for sparsity, _ in own):
            series[label] = ([100 * sparsity for sparsity, _ in own], [100 * accuracy for _, accuracy in own])
    if series:
        curves(series, run.path("accuracy.png"), ylabel="test accuracy, %", xlabel="sparsity, %")


# --- judging a trained network -------------------------------------------------------------------------


def judge(options: Options, source: Source, device: torch.device) -> dict[str, object]:
    """Accuracy and time of the last network of a run, as it is and frozen."""
    saved = read_run(options, "sparse_conv")
    given = {name: saved.meta["options"][name] for name in ("model", "width", "wiring", "distribution")}
    current = saved.state["current"]
    row = Row(*current["row"])
    model = network(dataclasses.replace(options, **given), source).build(row).to(device)
    restore(current["training"] | {"optimizer": None}, model)
    x, _ = next(source.test())
    frozen = freeze(model.eval(), x)
    with torch.no_grad():
        apart = float((frozen(x) - model(x)).abs().max())
    return {
        "density": row.density,
        "first_dense": row.first_dense,
        "network_seed": row.seed,
        "test_accuracy": conv_training.accuracy(model, source),
        "frozen_test_accuracy": conv_training.accuracy(frozen, source),
        "largest_difference": apart,
        "forms": frozen.forms,
        "milliseconds": _milliseconds(model, x),
        "frozen_milliseconds": _milliseconds(frozen, x),
    }


@torch.no_grad()
def _milliseconds(model: nn.Module, x: torch.Tensor) -> float:
    """The shortest of three passes."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        model(x).sum().item()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)
