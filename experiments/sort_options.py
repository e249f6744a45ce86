"""Options of the sorting experiment, what is best for each hypernetwork, and the blog's setting."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ash.checks import positive, require
from experiments.options import RunOptions

BLOG_FRAMES = (7000, 7050, 7100, 7150)


@dataclass(kw_only=True)
class Options(RunOptions):
    """Options of the sorting experiment; what is None is chosen by hypernetwork, template and size."""

    size: int = 3
    """Numbers in a vector."""
    hypernetwork: Literal["mlp", "set", "pairs", "comparator"] = "mlp"
    """What looks at the vector: a perceptron over all of it; a set transformer and a learned function of pairs; the
    latter alone; or given odd comparison features."""
    template: Literal["none", "inputs", "outputs"] = "inputs"
    """Which column of the tuples is fixed: each input picks its output, each output its input, or none."""
    hidden: tuple[int, ...] | None = None
    """Hidden layers of the perceptron; of the others the first number, units of the function of pairs."""
    batch: int | None = None
    """Vectors in a batch."""
    steps: int | None = None
    """Batches."""
    loss: Literal["reverse", "forward", "both"] | None = None
    """Compare W^T sort(x) with x, or W x with sort(x), or both."""
    channels: tuple[float, ...] | None = None
    """Frequencies w: besides x also sin wx and cos wx go through the same W."""
    gap_floor: float | None = None
    """Errors count in units of the gap to the nearest other number, which is taken to be at least this; 0: as they
    are."""
    learning_rate: float = 3e-3
    """Adam's step, with a cosine to 0."""
    gain_rate: float | None = None
    """Steps of the log steepness, in units of the learning rate."""
    kernel: str = "gaussian"
    """gaussian, student_t, or student_t(NU)."""
    means: Literal["sigmoid", "stretched", "direct"] | None = None
    """How a mean is emitted."""
    scale_start: float | None = None
    """Scale of all tuples at first, in units of an index."""
    scale_end: float = 0.15
    """Scale after 80 % of the run and from then on."""
    scales: Literal["scheduled", "emitted", "shared"] = "scheduled"
    """scheduled, or learned: emitted for every input, or shared by all; then scale_end is their floor."""
    global_samples: int = 1
    """Uniform points per tuple."""
    local_samples: int = 2
    """Points around the mean per tuple."""
    frames: tuple[int, ...] = ()
    """Batches that the pictures show; spread evenly if not given."""

    def resolved(self) -> Options:
        """The options with what depends on others decided. Raises `UserError` for impossible ones."""
        require(self.size >= 2, f"--size {self.size}; expected at least 2 numbers to sort.")
        for name in ("batch", "steps", "learning_rate", "scale_start", "scale_end"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name.replace('_', '-')} {value}; expected a number above 0.")
        positive("--gap-floor", self.gap_floor or 0.0, zero=True)
        require(
            self.hidden is None or (len(self.hidden) > 0 and min(self.hidden) >= 1),
            f"--hidden {self.hidden}; expected sizes of at least 1.",
        )
        require(
            self.template != "none" or self.hypernetwork == "mlp",
            f"--template none with --hypernetwork {self.hypernetwork}, whose tuples belong to an element each; "
            "use --hypernetwork mlp, or fix the inputs.",
        )
        require(
            self.template != "outputs" or self.hypernetwork != "comparator",
            "--template outputs with --hypernetwork comparator; use mlp, set or pairs.",
        )
        given = {name: v for name, v in self._defaults().items() if getattr(self, name) is None}
        if self.quick:
            given["steps"] = 30
        return dataclasses.replace(self, **given)

    def _defaults(self) -> dict[str, Any]:
        perceptron, given_features = self.hypernetwork == "mlp", self.hypernetwork == "comparator"
        both = self.template != "inputs"
        return {
            "hidden": (32 * self.size,) if perceptron else (8,),
            "batch": 256 if self.size <= 8 else 128 if self.size <= 16 else 64,
            "steps": (5000 if self.size <= 3 else 8000) if perceptron else 3000 if given_features else 4000,
            "loss": {"none": "reverse", "inputs": "reverse", "outputs": "both"}[self.template],
            "channels": (3.0, 6.0, 12.0) if both else (),
            "gap_floor": 1e-3 if perceptron or both else 1e-4,
            "gain_rate": 10.0 if perceptron else 30.0,
            "means": "direct" if self.template == "inputs" or not perceptron else "stretched",
            "scale_start": 2.0 if self.template == "outputs" else 1.0,
        }


def blog(options: Options) -> Options:
    """The setting of the blog: three numbers, both columns learned, batch 64, a Gaussian, shown around 7,000."""
    return dataclasses.replace(
        options,
        size=3,
        hypernetwork="mlp",
        template="none",
        batch=64,
        steps=7150,
        kernel="gaussian",
        frames=BLOG_FRAMES,
    )


PRESETS = {"blog": blog}
