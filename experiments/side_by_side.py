"""Nets of equal shapes trained side by side: the sparse products of a layer of all of them are one.

A step of a small sparse net costs what calling costs, not what computing costs. Nets that differ in seed or density
alone go through the same calls, each with batches, weights and wiring of its own; nothing passes between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash import Factors, SparseLayer, SparseLinear, SparseWeight, StaticWiring, Wiring, contract
from ash.pattern import CSRPattern


class SideBySide(nn.Module):
    """s nets as one: x `(b, s, *in)` -> `(b, s, classes)`.

    Args:
        nets: chains of linear layers, sparse or dense, and modules without parameters.
    """

    def __init__(self, nets: Sequence[nn.Sequential]):
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self._products = [Product() for _ in nets[0]]

    def forward(self, x: Float[Tensor, "b s ..."]) -> Float[Tensor, "b s c"]:
        for product, *layers in zip(self._products, *self.nets, strict=True):
            first = layers[0]
            if isinstance(first, nn.Flatten):
                x = x.flatten(2)
            elif isinstance(first, SparseLinear):
                x = product(layers, x)
            elif isinstance(first, (SparseLayer, nn.Linear)):
                x = alone(layers, x)
            else:
                x = first(x)
        return x


def alone(layers: Sequence[nn.Module], x: Float[Tensor, "b s ..."]) -> Float[Tensor, "b s o"]:
    """Every layer on its own."""
    return torch.stack([layer(part) for layer, part in zip(layers, x.unbind(1), strict=True)], 1)


class Product:
    """The sparse layers of one depth of all nets: y_i = W_i x_i + b_i by one product with a block-diagonal weight.

    Its CSR structure is kept until a net is wired anew. Layers whose wirings are no stored entries (candidates,
    draws) go on their own.
    """

    def __init__(self) -> None:
        self._made_of: list[CSRPattern] = []
        self._whole: tuple[Tensor, CSRPattern] | None = None

    def __call__(self, layers: Sequence[SparseLinear], x: Float[Tensor, "b s i"]) -> Float[Tensor, "b s o"]:
        wirings = [layer.wiring for layer in layers]
        if len(layers) == 1 or not all(isinstance(each, StaticWiring) for each in wirings):
            return alone(layers, x)
        weights = [each() for each in wirings]
        b, s, out = len(x), len(layers), layers[0].out_features
        y = contract(self._joined(weights), x.reshape(b, -1), "torch")
        if any(each.wants_factors for each in wirings) and y.requires_grad:
            _watch(wirings, x.detach(), y)
        return y.reshape(b, s, out) + torch.stack([layer.bias for layer in layers])  # type: ignore[misc]

    def _joined(self, weights: list[SparseWeight]) -> SparseWeight:
        patterns = [weight.pattern for weight in weights]
        if len(self._made_of) != len(patterns) or any(a is not b for a, b in zip(patterns, self._made_of, strict=True)):
            self._made_of, self._whole = patterns, _blocks(patterns)
        assert self._whole is not None
        indices, pattern = self._whole
        values = torch.cat([p.arrange(weight.values) for p, weight in zip(patterns, weights, strict=True)])
        return SparseWeight(indices, values, pattern.shape[:1], pattern.shape[1:], pattern)


def _blocks(patterns: Sequence[CSRPattern]) -> tuple[Int64[Tensor, "n 2"], CSRPattern]:
    """Entries and structure of the block-diagonal matrix."""
    rows, cols = patterns[0].shape
    row = torch.cat([pattern.row.long() + i * rows for i, pattern in enumerate(patterns)])
    col = torch.cat([pattern.col.long() + i * cols for i, pattern in enumerate(patterns)])
    return torch.stack([row, col], 1), CSRPattern(row, col, (len(patterns) * rows, len(patterns) * cols))


def _watch(wirings: Sequence[Wiring], x: Float[Tensor, "b s i"], y: Tensor) -> None:
    """Hand every wiring that asks for it the factors of its own gradient."""

    def observe(g: Tensor) -> None:
        for i, (wiring, part) in enumerate(zip(wirings, g.reshape(len(x), len(wirings), -1).unbind(1), strict=True)):
            if wiring.wants_factors:
                wiring.observe(Factors(x[:, i], part))

    y.register_hook(observe)
