"""Attention by glimpses on cluttered MNIST: a hypernetwork looks at a small view and says where to read.

A canvas holds one digit at a random place among patches cut from other digits (`experiments.clutter`). Three nets
classify it, each trained in the same way on the same canvases:

  glimpses  a locator sees a view of v × v averages and emits where g glimpses of p × p pixels lie; an adaptive
            sparse layer (g · p², a mean for each pixel of a glimpse, template: outputs fixed) reads them; a
            convolutional net sees these pixels and nothing else
  full      a convolutional net on the whole canvas
  view      a convolutional net on the view alone, with about as many operations as the first

In training the pixels of a glimpse are Gaussians whose scale shrinks, spread over the corners around them; from
`--freeze` on they are rounded, as they are in evaluation. Only class labels are given. Besides the loss of the
classes the locator has a loss of its own in training (`--hint`): the class, told from the features of the view,
averaged by its attention.

Data: MNIST's own training and test digits in --data-dir, a tenth of the training part for validation; without it
scikit-learn's digits, enlarged. From the second epoch on, every training digit lies at a new place amid the clutter
of another canvas. Canvases are kept as lists of pixels in --cache.

Keys of summary.json: `test_accuracy` (glimpses, rounded, final epoch), `test_accuracy_sampled`, `baseline_full`,
`baseline_down` (the view alone), `validation_accuracy` and the like of each net, `pixels_read` (numbers that the first
net reads of a canvas: those of the view, and the distinct pixels of its glimpses, mean over the test part),
`pixels_share` (of the canvas), `flops` of each net for one instance (2 for a multiply-add of convolutions, dense
layers and glimpses, in evaluation; norms, pooling and the making of the view left out for all), `flops_share` (glimpses
over full), `step_seconds` (median of a training step of the first net on canvases of 100 × 100 and of `--timing`,
canvas and view given), `step_ratio` (their quotient).

Measured, test accuracy at the final epoch, seeds 100 to 102: glimpses 96.9, 96.2 and 96.7 % (95.7, 96.0 and 96.7 %
sampled: the last part trains the rounded net), the whole canvas 97.5 % on each, the view alone 85.7, 85.5 and 85.6 %;
1,391 to 1,398 of 10,000 pixels read (14 %), 13.8 % of the operations (11.2 of 81.0 million; the view alone 11.4). So
glimpses are 0.7 to 1.3 points behind the net on the canvas. A training step on a canvas of 1000 x 1000 takes 1.01 to
1.03 times that on 100 x 100. With 6 epochs (seeds 100 and 101): glimpses 96.5 and 96.3 %, the canvas 97.2 and 97.0 %.

What decides (seed 0, validation accuracy of the rounded net; the net on the canvas reaches 97.0 % in 6 epochs):

- Where to look. A soft argmax over the whole view puts one glimpse between the candidates: 76 % after 2 epochs, a tenth
  of the glimpses more than 27 pixels off. Around the hottest cells, each left out for the next glimpse, 90 % of the
  first, 98 % of the first two and 99 % of three glimpses lie within 8 pixels of the digit's centre.
- How exactly. Read at the true centre the digits are told to 97.3 % after 2 epochs, 2 pixels of noise in rows and
  columns take that to 93.6 %; a classifier that takes the maximum over all places instead of one weight for each is
  at 96.9 % there. With it the whole net is at 95.0 % after 3 epochs, as far as the other one comes in 6.
- Glimpses of fewer pixels: 3 of 17 x 17 reach 95.1 % in 6 epochs, 2 of 20 x 20 95.3 %, with the smaller classifier.
- Rounding. Trained on samples to the end, the rounded net stays 2.5 points behind the sampled one; trained on rounded
  positions for the last part, they are within half a point of each other.

Pictures: glimpses.png, what the glimpses read of test canvases, with the share of the attention of each;
accuracy.png.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ash import Anneal
from ash.checks import positive, require
from experiments.attention_models import FullNet, GlimpseNet, ViewNet, flops
from experiments.attention_pictures import draw_curves, draw_glimpses
from experiments.attention_training import Contest, Plan, channels_last, time_steps
from experiments.clutter import check_canvas, cluttered
from experiments.data import Images, digits, mnist, train_validation
from experiments.mnist import change
from experiments.runs import Run, RunOptions

VALIDATION, QUICK, ENLARGED = 0.1, 256, 3
TIMED = 100
"""Canvas beside which that of `--timing` is timed."""


@dataclass
class Options(RunOptions):
    """Options."""

    data_dir: Path | None = None
    """Folder with the four IDX files of MNIST, gzip or not; scikit-learn's digits without it."""
    canvas: int = 100
    """Side of a canvas in pixels, up to 1000 or more."""
    pieces: int = 10
    """Patches of clutter on a canvas."""
    cache: Path | None = None
    """Folder of the canvases, made once; a folder of the run if not given."""
    regenerate: bool = False
    """Make the canvases anew, even where they are cached."""
    view: int = 25
    """Side of the view; must divide that of the canvas."""
    glimpses: int = 2
    """How many glimpses are placed."""
    side: int = 20
    """Pixels of a glimpse along a side."""
    spacing: float = 1.25
    """Distance between the pixels of a glimpse."""
    scale: float = 1.0
    """Scale of the Gaussians at the start, in pixels."""
    scale_end: float = 0.3
    """Scale when glimpses are rounded."""
    freeze: float = 0.7
    """Share of the run after which glimpses are read at rounded places."""
    hint: float = 0.5
    """Weight of the locator's own loss; 0: the classes of the glimpses alone teach it."""
    redraw: bool = True
    """New places and other clutter for the training digits in every epoch."""
    epochs: int = 8
    """Passes over the training part, for each net."""
    batch: int = 64
    """Canvases in a batch."""
    lr: float = 3e-3
    """Learning rate at its highest; AdamW, one cosine."""
    low_precision: bool = True
    """Convolutions in bfloat16."""
    nets: tuple[str, ...] = ("glimpses", "full", "view")
    """Which nets to train."""
    timing: int = 1000
    """Side of the canvas whose training step is timed beside that of 100 × 100; 0: not timed."""

    may_change: ClassVar[frozenset[str]] = RunOptions.may_change - {"epochs"} | {"cache", "timing", "regenerate"}

    def resolved(self) -> Options:
        """These options with those of a quick run in place, and checked."""
        check(self)
        if not self.quick:
            return self
        return dataclasses.replace(self, epochs=min(self.epochs, 2))


def check(options: Options) -> None:
    """Raise `UserError` for numbers that no run can do with."""
    for name in ("lr", "spacing", "scale", "scale_end", "view", "glimpses", "side", "epochs", "batch", "canvas"):
        positive(f"--{name.replace('_', '-')}", getattr(options, name))
    for name in ("hint", "timing"):
        positive(f"--{name}", getattr(options, name), zero=True)
    require(0 <= options.freeze <= 1, f"--freeze {options.freeze}; expected a share from 0 to 1.")
    require(options.canvas % options.view == 0, f"--view {options.view} of a canvas of {options.canvas}; expected a "
            "number that divides it, so that the view is made of equal squares.")  # fmt: skip
    require(options.scale_end <= options.scale, f"--scale-end {options.scale_end}; expected at most --scale "
            f"{options.scale}.")  # fmt: skip
    known = {"glimpses", "full", "view"}
    require(len(options.nets) > 0 and set(options.nets) <= known and len(set(options.nets)) == len(options.nets),
            f"--nets {' '.join(options.nets)}; expected different ones of {', '.join(sorted(known))}.")  # fmt: skip


def run(options: Options, run: Run) -> dict[str, object]:
    """Train the nets, draw, time, and return the figures."""
    images = prepare(options)
    check_canvas(options.canvas, options.pieces, images.train_x.shape[1:])
    cache = options.cache or run.folder / "cache"
    data = cluttered(images, options.canvas, options.pieces, options.seed, cache, options.regenerate)
    plan = Plan(options.epochs, options.batch, options.lr, options.freeze, options.hint, options.seed,
                options.redraw, options.low_precision)  # fmt: skip
    nets = build(options, images.classes, plan.freeze_at(len(data["train"]))).to(run.device)
    contest = Contest(nets, data, options.view, plan, run)
    contest()
    summary = report(options, contest)
    draw_curves(contest.history, run.path("accuracy.png"))
    for net in contest.nets.values():
        if isinstance(net, GlimpseNet):
            draw_glimpses(net, contest, run.path("glimpses.png"))
    return summary | timing(options, contest, images.classes)


def prepare(options: Options) -> Images:
    """The digits, 0 to 255, split into training, validation and test parts."""
    if options.data_dir is None:
        small = digits()
        images = dataclasses.replace(small, train_x=enlarge(small.train_x), test_x=enlarge(small.test_x))
    else:
        images = mnist(options.data_dir)
    if options.quick:
        images = change(images, lambda part: part[:QUICK])
    return train_validation(images, VALIDATION, options.seed)


def enlarge(x: Tensor) -> Tensor:
    """Digits of 8 × 8 pixels from 0 to 16, as ones of 24 × 24 from 0 to 240."""
    return (x * 15).repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2)


def build(options: Options, classes: int, freeze_at: int) -> nn.ModuleDict:
    """The nets by name, drawn from the seed."""
    torch.manual_seed(options.seed)
    made = {
        "glimpses": lambda: glimpse_net(options, options.canvas, classes, freeze_at),
        "full": lambda: FullNet(classes),
        "view": lambda: ViewNet(classes),
    }
    nets = nn.ModuleDict({name: make() for name, make in made.items() if name in options.nets})
    channels_last(nets)
    return nets


def glimpse_net(options: Options, canvas: int, classes: int, freeze_at: int) -> GlimpseNet:
    """The net on glimpses, for canvases of a given side."""
    scale = Anneal(options.scale, options.scale_end, max(1, freeze_at))
    return GlimpseNet(canvas, options.view, options.glimpses, options.side, options.spacing, classes, scale)


def report(options: Options, contest: Contest) -> dict[str, object]:
    """The final figures of every net."""
    result: dict[str, object] = {}
    names = {"full": "baseline_full", "view": "baseline_down"}
    which = torch.arange(1)
    canvas, view = contest.seen(contest.data["test"], which)
    costs = {name: flops(net, canvas, view) for name, net in contest.nets.items()}
    for name, net in contest.nets.items():
        figures = contest.judge(net, "test")
        if isinstance(net, GlimpseNet):
            result |= figures | pixels(net, contest, options)
        else:
            result[names[name]] = figures["test_accuracy"]
        last = contest.history[name][-1]
        result |= {f"{key}_{name}": last[key] for key in ("train_accuracy", "validation_accuracy")}
    result["flops"] = costs
    if {"glimpses", "full"} <= set(costs):
        result["flops_share"] = costs["glimpses"] / costs["full"]
    return result


@torch.no_grad()
def pixels(net: GlimpseNet, contest: Contest, options: Options) -> dict[str, object]:
    """Numbers that the net reads of a canvas, mean over the test part: the view, and distinct pixels of glimpses."""
    net.eval()
    data, read = contest.data["test"], 0
    for which in torch.arange(len(data)).split(1000):
        boxes = net.boxes(contest.seen(data, which)[1]).flatten(1, 2)
        ids = (boxes[..., 0] * options.canvas + boxes[..., 1]).sort(1).values
        read += int((ids[:, 1:] != ids[:, :-1]).sum()) + len(which)
    mean = options.view**2 + read / len(data)
    return {"pixels_read": mean, "pixels_share": mean / options.canvas**2}


def timing(options: Options, contest: Contest, classes: int) -> dict[str, object]:
    """Training steps on a small and on a large canvas."""
    if not options.timing or "glimpses" not in contest.nets:
        return {}
    sizes = (TIMED, options.timing)
    repeats = 6 if options.quick else 20
    seconds = time_steps(contest, lambda size: glimpse_net(options, size, classes, 1000), sizes, repeats)
    named = {str(size): value for size, value in zip(sizes, seconds, strict=True)}
    return {"step_seconds": named, "step_ratio": seconds[1] / seconds[0]}
