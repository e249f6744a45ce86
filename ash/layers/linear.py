"""Hosts that contract: `SparseLayer` for tensors of any rank, `SparseLinear` as a drop-in for `nn.Linear`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash.backends import get_backend
from ash.checks import UserError, check_finite, require, shape
from ash.contract import contract
from ash.growth import Factors
from ash.wirings.base import Wiring
from ash.wirings.gaussian import GaussianWiring

WiringFactory = Callable[..., Wiring]


def make_wiring(
    wiring: Wiring | WiringFactory | None, out_shape: tuple[int, ...], in_shape: tuple[int, ...], **factory: Any
) -> Wiring:
    """A wiring for a weight of the given shape, from one, or from a factory called as `f(out_shape, in_shape)`.

    Raises `UserError` where a wiring is of another shape, or a factory returns something else.
    """
    if not isinstance(wiring, Wiring):
        make = GaussianWiring if wiring is None else wiring
        given = {name: value for name, value in factory.items() if value is not None}
        wiring = make(out_shape, in_shape, **given)
    require(isinstance(wiring, Wiring), f"a factory that returned a {type(wiring).__name__}; expected a Wiring.")
    expected = (out_shape, in_shape)
    actual = (wiring.out_shape, wiring.in_shape)
    require(actual == expected, f"a wiring of shape {actual[0]} x {actual[1]}; expected {out_shape} x {in_shape}.")
    return wiring


def _instances(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, *shape, *extra) -> (b · extra, *shape): the extra dimensions share the weight as the batch does."""
    lead = 1 + len(shape)
    return x if x.dim() == lead else x.flatten(lead).movedim(-1, 1).flatten(0, 1)


class SparseLayer(nn.Module):
    """y = W · x + bias with a sparse W of any rank.

    Args:
        in_shape, out_shape: an int or a sequence each.
        wiring: a `Wiring` of that shape, or a factory: `functools.partial(GaussianWiring, k=1000)`; by
            default a `GaussianWiring` of density 0.1.
        bias: one number for every output position, `(*out_shape,)`.
        backend: how the product is computed, see `contract`.

    Shapes: `(b, *in_shape, *extra)` -> `(b, *out_shape, *extra)`.

    Raises `UserError` for shapes that do not fit, an unknown or unavailable backend, and for input that is NaN
    or infinite; `layer.check_input = False` leaves the latter out.
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        bias: bool = True,
        *,
        wiring: Wiring | WiringFactory | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_shape, self.out_shape = shape("in_shape", in_shape), shape("out_shape", out_shape)
        self.backend, self.check_input = backend, True
        if backend != "auto":
            get_backend(backend)
        self.wiring = make_wiring(wiring, self.out_shape, self.in_shape, device=device, dtype=dtype)
        self.bias: nn.Parameter | None
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(self.out_shape, device=device, dtype=dtype)) if bias else None
        )
        self._reset_bias()

    def reset_parameters(self) -> None:
        """New wiring and bias, as when the layer was made."""
        self.wiring.reset_parameters()
        self._reset_bias()

    @torch.no_grad()
    def _reset_bias(self) -> None:
        """Uniform in ±1/√(mean fan-in over the stored entries)."""
        if self.bias is not None:
            fan_in = self.wiring.stored_entries() / math.prod(self.out_shape)
            bound = 1 / math.sqrt(max(1.0, fan_in))
            self.bias.uniform_(-bound, bound)

    def forward(self, x: Float[Tensor, "..."], condition: Tensor | None = None) -> Float[Tensor, "..."]:
        """`(b, *in_shape, *extra)` -> `(b, *out_shape, *extra)`.

        An adaptive wiring sees `condition` `(b, *condition_shape)`, or x itself where none is given.
        """
        if self.check_input:
            check_finite(x, self)
        weight = self.wiring(x if condition is None else condition)
        y = contract(weight, x, self.backend)
        if self.wiring.wants_factors and y.requires_grad and not weight.per_instance:
            self._watch(x, y)
        if self.bias is None:
            return y
        extra = y.dim() - 1 - len(self.out_shape)
        return y + self.bias.to(y.dtype).reshape(*self.out_shape, *[1] * extra)

    def _watch(self, x: Tensor, y: Tensor) -> None:
        """Hand the wiring the factors of the gradient of W when this batch's backward pass comes by."""
        source, wiring, in_shape, out_shape = x.detach(), self.wiring, self.in_shape, self.out_shape
        y.register_hook(lambda g: wiring.observe(Factors(_instances(source, in_shape), _instances(g, out_shape))))

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, out_shape={self.out_shape}, bias={self.bias is not None}"


class SparseLinear(SparseLayer):
    """A drop-in for `nn.Linear` with a sparse weight.

    Args:
        in_features, out_features, bias, device, dtype: as for `nn.Linear`.
        wiring, backend: as for `SparseLayer`.

    Shapes: `(*, in_features)` -> `(*, out_features)`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        wiring: Wiring | WiringFactory | None = None,
        backend: str = "auto",
    ):
        super().__init__(in_features, out_features, bias, wiring=wiring, backend=backend, device=device, dtype=dtype)

    @property
    def in_features(self) -> int:
        """Size of each input."""
        return self.in_shape[0]

    @property
    def out_features(self) -> int:
        """Size of each output."""
        return self.out_shape[0]

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, wiring: Wiring | WiringFactory | None = None, backend: str = "auto"
    ) -> SparseLinear:
        """A sparse layer with the bias of `linear` and, at the wiring's entries, its weights."""
        weight = linear.weight
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
            wiring=wiring,
            backend=backend,
        )
        layer.wiring.load_dense(weight.detach())
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    def forward(self, x: Float[Tensor, "*n i"], condition: Tensor | None = None) -> Float[Tensor, "*n o"]:
        """`(*, in_features)` -> `(*, out_features)`; every row is an instance, for which `condition` has a row too."""
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise UserError(
                f"an input of shape {tuple(x.shape)} for {type(self).__name__}({self.extra_repr()}); "
                f"expected (*, {self.in_features})."
            )
        y: Tensor = super().forward(x.reshape(-1, self.in_features), condition)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
