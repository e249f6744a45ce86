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
