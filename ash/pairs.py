"""Learned functions of pairs of elements, summed over one of the two: what an element has to do with all others.

What decides between near ties is how steep a function can become. An ordinary layer has to grow its weights one
small step at a time; `SharpLinear` learns the steepness of every unit as a logarithm, apart from its direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash.checks import positive, require
from ash.hypernets import SmallLinear, set_sizes


class SharpLinear(nn.Module):
    """y = g · (v/|v| · (x − centre) + bias), with direction v, bias and log g learned for every unit.

    Under a saturating activation a unit is a soft step across a hyperplane; g, its steepness, can grow by orders of
    magnitude in as many optimizer steps as a weight takes to grow by one, above all with a learning rate of its
    own (`log_gain`, ten to thirty times that of the rest).

    Args:
        inputs, outputs: as for `nn.Linear`.
        gain: g at the start. centre: of the inputs. spread: initial biases are uniform in ± this.

    Shapes: `(*, inputs)` -> `(*, outputs)`.
    """

    def __init__(self, inputs: int, outputs: int, *, gain: float = 4.0, centre: float = 0.0, spread: float = 0.3):
        super().__init__()
        positive("gain", gain)
        self.gain, self.centre, self.spread = gain, centre, spread
        self.direction = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.log_gain = nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random directions, uniform biases, equal gains."""
        nn.init.normal_(self.direction)
        nn.init.uniform_(self.bias, -self.spread, self.spread)
        nn.init.constant_(self.log_gain, math.log(self.gain))

    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """g · v/|v|."""
        return self.direction * (self.log_gain.exp() / self.direction.norm(dim=1)).unsqueeze(1)

    def offset(self) -> Float[Tensor, " outputs"]:
        """What is added to weight · (x − centre)."""
        return self.bias * self.log_gain.exp()

    def forward(self, x: Float[Tensor, "*n inputs"]) -> Float[Tensor, "*n outputs"]:
        return nn.functional.linear(x - self.centre, self.weight(), self.offset())

    def extra_repr(self) -> str:
        outputs, inputs = self.direction.shape
        return f"{inputs}, {outputs}, gain={self.gain}, centre={self.centre}"


class PairHypernetwork(nn.Module):
    """Σ_j φ(x_i, x_j) for every element i of a set: permutation-equivariant, one group of tuples for each element.

    φ is a learned layer over both elements, tanh, and a linear head: nothing in it says that the elements are to be
    compared, and a sum of it over j can still come to count how many lie below.

    Args:
        in_shape: `(n,)`, n numbers, or `(n, f)`, n elements with f features each. k: a multiple of n.
        hidden: units of φ. They cost b · n² · hidden numbers of memory.
        sharpness, centre: of the layer over both, see `SharpLinear`.
        gain: standard deviation of one pair's part of what is emitted at first, about.

    Attributes: groups: n.

    Shapes: `(b, *in_shape)` -> `(b, k, width)`.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        k: int,
        width: int,
        *,
        hidden: int = 8,
        sharpness: float = 4.0,
        centre: float = 0.0,
        gain: float = 0.1,
    ):
        super().__init__()
        require(hidden >= 1, f"hidden={hidden}; expected at least 1 unit.")
        self.groups, self.features = set_sizes(in_shape, k)
        self.k, self.width = k, width
        self.pair = SharpLinear(2 * self.features, hidden, gain=sharpness, centre=centre)
        self.head = SmallLinear(hidden, k // self.groups * width, gain)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k width"]:
        elements = x.reshape(x.shape[0], self.groups, self.features) - self.pair.centre
        own, other = self.pair.weight().split(self.features, dim=1)
        first = nn.functional.linear(elements, own, self.pair.offset())
        second = nn.functional.linear(elements, other)
        summed = (first.unsqueeze(2) + second.unsqueeze(1)).tanh().sum(2)
        raw: Tensor = self.head(summed)
        return raw.reshape(x.shape[0], self.k, self.width)
