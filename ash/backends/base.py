"""What a backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from ash.weight import SparseWeight


class Backend(ABC):
    """Computes Y = W · X for a shared weight, differentiable by the values of W and by X."""

    name: str

    def check(self) -> None:
        """Raise `BackendUnavailable` where the backend cannot run; the default runs everywhere."""
        return

    @abstractmethod
    def matmul(self, weight: SparseWeight, x: Float[Tensor, "i e"]) -> Float[Tensor, "o e"]:
        """Required. The product of the flattened weight (outputs × inputs) and a dense matrix."""

    def linear(
        self, weight: SparseWeight, x: Float[Tensor, "i e"], bias: Float[Tensor, " o"] | None
    ) -> Float[Tensor, "o e"]:
        """The product and a bias for each output, in the type of x; override it where both are one pass."""
        return plus(self.matmul(weight, x), bias)


def plus(y: Float[Tensor, "... o e"], bias: Float[Tensor, " o"] | None) -> Float[Tensor, "... o e"]:
    """y and a bias for each output, in the type of y."""
    return y if bias is None else y + bias.to(y.dtype).unsqueeze(-1)
