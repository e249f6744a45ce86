"""Hosts that contract: `SparseLayer` for tensors of any rank, `SparseLinear` as a drop-in for `nn.Linear`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash.backends import get_backend
from ash.checks import UserError, check_finite, shape
from ash.contract import contract
from ash.growth import Factors
from ash.layers.host import BiasedHost, WiringFactory, make_wiring
from ash.wirings.base import Wiring


def _instances(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, *shape, *extra) -> (b · extra, *shape): the extra dimensions share the weight as the batch does."""
    lead = 1 + len(shape)
    return x if x.dim() == lead else x.flatten(lead).movedim(-1, 1).flatten(0, 1)


class SparseLayer(BiasedHost):
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
        self._register_bias(bias, device, dtype)

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
        return layer._take(linear)

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
