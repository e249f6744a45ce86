"""Layers of a frozen model: one form of the product, by tensors of its own, so that they can be exported and compiled.

`torch.export` and `torch.compile` meet plain operators on buffers: no sort, no choice, nothing that depends on
numbers. What the buffers hold is made of the wiring's values and positions, which alone are in the `state_dict`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ash.backends.condensed import condense, condensed_linear
from ash.backends.torch import csr_linear
from ash.checks import check_finite
from ash.layers.conv import SparseConv2d
from ash.layers.linear import SparseLayer, SparseLinear
from ash.layers.unfold import unfold
from ash.weight import SparseWeight
from ash.wirings.base import Wiring

CONVOLUTION = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"
)  # fmt: skip
"""Options that a convolution and its frozen form share."""
_HALF = (torch.float16, torch.bfloat16)


class Product(nn.Module, ABC):
    """y = x · Wᵀ for x `(b, inputs)` in one form; its buffers are no part of the `state_dict`."""

    def __init__(self, wiring: Wiring):
        super().__init__()
        self._weight: SparseWeight | None = None
        self.settle(wiring)

    def settle(self, wiring: Wiring) -> None:
        """Make the buffers anew where the wiring's weight has changed."""
        weight = wiring.rounded()
        if weight is not self._weight and weight is not None and not weight.values.is_meta:
            self._weight = weight
            with torch.inference_mode(False), torch.no_grad():
                for name, tensor in self.arrange(weight).items():
                    self.register_buffer(name, tensor, persistent=False)

    @abstractmethod
    def arrange(self, weight: SparseWeight) -> dict[str, Tensor]:
        """Required. The buffers by name."""

    @abstractmethod
    def multiply(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """Required. The product in float32 or wider."""

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """`(b, inputs)` -> `(b, outputs)` in the type of x; half precision is summed up in float32."""
        return self.multiply(x.float() if x.dtype in _HALF else x).to(x.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weight": None}


class CSRProduct(Product):
    """By row pointers and columns."""

    values: Tensor
    crow: Tensor
    col: Tensor

    def arrange(self, weight: SparseWeight) -> dict[str, Tensor]:
        pattern = weight.pattern
        return {"values": pattern.arrange(weight.values), "crow": pattern.crow, "col": pattern.col}

    def multiply(self, x: Tensor) -> Tensor:
        return csr_linear(x, self.values.to(x.dtype), self.crow, self.col)


class CondensedProduct(Product):
    """By two tables, inputs and values for each output; see `ash.backends.condensed`."""

    values: Tensor
    index: Tensor

    def arrange(self, weight: SparseWeight) -> dict[str, Tensor]:
        index, values = condense(weight)
        return {"index": index, "values": values}

    def multiply(self, x: Tensor) -> Tensor:
        return condensed_linear(x, self.index, self.values.to(x.dtype))


class DenseProduct(Product):
    """By the whole matrix."""

    matrix: Tensor

    def arrange(self, weight: SparseWeight) -> dict[str, Tensor]:
        return {"matrix": weight.to_dense().reshape(weight.matrix_shape)}

    def multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix.to(x.dtype))


PRODUCTS: dict[str, type[Product]] = {"csr": CSRProduct, "condensed": CondensedProduct, "dense": DenseProduct}


def _settled(layer: FrozenLayer | FrozenConv2d, *_: object) -> None:
    layer.product.settle(layer.wiring)


class FrozenLayer(SparseLayer):
    """A `SparseLayer` whose weight stays as it is.

    Args:
        host: the layer itself, with a `FrozenWiring`; both share wiring and bias.
        form: a name among `PRODUCTS`.
    """

    product: Product

    def __init__(self, host: SparseLayer, form: str):
        SparseLayer.__init__(self, host.in_shape, host.out_shape, False, wiring=host.wiring, backend="torch")
        _take(self, host, form)

    def _forward_dense(self, x: Float[Tensor, "..."], condition: Tensor | None) -> Float[Tensor, "..."]:
        traced = torch.compiler.is_compiling()
        if not traced:
            self.product.settle(self.wiring)
        if isinstance(self.product, CSRProduct) and not traced:
            return super()._forward_dense(x, condition)
        if self.check_input:
            check_finite(x, self)
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        extra = x.shape[1 + len(self.in_shape) :]
        if not extra:
            y = self.product(x.flatten(1)).reshape(x.shape[0], *self.out_shape)
            return y if self.bias is None else y + self.bias.to(y.dtype)
        b, i, o, e = x.shape[0], math.prod(self.in_shape), math.prod(self.out_shape), math.prod(extra)
        y = self.product(x.reshape(b, i, e).transpose(1, 2).reshape(b * e, i)).reshape(b, e, o).transpose(1, 2)
        y = y if self.bias is None else y + self.bias.to(y.dtype).flatten().unsqueeze(-1)
        return y.reshape(b, *self.out_shape, *extra)


class FrozenLinear(FrozenLayer, SparseLinear):
    """A `SparseLinear` whose weight stays as it is; `(*, in_features)` -> `(*, out_features)`."""


class FrozenConv2d(SparseConv2d):
    """A `SparseConv2d` whose weight stays as it is: CSR × unfolded input."""

    product: Product

    def __init__(self, host: SparseConv2d, form: str = "csr"):
        options: dict[str, Any] = {name: getattr(host, name) for name in CONVOLUTION}
        super().__init__(**options, bias=False, wiring=host.wiring, backend="torch")
        _take(self, host, form)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if not torch.compiler.is_compiling():
            self.product.settle(self.wiring)
            return super().forward(x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        self._check(x)
        columns = unfold(self._margins(x).transpose(0, 1), self._window)
        y = self.product(columns.flatten(3).flatten(0, 2).t())
        y = y.reshape(*columns.shape[3:], self.out_channels).movedim(-1, 1)
        return y if self.bias is None else y + self.bias.to(y.dtype).reshape(-1, 1, 1)


def _take(layer: FrozenLayer | FrozenConv2d, host: SparseLayer | SparseConv2d, form: str) -> None:
    layer.bias, layer.check_input = host.bias, host.check_input
    layer.product = PRODUCTS[form](layer.wiring)
    layer.register_load_state_dict_post_hook(_settled)
    layer.eval()
