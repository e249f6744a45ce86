"""Lists of numbers written by hand: digits side by side, drawn anew for every batch; and a network that reads them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ash.checks import require
from experiments.images import Images


class Lists(NamedTuple):
    """b lists of n numbers.

    Attributes:
        pictures: `(b * n, 1, h, digits * h)`: the digits of each number side by side.
        values: `(b, n)`, the numbers.
    """

    pictures: Float[Tensor, "bn 1 h w"]
    values: Int64[Tensor, "b n"]


class Digits:
    """A pool of digits from which numbers are made; every digit of a number is any of the pool, with replacement.

    Args:
        pixels: `(n, h, h)`. labels: `(n,)`, 0 to 9. digits: of a number.
    """

    def __init__(self, pixels: Float[Tensor, "n h h"], labels: Int64[Tensor, " n"], digits: int):
        self.pixels, self.labels, self.digits = pixels, labels, digits
        self.units = 10 ** torch.arange(digits - 1, -1, -1, device=labels.device)

    def draw(self, b: int, n: int, generator: torch.Generator | None = None) -> Lists:
        """b lists of n numbers; drawn by torch's default generator if none is given.

        Raises `UserError` for a list that has more digits than there are pictures.
        """
        self.check(n)
        shape = (b, n, self.digits)
        which = torch.randint(len(self.labels), shape, generator=generator, device=self.labels.device)
        h = self.pixels.shape[-1]
        pictures = self.pixels[which].transpose(2, 3).reshape(b * n, 1, h, self.digits * h)
        return Lists(pictures.contiguous(memory_format=torch.channels_last), (self.labels[which] * self.units).sum(-1))

    def check(self, n: int) -> None:
        """Raise `UserError` where a list of n numbers has more digits than there are pictures."""
        most = len(self.labels) // self.digits
        require(
            n <= most,
            f"lists of {n} numbers of {self.digits} digit(s), and {len(self.labels)} pictures of digits; expected at "
            f"most {most} numbers; make --size smaller, or give larger data with --data-dir.",
        )


class Parts(NamedTuple):
    """Pools of digits from separate images."""

    train: Digits
    validation: Digits
    test: Digits


def parts(images: Images, digits: int, device: torch.device, dtype: torch.dtype) -> Parts:
    """Pools of the parts of `images`, pictures of 28 × 28 at half their size, standardised by the training part.

    Source of the task: four-digit MNIST, as in NeuralSort (arXiv 1903.08850) and diffsort (arXiv 2203.09630).
    """
    half = images.train_x.shape[-1] >= 16
    h, w = images.train_x.shape[1:]
    require(h == w and (not half or h % 2 == 0), f"pictures of {h} x {w}; expected squares of an even size.")

    def shrink(x: Tensor) -> Tensor:
        return avg_pool2d(x.float().unsqueeze(1), 2).squeeze(1) if half else x.float()

    def pool(x: Tensor, y: Tensor) -> Digits:
        return Digits(((shrink(x) - mean) / std).to(device, dtype), y.to(device), digits)

    std, mean = torch.std_mean(shrink(images.train_x))
    return Parts(
        pool(images.train_x, images.train_y),
        pool(images.validation_x, images.validation_y),
        pool(images.test_x, images.test_y),
    )


class KeyNetwork(nn.Module):
    """A convolutional network that gives each picture of a number a key.

    A convolution of 4 × 4, stride 2; one that spans a digit, with a stride of a digit; one of 1 × 1; then two dense
    layers over all positions, which learn what a position is worth. The second and third are computed as products of
    matrices, in half the time. The last layer keeps float32 under autocast: with the 8 bits of bfloat16 near numbers
    get equal keys.

    Args:
        side: height of the picture. digits: of a number. channels: of the convolutions.
        features: numbers for each picture, a key or what a key is to be made of.

    Shapes: `(n, 1, side, digits * side)` -> `(n,)`, or `(n, features)` if there is more than one.
    """

    def __init__(
        self,
        side: int,
        digits: int,
        channels: tuple[int, int, int] = (8, 64, 32),
        hidden: int = 64,
        features: int = 1,
    ):
        super().__init__()
        require(side >= 4 and side % 2 == 0, f"pictures {side} pixels high; expected an even number, at least 4.")
        first, second, third = channels
        self.digits = digits
        self.strokes = nn.Conv2d(1, first, 4, stride=2, padding=1)
        # So that its maps come with channels last, as the next product reads them: half as fast again.
        self.strokes.weight = nn.Parameter(self.strokes.weight.detach().to(memory_format=torch.channels_last))
        self.digit = nn.Linear((side // 2) ** 2 * first, second)
        self.mix = nn.Linear(second, third)
        self.number = nn.Linear(third * digits, hidden)
        self.key = nn.Linear(hidden, features)

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n ..."]:
        maps = self.strokes(x).relu().movedim(1, -1)
        by_digit = maps.unflatten(2, (self.digits, -1)).transpose(1, 2).flatten(2)
        features = self.mix(self.digit(by_digit).relu()).relu()
        number = self.number(features.flatten(1)).relu()
        with torch.autocast(x.device.type, enabled=False):
            keys: Tensor = self.key(number.float())
        return keys.squeeze(-1)


def target_places(values: Int64[Tensor, "b n"], keys: Float[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
    """The place of every number in ascending order. Equal numbers may come in any order: they take that of the keys."""
    by_key = keys.detach().argsort(dim=-1, stable=True)
    order = by_key.gather(-1, values.gather(-1, by_key).argsort(dim=-1, stable=True))
    return order.argsort(dim=-1)


class Score(NamedTuple):
    """Shares of lists whose numbers all come in order, and of numbers that come at their place."""

    exact_match: float
    element_wise: float


def score(values: Int64[Tensor, "b n"], order: Int64[Tensor, "b n"]) -> Score:
    """How well `order` (which element comes first, second, …) sorts the numbers; equal ones in any order are right."""
    right = values.gather(-1, order) == values.sort(dim=-1).values
    return Score(float(right.all(-1).double().mean()), float(right.double().mean()))


def chance(n: int) -> float:
    """The share of lists of n different numbers that a random order sorts."""
    return 1 / math.factorial(n)
