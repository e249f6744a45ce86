"""Training `hyper` and the nets beside it: shifted images, reconstruction terms, pre-training layer by layer."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from ash import HyperWiring, plot
from ash.losses import Reconstruction, reconstruction_loss, scale_penalty
from ash.plot import image_grid
from experiments import adaptive
from experiments.classify import Plan, Training, accuracy, judge
from experiments.data import Images
from experiments.runs import Run

SETTLED = 0.7
"""Share of the run after which scales (and the temperature of a codebook) have come to their end."""
SHOWN = 10


def shifted(x: Float[Tensor, "b ..."], most: int, mirror: bool) -> Float[Tensor, "b ..."]:
    """Every image shifted by up to `most` pixels per side, what comes in being its darkest; half of them mirrored."""
    if not most:
        return x
    h, w = x.shape[-2:]
    wide = pad(x, (most,) * 4, value=float(x.min()))
    rows, cols = (torch.randint(0, 2 * most + 1, (len(x), 1), device=x.device) for _ in range(2))
    rows, cols = rows + torch.arange(h, device=x.device), cols + torch.arange(w, device=x.device)
    if mirror:
        cols = torch.where(torch.rand(len(x), 1, device=x.device) < 0.5, cols.flip(1), cols)
    places = (rows.unsqueeze(-1) * (w + 2 * most) + cols.unsqueeze(1)).flatten(1)
    flat = wide.reshape(len(x), -1, wide.shape[-2] * wide.shape[-1])
    return flat.gather(2, places.unsqueeze(1).expand(-1, flat.shape[1], -1)).reshape(x.shape)


@contextlib.contextmanager
def drawing(model: nn.Module) -> Iterator[None]:
    """Inside, adaptive wirings draw points as in training while all else, such as norms, is as it was."""
    wirings = [module for module in model.modules() if isinstance(module, HyperWiring)]
    before = [wiring.training for wiring in wirings]
    for wiring in wirings:
        wiring.training = True
    try:
        yield
    finally:
        for wiring, state in zip(wirings, before, strict=True):
            wiring.training = state


class AdaptiveTraining(Training):
    """Training whose loss has the terms that the options ask for, on images shifted at random.

    In the first `--pretrain` epochs' steps each adaptive layer in turn learns to give back its input, and nothing
    else. The network with its points drawn is judged at the end of the run.
    """

    def __init__(self, model: nn.Module, optimizer: Any, images: Images, plan: Plan, run: Run, options: Any) -> None:
        super().__init__(model, optimizer, images, plan, run, lambda _: torch.zeros(0), draws=False)  # type: ignore[arg-type]
        self.options = options
        self.pretraining = round(options.pretrain * plan.steps_per_epoch(len(images.train_y)))
        self.adaptive = isinstance(model, adaptive.Hyper)

    def frame(self) -> plot.Frame | None:
        """The tuples that the first adaptive layer has for the first test image."""
        if not isinstance(self.model, adaptive.Hyper):
            return None
        self.model.eval()
        with torch.no_grad():
            features = self.model.trunk(self.model.pictures(self.images.test_x[:1]))
            frame = plot.frame_of(self.model.wirings[0], self.step, x=features[0])
        self.model.train()
        return frame

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = self.loop(shifted(x, self.options.augment, mirror=x.dim() == 4))
        return self._pretraining_loss() if self._pretrains() else self._loss(output, y), output

    def _pretrains(self) -> bool:
        return self.adaptive and self.step < self.pretraining

    def _pretraining_loss(self) -> Tensor:
        terms = [module.loss for module in self.model.modules() if isinstance(module, Reconstruction)]
        term: Tensor = terms[self.step * len(terms) // self.pretraining]
        return term

    def _loss(self, output: Tensor, y: Tensor) -> Tensor:
        loss, options = cross_entropy(output, y), self.options
        if self.adaptive and options.reconstruction:
            loss = loss + options.reconstruction * reconstruction_loss(self.model)
        if self.adaptive and options.scale_penalty and self.step < SETTLED * self.total:
            terms = [scale_penalty(tuples, least=options.scale / 2) for tuples in self.model.last_tuples()]  # type: ignore[operator]
            loss = loss + options.scale_penalty * torch.stack(terms).sum()
        return loss

    def judge(self) -> dict[str, float]:
        figures = judge(self.model, self.images, draws=False)
        if self.adaptive and self.step == self.total:
            self.model.eval()
            with drawing(self.model):
                for part in ("validation", "test"):
                    x, y = (getattr(self.images, f"{part}_{each}") for each in "xy")
                    figures[f"{part}_accuracy_sampled"] = accuracy(self.model, x, y)
            self.model.train()
        return figures


def optimizer_for(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays the weights of dense layers and convolutions alone: means and scales are no weights."""
    dense = (nn.Linear, nn.Conv2d)
    decayed = [m.weight for m in model.modules() if isinstance(m, dense) and m.weight.requires_grad]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr, betas=(0.9, 0.98))


def wirings(options: Any, steps: int) -> adaptive.Wirings:
    """How the options sample tuples in a run of so many steps."""
    return adaptive.Wirings(
        steps=math.ceil(SETTLED * steps),
        kernel=options.kernel,
        context=options.context,
        local_samples=options.local_samples,
        global_samples=options.global_samples,
        scale=options.scale,
        scale_end=options.scale_end,
        emit_scales=options.scales == "emitted",
        codebook=options.codebook,
        subset=options.subset,
        still=options.model == "fixed",
        reconstruct=options.reconstruction > 0 or options.pretrain > 0,
    )


def build(options: Any, images: Images, steps: int) -> nn.Module:
    """The net that `--model` names; `trunk` and `convnet` have as many learned numbers as `hyper`."""
    image = tuple(images.train_x.shape[1:])
    shapes = adaptive.shapes_for((1, *image) if len(image) == 2 else image, options.plain_image)  # type: ignore[arg-type]
    hyper = adaptive.Hyper(shapes, wirings(options, steps), options.view, images.classes)
    if options.model in ("hyper", "fixed"):
        return hyper
    size = adaptive.learned(hyper)
    if options.model == "trunk":
        return adaptive.as_large_as(size, lambda w: adaptive.trunk_net(shapes, options.view, images.classes, w))
    return adaptive.as_large_as(size, lambda w: adaptive.conv_net(shapes, images.classes, w))


def classify(options: Any, images: Images, run: Run) -> dict[str, object]:
    """Train, draw, and return the figures."""
    if options.train_images:
        few = slice(options.train_images)
        images = dataclasses.replace(images, train_x=images.train_x[few], train_y=images.train_y[few])
    plan = Plan(options.epochs, options.batch, freeze=1.0)
    model = build(options, images, plan.steps(len(images.train_y))).to(run.device)
    optimizer = optimizer_for(model, options.lr, options.weight_decay)
    training = AdaptiveTraining(model, optimizer, images, plan, run, options)
    training()
    training.draw(run.path("accuracy.png"))
    if isinstance(model, adaptive.Hyper):
        draw_reading(model, images, run.path("reading.png"))
        first = model.wirings[0]
        plane = (len(first.out_shape), len(first.out_shape) + 1)
        track = plot.TupleTrack(training.frames, columns=plane, total=first.k)
        run.show("what the first layer reads of a test image", track)
    return summary(options, images, training)


@torch.no_grad()
def draw_reading(model: adaptive.Hyper, images: Images, path: Path) -> None:
    """Test images, and under each what the first layer reads of it: absolute weights, as a share of the largest."""
    x = images.test_x[:SHOWN]
    model.eval()
    weight = model.wirings[0](model.trunk(model.pictures(x)))
    read = torch.zeros(len(x), math.prod(weight.in_shape), device=x.device)
    read.scatter_add_(1, weight.col_ids, weight.values.abs())
    read /= read.amax(1, keepdim=True).clamp(min=1e-6)
    pictures = x if x.dim() == 3 else x.mean(1)
    low, high = pictures.amin((1, 2), keepdim=True), pictures.amax((1, 2), keepdim=True)
    panels = {f"image {i}": each for i, each in enumerate(((pictures - low) / (high - low)).cpu())}
    panels |= {f"read of {i}": each for i, each in enumerate(read.reshape(-1, *weight.in_shape).cpu())}
    image_grid(panels, path, label="grey value; weight read, share of the largest")


def summary(options: Any, images: Images, training: AdaptiveTraining) -> dict[str, object]:
    """The keys that the docstring of `experiments.mnist` tells."""
    last, best, model = training.history[-1], training.best, training.model
    result: dict[str, object] = {
        "dataset": images.name,
        "model": options.model,
        "parameters": adaptive.learned(model),
        "test_accuracy": last["test_accuracy"],
        "test_accuracy_at_best_validation": best["test_accuracy"],
        "best_epoch": best["epoch"],
        "validation_accuracy": last["validation_accuracy"],
        "train_accuracy": last["train_accuracy"],
    }
    if isinstance(model, adaptive.Hyper):
        for part in ("test", "validation"):
            result[f"{part}_accuracy_rounded"] = last[f"{part}_accuracy"]
            result[f"{part}_accuracy_sampled"] = last[f"{part}_accuracy_sampled"]
        result["tuples"] = sum(wiring.k for wiring in model.wirings)
        result["emitted"] = sum(wiring.size_report().emitted for wiring in model.wirings)
        result["codebook"] = options.codebook
    return result
