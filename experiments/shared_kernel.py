"""Learn a transformation that is a 3 x 3 convolution, as index tuples whose values come from nine shared scalars.

A sparse layer sees images of white noise and the images that a random 3 x 3 kernel makes of them. Nothing in it knows
of a kernel: every output pixel has nine index tuples; the input pixel (row, column) of each is learned, and so is which
of nine scalars, shared by all tuples of all outputs, is its value. Tuples start around the output's own pixel, at a
normal distance of --spread pixels; no position of the kernel is given. The zeros that pad the image are part of the
input, so that the tuples that an output at the edge cannot use have a place to be.

The gradient finds about two thirds of the entries by batch 200, and then no more: tuples pair up at one entry, stand
half way between two, or sit with the wrong scalar, and scalars gather at the mean of two values of the kernel. The
rest is the work of moves, which are counted: see `experiments.code_rescue`. Seeds 100 to 102: `recovered_fraction`
0.9985, 0.9994 and 0.9997, largest `scalar_error` 0.0024, 0.0008 and 0.0005, with 3,855, 3,003 and 4,211 of the 7,056
tuples moved; half a minute each on one core. What it took (seeds 0 to 3): a Gaussian rather than a fat tail, and
scales down to 0.1, for the rounded error not to be ten times the sampled one; steps of the logits that shrink once
moves are made, or they shake off what the moves have set; and giving a scalar that hardly any tuple needs to half of
the tuples of another (without it one of nine values was missing on two seeds of three). The noise of the
Gumbel-softmax did not help (`--noise`).

Keys of summary.json: `size`, `entries` (of the convolution's matrix, at real pixels), `recovered_fraction` (share of
them that exactly one rounded tuple holds, with the scalar that is matched to the kernel's value there, within 0.05 of
it), `held_fraction` (whatever the scalar), `spurious` (rounded tuples at real pixels outside the kernel),
`scalar_error` and `scalar_error_mean` (largest and mean |scalar - kernel value|, matched in order of size),
`mse_rounded`, `mse_sampled` (on 1,000 fresh images, per pixel), `mse_zero` (of the output 0), `tuples`, `moved`,
`merged`, `parted`, `recoded`, `split` (numbers of moves, see `CodeRescue`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ash import Anneal, Codebook, Context, Factors, GaussianWiring, Sampling, SparseLayer, Template, clear_state
from ash.checks import positive, require
from ash.plot import curves, image_grid
from experiments.code_rescue import CodeRescue
from experiments.descent import Descent
from experiments.runs import Run, RunOptions, restore, training_state

__all__ = ["Options", "run"]

TOLERANCE, FRESH, LOG_EVERY = 0.05, 1000, 25
SIDE = 3


@dataclass(kw_only=True)
class Options(RunOptions):
    """Options of the shared kernel."""

    size: int = 28
    """Rows and columns of the images."""
    codebook: int = 9
    """Scalars among which the tuples choose."""
    steps: int = 600
    """Batches."""
    batch: int = 256
    """Images in a batch."""
    spread: float = 1.5
    """Distance in pixels (standard deviation per column) of a tuple's start from its output's own pixel."""
    scale: float = 1.5
    """Scale at the start, in pixels."""
    scale_end: float = 0.1
    """Scale from a quarter of the run on."""
    kernel: str = "gaussian"
    """gaussian, student_t or student_t(nu): the density around a mean, not what is learned."""
    context: Literal["tuple", "chunk"] = "chunk"
    """Whether the tuples of an output share their points."""
    local_samples: int = 2
    """Points around each mean, besides its corners."""
    noise: bool = False
    """Draw the choices of scalars in training (Gumbel-softmax); otherwise the largest logit wins, straight through."""
    mean_lr: float = 0.1
    """Adam's step of the means, in units of each tuple's scale."""
    scale_lr: float = 0.03
    """Adam's step of the log scales."""
    code_lr: float = 0.1
    """Adam's step of the logits, a fifth of it once moves are made."""
    scalar_lr: float = 0.02
    """Adam's step of the scalars."""
    rescue_every: int = 25
    """Batches between moves, from a third to three quarters of the run; 0: never."""

    def resolved(self) -> Options:
        """The options for --quick; raises `UserError` for impossible ones."""
        for name in ("steps", "batch", "spread", "scale", "scale_end", "codebook"):
            positive(f"--{name.replace('_', '-')}", getattr(self, name))
        for name in ("rescue_every", "mean_lr", "scale_lr", "code_lr", "scalar_lr"):
            positive(f"--{name.replace('_', '-')}", getattr(self, name), zero=True)
        require(self.size >= SIDE, f"--size {self.size}; expected at least {SIDE}, the side of the kernel.")
        require(self.codebook >= SIDE**2, f"--codebook {self.codebook}; expected at least {SIDE**2}, one per place.")
        if not self.quick:
            return self
        return dataclasses.replace(self, size=8, steps=40, rescue_every=min(10, self.rescue_every))


def convolution(kernel: Float[Tensor, "3 3"], size: int) -> Float[Tensor, "o i"]:
    """The matrix of the convolution, from padded images (size + 2)² to images size², without the padding's columns.

    Entries at padding are 0: what they are multiplied with is always 0.
    """
    unit = torch.eye(size**2).reshape(-1, 1, size, size)
    made = conv2d(unit, kernel[None, None], padding=1).reshape(size**2, size**2).t()
    return pad(made.reshape(-1, size, size), (1,) * 4).flatten(1)


class Learner:
    """A sparse layer of nine tuples for each output pixel, trained on batches of (noise, its convolution)."""

    def __init__(self, options: Options, device: torch.device):
        self.options, n = options, options.size
        self.kernel = torch.randn(SIDE, SIDE)
        self.matrix = convolution(self.kernel, n).to(device)
        self.kernel = self.kernel.to(device)
        self.wiring = make_wiring(options).to(device)
        self.layer = SparseLayer((n + 2, n + 2), (n, n), bias=False, wiring=self.wiring)
        rates = (options.mean_lr, options.scale_lr, options.code_lr, options.scalar_lr)
        self.learned = _learned(self.wiring)
        groups: list[dict[str, Any]] = [{"params": [p], "lr": r} for p, r in zip(self.learned, rates, strict=True)]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
        self.descent = Descent(self.layer, self.optimizer)
        self.rates, self.rescue = rates, CodeRescue(scale=0.5)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Padded noise `(count, n + 2, n + 2)` and what the convolution makes of it `(count, n, n)`."""
        n = self.options.size
        x = pad(torch.randn(count, n, n, device=self.matrix.device), (1,) * 4)
        return x, (x.flatten(1) @ self.matrix.t()).reshape(count, n, n)

    def train_step(self, step: int) -> float:
        """One batch, the `step`-th from 0; its mean squared error per pixel."""
        steps, every = self.options.steps, self.options.rescue_every
        moving = steps // 3
        self._set_rates(step, moving)
        x, y = self.batch(self.options.batch)
        errors = (self.layer(x) - y).square()
        self.descent.step(errors.sum((1, 2)).mean(), step)
        if every and moving <= step + 1 <= 0.75 * steps and (step + 1) % every == 0:
            self._rescue(x, y)
        return float(errors.detach().mean())

    def _set_rates(self, step: int, moving: int) -> None:
        """Constant, then a cosine over the last third; logits slow down once moves are made."""
        share = max(0.0, 3 * step / self.options.steps - 2)
        for group, rate, name in zip(
            self.optimizer.param_groups, self.rates, ("mean", "scale", "code", "scalar"), strict=True
        ):
            slow = 0.2 if name == "code" and self.options.rescue_every and step >= moving else 1.0
            group["lr"] = rate * slow * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))

    @torch.no_grad()
    def _rescue(self, x: Tensor, y: Tensor) -> None:
        self.layer.eval()
        error = self.layer(x) - y
        self.layer.train()
        report = self.wiring.rewire(Factors(x, error / len(x)), self.rescue)
        recoded, split = self.rescue.recoded
        rows = torch.cat([report.moved, recoded, split])
        clear_state(self.optimizer, self.wiring, rows)
        if len(split):
            self.optimizer.state[self.learned[3]]["exp_avg"].zero_()

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """How much of the convolution the rounded tuples are; see the module's docstring."""
        self.wiring.eval()
        weight, true = self.wiring.rounded(), self.kernel.flatten().sort().values
        scalars, order = self.learned[3].sort()
        self.wiring.train()
        row, col, values = weight.row_ids, weight.col_ids, weight.values
        wanted = self.matrix[row, col]
        ids = row * self.matrix.shape[1] + col
        _, place, count = torch.unique(ids, return_inverse=True, return_counts=True)
        held = wanted != 0
        # With more scalars than places, those are matched that lie nearest to the kernel's values.
        matched = scalars if len(scalars) == len(true) else scalars[(scalars - true[:, None]).abs().argmin(1)]
        target = matched[(true - wanted[:, None]).abs().argmin(1)]
        right = held & (count[place] == 1) & (values == target) & ((values - wanted).abs() <= TOLERANCE)
        entries = int((self.matrix != 0).sum())
        error = (matched - true).abs()
        return {
            "recovered_fraction": int(right.sum()) / entries,
            "held_fraction": len(ids[held].unique()) / entries,
            "spurious": int((~held & self._real[col]).sum()),
            "scalar_error": float(error.max()),
            "scalar_error_mean": float(error.mean()),
        }

    @property
    def _real(self) -> Tensor:
        """Which inputs are pixels and not padding."""
        n = self.options.size
        inside: Tensor = pad(torch.ones(n, n, dtype=torch.bool, device=self.matrix.device), (1,) * 4)
        return inside.flatten()

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """Mean squared errors per pixel on fresh images, rounded, sampled, and of the output 0."""
        with torch.random.fork_rng():
            x, y = self.batch(FRESH)
            figures = {"mse_sampled": float((self.layer(x) - y).square().mean())}
            self.layer.eval()
            figures["mse_rounded"] = float((self.layer(x) - y).square().mean())
            self.layer.train()
        return figures | {"mse_zero": float(y.square().mean())}

    @torch.no_grad()
    def found(self, reach: int = 3) -> Float[Tensor, "w w"]:
        """The rounded weights around an output's own pixel, averaged over the outputs that far from the edge."""
        n, wide = self.options.size, self.options.size + 2
        reach = min(reach, (n - 1) // 2)
        self.wiring.eval()
        dense = self.wiring.rounded().to_dense()
        self.wiring.train()
        inner = range(reach - 1, n - reach + 1) if reach > 1 else range(n)
        window = torch.arange(-reach, reach + 1)
        parts = [
            dense[i, j][(i + 1 + window).clamp(0, wide - 1)][:, (j + 1 + window).clamp(0, wide - 1)]
            for i in inner
            for j in inner
        ]
        return torch.stack(parts).mean(0)


def _learned(wiring: GaussianWiring) -> tuple[Tensor, ...]:
    """The parameters: means, scales, logits, scalars."""
    assert wiring.codebook is not None and wiring.codes is not None
    return wiring.means.offset, wiring.log_scale, wiring.codes, wiring.codebook.scalars


def make_wiring(options: Options) -> GaussianWiring:
    """Nine tuples for every output pixel, starting around its own pixel."""
    n, each = options.size, SIDE**2
    template = Template.per_output((n, n), (n + 2, n + 2), each)
    start = template.indices.double() + 1 + options.spread * torch.randn(n * n * each, 2, dtype=torch.float64)
    schedule = Anneal(options.scale, options.scale_end, max(1, options.steps // 4))
    return GaussianWiring(
        (n, n),
        (n + 2, n + 2),
        template=template,
        values=Codebook(options.codebook, spread=2.0, noise=options.noise),
        context=Context(options.context, each, shuffle=False),
        kernel=options.kernel,
        sampling=Sampling(True, 0, options.local_samples),
        positions=start.clamp(0, n + 1),
        scale=options.scale,
        scale_floor=options.scale_end,
        scale_ceiling=schedule,
    )


def run(options: Options, run: Run) -> dict[str, object]:
    """Train, draw, and return the figures."""
    learner = Learner(options, run.device)
    history: list[dict[str, float]] = []
    start = _resume(learner, run, history)
    bar = run.progress(options.steps, "training", start)
    for step in range(start, options.steps):
        loss = learner.train_step(step)
        bar.update(1)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == options.steps:
            figures = {"loss": loss, **learner.judge(), **learner.rescue.counts}
            scalars = learner.learned[3].detach().tolist()
            history.append({"step": step + 1, **figures, **{f"scalar {i}": s for i, s in enumerate(scalars)}})
            run.log(step + 1, **figures)
            run.time(step + 1)
        run.keep(step + 1, partial(_state, learner, history), (step + 1) % 200 == 0 or step + 1 == options.steps)
    draw(learner, history, run)
    counts = {name: learner.rescue.counts.get(name, 0) for name in ("moved", "merged", "parted", "recoded", "split")}
    sizes = {"size": options.size, "entries": int((learner.matrix != 0).sum()), "tuples": learner.wiring.k}
    return {**sizes, **learner.judge(), **learner.errors(), **counts}


def _state(learner: Learner, history: list[dict[str, float]]) -> dict[str, Any]:
    own = {"history": history, "counts": dict(learner.rescue.counts)}
    return training_state(learner.layer, learner.optimizer) | own


def _resume(learner: Learner, run: Run, history: list[dict[str, float]]) -> int:
    saved = run.load()
    if saved is None:
        return 0
    step, state = saved
    history += state.pop("history")
    learner.rescue.counts.update(state.pop("counts"))
    restore(state, learner.layer, learner.optimizer)
    return step


def draw(learner: Learner, history: list[dict[str, float]], run: Run) -> None:
    """The kernel and what was found of it, and both shares and all scalars over time."""
    reach = (min(3, (learner.options.size - 1) // 2) - 1,) * 4
    panels = {"kernel": pad(learner.kernel, reach).cpu(), "found (mean of outputs)": learner.found().cpu()}
    image_grid(panels, run.path("kernel.png"), label="weight")
    steps = [point["step"] for point in history]
    shares = {"entry held": "held_fraction", "with the right scalar": "recovered_fraction"}
    series = {name: (steps, [point[key] for point in history]) for name, key in shares.items()}
    curves(series, run.path("recovered.png"), ylabel="share of the convolution's entries", xlabel="batch")
    names = [name for name in history[-1] if name.startswith("scalar ")]
    lines = {name: (steps, [point[name] for point in history]) for name in names}
    curves(lines, run.path("scalars.png"), ylabel="scalar", xlabel="batch")
