"""The adaptive layer of the benchmark, and what it is measured against: 784 → 256, 8 points a tuple."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ash import HyperWiring, MLPHypernetwork, SparseLinear

INPUTS, OUTPUTS, HIDDEN, POINTS = 784, 256, 32, 8


def adaptive(k: int, bias: bool = True) -> nn.Module:
    """A layer whose hypernetwork, a perceptron with one hidden layer, emits k tuples for every instance."""
    wiring = HyperWiring(OUTPUTS, INPUTS, k, hypernetwork=partial(MLPHypernetwork, hidden=(HIDDEN,)))
    return SparseLinear(INPUTS, OUTPUTS, bias, wiring=wiring)


class DenseHyper(nn.Module):
    """The same perceptron emits every weight of a dense layer, for every instance: (b, i) -> (b, o)."""

    def __init__(self) -> None:
        super().__init__()
        self.hypernetwork = MLPHypernetwork((INPUTS,), OUTPUTS, INPUTS, hidden=(HIDDEN,))
        self.bias = nn.Parameter(torch.zeros(OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.hypernetwork(x), x.unsqueeze(-1)).squeeze(-1) + self.bias


class Gathered(nn.Module):
    """What a sparse weight per instance cannot do without: gather, multiply, add up, over given indices and values."""

    def __init__(self, batch: int, k: int):
        super().__init__()
        n = k * POINTS
        self.values = nn.Parameter(torch.randn(batch, n))
        instance = torch.arange(batch).unsqueeze(-1)
        self.rows = (torch.randint(OUTPUTS, (batch, n)) + OUTPUTS * instance).flatten()
        self.cols = torch.randint(INPUTS, (batch, n))

    def forward(self, x: Tensor) -> Tensor:
        products = self.values * x.gather(1, self.cols)
        y = products.new_zeros(len(x) * OUTPUTS).index_add(0, self.rows, products.flatten())
        return y.reshape(len(x), OUTPUTS)
