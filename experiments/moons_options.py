"""Options of the moons experiment, and the demo's own settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ash.checks import positive, require
from experiments.options import EvaluateOptions

WiringName = Literal["static", "set", "rigl", "top_k", "gaussian", "dense", "all"]
WIRINGS: tuple[WiringName, ...] = ("rigl", "set", "top_k", "gaussian", "static", "dense")


@dataclass(kw_only=True)
class Options(EvaluateOptions):
    """Options of the moons experiment. --seed is the first of the seeds."""

    wiring: tuple[WiringName, ...] = ("rigl",)
    """One or several; all for every one. The summary's figures are those of the first."""
    seeds: int = 100
    """Nets to train, each from its own seed, on its own points."""
    points: int = 100
    """Points of a net."""
    noise: float = 0.1
    """Standard deviation of the points around their half circle."""
    steps: int = 400
    """Steps, each on all points."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """sgd is without momentum."""
    lr: float | None = None
    """Learning rate, decaying to a tenth; 0.07 for adam, 1 for sgd if not given."""
    l2: float = 1e-4
    """Of the sum of squares of all weights and biases in the loss."""
    decay: float | None = None
    """What the optimizer adds to l2, inside the gradient; 9e-4 for adam, 0 for sgd if not given."""
    init: Literal["he", "uniform"] = "he"
    """he-uniform over active edges, or uniform from -0.1 to 0.1 with biases 0 as in the demo."""
    kinks: bool = True
    """he: the line at which a unit of the first layer begins to respond passes through one of the points."""
    last_gain: float = 0.5
    """he: factor to the weights of the last layer."""
    every: int = 20
    """Steps between rewirings."""
    fraction: float = 0.3
    """Share of the edges dropped in a rewiring, falling to 0."""
    rewiring: Literal["rewirer", "demo"] = "rewirer"
    """The library's Rewirer (cosine, the gradient of the step itself), or the demo's own loop."""
    defects: bool = False
    """The two defects of the published demo: connections are drawn from the first inputs alone, and edges grow on
    the gradient of the last point alone."""
    compare_defects: bool = False
    """Every wiring with and without the defects."""
    mean_lr: float = 0.1
    """gaussian: steps of the means, in units of the scale."""
    scale: float = 2.0
    """gaussian: scale of the tuples at the start, in units of an index."""
    scale_end: float = 0.2
    """gaussian: scale of the tuples when they are rounded for good."""
    local_samples: int = 4
    """gaussian: points around the mean of each tuple, besides its corners."""
    freeze: float = 0.5
    """gaussian: share of the steps after which the tuples are rounded for good."""


    @property
    def freeze_at(self) -> int:
        """The step before which Gaussian tuples are rounded for good."""
        return round(self.freeze * self.steps)

    def resolved(self) -> Options:
        """The options with what depends on others decided. Raises `UserError` for impossible ones."""
        for name in ("seeds", "points", "steps", "every", "scale", "scale_end"):
            positive(f"--{name.replace('_', '-')}", getattr(self, name))
        require(self.points >= 2, f"--points {self.points}; expected at least 2, one of either half circle.")
        require(0 <= self.fraction <= 1, f"--fraction {self.fraction}; expected a share from 0 to 1.")
        require(0 <= self.freeze <= 1, f"--freeze {self.freeze}; expected a share from 0 to 1.")
        require(len(self.wiring) > 0, "--wiring without a name; expected one or several.")
        adam = self.optimizer == "adam"
        chosen = {
            "wiring": WIRINGS if "all" in self.wiring else tuple(dict.fromkeys(self.wiring)),
            "lr": (0.07 if adam else 1.0) if self.lr is None else self.lr,
            "decay": (9e-4 if adam else 0.0) if self.decay is None else self.decay,
            "seeds": min(self.seeds, 2) if self.quick else self.seeds,
            "steps": min(self.steps, 24) if self.quick else self.steps,
        }
        return dataclasses.replace(self, **chosen)  # type: ignore[arg-type]


def blog(options: Options) -> Options:
    """The demo: plain SGD, weights from -0.1 to 0.1, its own rewiring, as published and with its defects mended."""
    return dataclasses.replace(
        options,
        wiring=("rigl", "static"),
        optimizer="sgd",
        lr=1.0,
        decay=0.0,
        init="uniform",
        rewiring="demo",
        compare_defects=True,
    )


PRESETS = {"blog": blog}
