"""Hosts that contract: `SparseLayer` for tensors of any rank, `SparseLinear` as a drop-in for `nn.Linear`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash.backends import get_backend
from ash.checks import UserError, check_finite, require, shape
from ash.contract import contract
from ash.growth import Factors
from ash.interchange import SparseInput, as_sparse_batch
from ash.layers.host import BiasedHost, WiringFactory, make_wiring
from ash.sparse_batch import SparseBatch
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

    Shapes: `(b, *in_shape, *extra)` -> `(b, *out_shape, *extra)`; without a bias also b sparse tensors of shape
    `in_shape` (a `SparseBatch`, or what `as_sparse_batch` takes) -> a `SparseBatch` of b tensors of shape `out_shape`;
    no dense one is made.

    Raises `UserError` for shapes that do not fit, an unknown or unavailable backend, a sparse input to a layer with
    a bias or with a wiring that learns from dense input only, and for input that is NaN or infinite or has indices
    outside its shape; `layer.check_input = False` leaves the latter out.
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

    def forward(self, x: Tensor | SparseInput, condition: Tensor | None = None) -> Tensor | SparseBatch:
        """`(b, *in_shape, *extra)` -> `(b, *out_shape, *extra)`, or b sparse tensors -> b sparse tensors.

        An adaptive wiring sees `condition` `(b, *condition_shape)`, or x itself where none is given and x is dense.
        """
        if isinstance(x, Tensor) and x.layout == torch.strided:
            return self._forward_dense(x, condition)
        batch = x if isinstance(x, SparseBatch) else as_sparse_batch(x, len(self.in_shape))
        return self._forward_batch(batch, condition)

    def _forward_dense(self, x: Float[Tensor, "..."], condition: Tensor | None) -> Float[Tensor, "..."]:
        """Dense in, dense out."""
        if self.check_input:
            check_finite(x, self)
        weight = self.wiring(x if condition is None else condition)
        y = contract(weight, x, self.backend, bias=self.bias)
        if self.wiring.wants_factors and y.requires_grad and not weight.per_instance:
            self._watch(x, y)
        return y

    def _forward_batch(self, x: SparseBatch, condition: Tensor | None) -> SparseBatch:
        """Sparse in, sparse out."""
        require(
            self.bias is None,
            f"a sparse input for {type(self).__name__}({self.extra_repr()}); a bias would fill every output position, "
            "and the result would not be sparse; make the layer with bias=False.",
        )
        require(
            not (self.wiring.wants_factors and torch.is_grad_enabled()),
            f"a sparse input for {type(self.wiring).__name__}({self.wiring.extra_repr()}), which learns from the "
            "gradient of every entry of its weight; a sparse result tells only some; give the layer x.to_dense(), "
            "or a wiring that does without (SETWiring; guided_samples=0).",
        )
        if self.check_input:
            x.check()
        return contract(self.wiring(condition), x)

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

    def forward(self, x: Tensor | SparseInput, condition: Tensor | None = None) -> Tensor | SparseBatch:
        """`(*, in_features)` -> `(*, out_features)`; every row is an instance, for which `condition` has a row too.

        Or sparse vectors -> sparse vectors, as in `SparseLayer`.
        """
        if not (isinstance(x, Tensor) and x.layout == torch.strided):
            return super().forward(x, condition)
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise UserError(
                f"an input of shape {tuple(x.shape)} for {type(self).__name__}({self.extra_repr()}); "
                f"expected (*, {self.in_features})."
            )
        y = self._forward_dense(x.reshape(-1, self.in_features), condition)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
