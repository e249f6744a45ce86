"""Options of the identity experiment, and the blog's setting of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from ash.checks import positive, require
from experiments.options import RunOptions

BLOG_FRAMES = (0, 1000, 2000, 3000, 6000)
LARGE = 1024
"""Size from which tuples of fixed values begin narrower, and the last few are rescued."""


@dataclass(kw_only=True)
class Options(RunOptions):
    """Options of the identity experiment."""

    size: int = 32
    """N: the matrix is N x N."""
    k: int | None = None
    """Index tuples; as many as the target has entries if not given."""
    target: Literal["identity", "permutation", "sparse"] = "identity"
    """What to learn; sparse has 2N random entries of random sign and a size from 0.5 to 1.5."""
    values: Literal["ones", "learned"] | None = None
    """Values of the tuples; learned for the sparse target, else ones, if not given."""
    method: Literal["ash", "greedy", "reinforce"] = "ash"
    """ash, or a baseline: drop and grow on the gradient without Gaussians, or the score function."""
    kernel: str = "student_t"
    """gaussian, student_t, or student_t(NU)."""
    context: Literal["tuple", "chunk", "all"] = "all"
    """Which tuples see which points."""
    chunk_size: int = 64
    """Tuples in a chunk."""
    means: Literal["anchored", "direct", "sigmoid"] = "anchored"
    """How a mean is stored."""
    global_samples: int = 2
    """Uniform points per tuple."""
    local_samples: int = 2
    """Points around the mean per tuple."""
    guided_samples: int = 2
    """Points per tuple where the last batch's loss asked for weight."""
    kept_samples: int = 1
    """Of a tuple's points, those to keep for the next batch, where the last one's loss asked for weight."""
    subset: float | None = None
    """Share of the tuples trained in a batch."""
    batch: int = 256
    """Vectors in a batch."""
    steps: int = 3000
    """Batches at most."""
    mean_lr: float = 0.1
    """Adam's step of the means, in units of each tuple's scale (of an index for direct means)."""
    scale_lr: float = 0.03
    """Adam's step of the log scales."""
    value_lr: float = 0.03
    """Adam's step of learned values."""
    scale: float | None = None
    """Scale at the start, in units of an index; if not given N/8, and √N for fixed values from N = 1,024 on."""
    scale_decay: float | None = None
    """Taken off every log scale per batch; 0.003 for fixed values and 0.01 for learned ones if not given."""
    scale_floor: float | None = None
    """Smallest scale; 0.3 for fixed values and 0.05 for learned ones if not given."""
    ceiling_steps: int | None = None
    """Batches in which the largest scale falls from N/2 to 1; 600 for learned values if not given; 0: never."""
    rescue_every: int | None = None
    """Batches between rescues; if not given 25 for learned values, and for fixed ones 0 (never) below N = 1,024."""
    run_on: bool = False
    """Do not stop when the target is found."""
    frames: tuple[int, ...] = ()
    """Batches that the row of small pictures shows; spread evenly if not given."""

    def resolved(self) -> Options:
        """The options with what depends on others decided. Raises `UserError` for impossible ones."""
        for name in ("size", "batch", "steps"):
            positive(f"--{name}", getattr(self, name))
        values = self.values or ("learned" if self.target == "sparse" else "ones")
        require(
            not (self.target == "sparse" and values == "ones"),
            "--values ones with --target sparse, whose entries are not ones; use --values learned.",
        )
        require(
            self.target != "sparse" or self.size >= 2, f"--size {self.size}; expected at least 2 for 2N entries."
        )
        require(
            not (self.method == "reinforce" and values == "learned"),
            "--method reinforce learns positions only; use --values ones.",
        )
        learned = values == "learned"
        large = not learned and self.size >= LARGE
        choices = {
            "values": values,
            "k": (2 if self.target == "sparse" else 1) * self.size,
            "scale_decay": 0.01 if learned else 0.003,
            "scale_floor": 0.05 if learned else 0.3,
            "ceiling_steps": 600 if learned else 0,
            "rescue_every": 25 if learned or large else 0,
            "scale": math.sqrt(self.size) if large else None,
            "steps": 30 if self.quick else self.steps,
        }
        always = {"values", "steps"}
        given = {name: v for name, v in choices.items() if name in always or getattr(self, name) is None}
        return dataclasses.replace(self, **given)  # type: ignore[arg-type]


def blog(options: Options) -> Options:
    """The setting of the blog: 32 x 32, 32 tuples, 68 points each, 6,000 batches of 256."""
    return dataclasses.replace(
        options,
        size=32,
        k=32,
        values="ones",
        global_samples=62,
        local_samples=2,
        guided_samples=0,
        kept_samples=0,
        kernel="gaussian",
        steps=6000,
        run_on=True,
        frames=BLOG_FRAMES,
    )


PRESETS = {"blog": blog}
