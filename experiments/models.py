"""What more than one experiment builds: two-layer classifiers of images, how large, and wired where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ash import (
    Anneal,
    Context,
    GaussianWiring,
    Sampling,
    SparseLayer,
    SparseLinear,
    StaticWiring,
    Template,
    Wiring,
)
from ash.checks import require
from ash.pattern import unravel


class Budget(NamedTuple):
    """How many numbers a two-layer classifier may store, and how they are spent.

    Attributes:
        counts: `(hidden,)`, entries (tuples) of every hidden unit.
        outgoing: entries from every hidden unit to the classes; 0 where that layer is dense.
        classes: number of classes.
        dense_weights: weights of the dense net that the density refers to.
    """

    counts: Int64[Tensor, " hidden"]
    outgoing: int
    classes: int
    dense_weights: int

    @property
    def hidden(self) -> int:
        """Number of hidden units."""
        return len(self.counts)

    @property
    def rows(self) -> Int64[Tensor, " k"]:
        """The hidden unit of every entry of the first layer."""
        return torch.arange(self.hidden).repeat_interleave(self.counts)

    @property
    def stored_numbers(self) -> int:
        """A value and an index for every entry, one number for every weight of a dense second layer."""
        second = 2 * self.outgoing if self.outgoing else self.classes
        return 2 * int(self.counts.sum()) + self.hidden * second


def allot(density: float, inputs: int, classes: int, each: int, outgoing: int = 0, width: int = 300) -> Budget:
    """Spend at most `density` of the weights of the dense net inputs-width-classes, biases apart.

    As many hidden units, up to `width`, as can have `each` entries; what is left goes to further entries,
    dealt out evenly. Raises `UserError` for a density that is not above 0 and at most 1, or that not even
    one hidden unit fits in.
    """
    dense = width * (inputs + classes)
    require(0 < density <= 1, f"--density {density}; expected a share above 0 and at most 1.")
    require(1 <= each <= inputs, f"--tuples {each}; expected 1 to {inputs}, the number of inputs.")
    require(0 <= outgoing <= classes, f"--outgoing {outgoing}; expected 0 (dense) to {classes}, the classes.")
    second = 2 * outgoing if outgoing else classes
    numbers, unit = int(density * dense), 2 * each + second
    require(
        numbers >= unit,
        f"--density {density} is {numbers} of {dense} numbers; expected at least {unit}, for one hidden unit "
        f"with {each} tuples; raise the density or give fewer --tuples.",
    )
    hidden = min(width, numbers // unit)
    k = min((numbers - hidden * second) // 2, hidden * inputs)
    counts = torch.full((hidden,), k // hidden)
    counts[: k % hidden] += 1
    return Budget(counts, outgoing, classes, dense)


def around_centre(k: int, shape: tuple[int, int], spread: float) -> Float[Tensor, "k 2"]:
    """k positions (row, column), normal around an image's centre with deviation `spread` × size, clipped."""
    top = torch.tensor(shape) - 1.0
    drawn = top / 2 + spread * torch.tensor(shape) * torch.randn(k, 2)
    return torch.minimum(drawn.clamp(min=0), top)


def centre_weights(shape: tuple[int, int], spread: float) -> Float[Tensor, " inputs"]:
    """The density of `around_centre` at every pixel, up to a factor."""
    axes = [(torch.arange(float(size)) - (size - 1) / 2) / (spread * size) for size in shape]
    squares = axes[0].square()[:, None] + axes[1].square()
    return squares.div(-2).exp().flatten()


def distinct(counts: Int64[Tensor, " rows"], weights: Float[Tensor, " inputs"]) -> Int64[Tensor, " k"]:
    """For every row as many different inputs as `counts` says, drawn in proportion to `weights`."""
    most = int(counts.max())
    drawn = torch.multinomial(weights.expand(len(counts), -1), most, replacement=False)
    taken: Bool[Tensor, "rows most"] = torch.arange(most) < counts[:, None]
    return drawn[taken]


@dataclass(frozen=True)
class Gaussians:
    """How index tuples are sampled, and how their scales shrink to `scale_end` within `steps`.

    With `scheduled` all scales follow one geometric schedule; otherwise they are learned, with `scale_end`
    as their floor.
    """

    steps: int
    kernel: str
    context: Context
    sampling: Sampling
    scale_end: float
    scheduled: bool
    subset: float

    def wiring(
        self,
        out_shape: tuple[int, ...],
        in_shape: tuple[int, ...],
        template: Template,
        positions: Tensor,
        scale: float,
    ) -> GaussianWiring:
        """A wiring that starts at `positions` `(k, q)` with the given scale."""
        scale = max(scale, self.scale_end)
        schedule = Anneal(scale, self.scale_end, max(1, self.steps))
        return GaussianWiring(
            out_shape,
            in_shape,
            template.k,
            kernel=self.kernel,
            context=self.context,
            sampling=self.sampling,
            template=template,
            positions=positions,
            scale=scale,
            scale_floor=schedule if self.scheduled else self.scale_end,
            scale_ceiling=schedule if self.scheduled else None,
            subset=self.subset,
        )


def gaussian_pixels(
    budget: Budget, shape: tuple[int, int], flat: bool, spread: float, scale: float, how: Gaussians
) -> GaussianWiring:
    """Tuples of every hidden unit, around the image's centre at first; pixels are (row, column) or `flat`."""
    rows = budget.rows
    positions = around_centre(len(rows), shape, spread)
    in_shape: tuple[int, ...] = shape
    if flat:
        in_shape = (math.prod(shape),)
        positions = positions.round() @ torch.tensor([[float(shape[1])], [1.0]])
    template = Template(1 + len(in_shape), (0,), rows[:, None])
    return how.wiring((budget.hidden,), in_shape, template, positions, scale)


def static_pixels(budget: Budget, shape: tuple[int, int], flat: bool, weights: Tensor) -> StaticWiring:
    """Different random pixels for every hidden unit, drawn in proportion to `weights` `(inputs,)`."""
    in_shape = (math.prod(shape),) if flat else shape
    pixels = unravel(distinct(budget.counts, weights), in_shape)
    return StaticWiring(budget.hidden, in_shape, indices=torch.cat([budget.rows[:, None], pixels], dim=1))


def gaussian_classes(budget: Budget, how: Gaussians) -> GaussianWiring:
    """Tuples from every hidden unit to classes, anywhere at first, with a quarter of the classes as scale."""
    out_shape, in_shape = (budget.classes,), (budget.hidden,)
    template = Template.per_input(out_shape, in_shape, budget.outgoing)
    positions = torch.rand(budget.hidden * budget.outgoing, 1) * (budget.classes - 1)
    return how.wiring(out_shape, in_shape, template, positions, budget.classes / 4)


def static_classes(budget: Budget) -> StaticWiring:
    """Different random classes for every hidden unit."""
    counts = torch.full((budget.hidden,), budget.outgoing)
    units = torch.arange(budget.hidden).repeat_interleave(budget.outgoing)
    classes = distinct(counts, torch.ones(budget.classes))
    return StaticWiring(budget.classes, budget.hidden, indices=torch.stack([classes, units], dim=1))


def sparse_classifier(first: Wiring, classes: int, second: Wiring | None = None) -> nn.Sequential:
    """first wiring → ReLU → classes; the second layer is dense unless it has a wiring.

    Takes images `(b, *image)`; they are flattened where the first wiring has one input dimension.
    """
    hidden = math.prod(first.out_shape)
    head = nn.Linear(hidden, classes) if second is None else SparseLinear(hidden, classes, wiring=second)
    layers = [SparseLayer(first.in_shape, hidden, wiring=first), nn.ReLU(), head]
    return nn.Sequential(nn.Flatten(), *layers) if len(first.in_shape) == 1 else nn.Sequential(*layers)


def dense_classifier(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """inputs → hidden → ReLU → classes, all dense."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def conv_classifier(shape: tuple[int, int], hidden: int, classes: int) -> nn.Sequential:
    """One convolution → ReLU → classes, with about `hidden` numbers after the convolution.

    Its output is g × g positions (g = 5, or 3 for images below 20 pixels) of hidden // g² channels (at least
    one): at 28 × 28 and 300 hidden units 12 channels of 5 × 5, by a kernel of 8 × 8 with stride 5.
    """
    g = min(5 if min(shape) >= 20 else 3, *shape)
    stride = (shape[0] // g, shape[1] // g)
    kernel = (shape[0] - (g - 1) * stride[0], shape[1] - (g - 1) * stride[1])
    channels = max(1, hidden // g**2)
    convolution = nn.Conv2d(1, channels, kernel, stride)
    flat = [nn.ReLU(), nn.Flatten(), nn.Linear(channels * g**2, classes)]
    return nn.Sequential(nn.Unflatten(1, (1, shape[0])), convolution, *flat)
