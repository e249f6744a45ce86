"""The oracle: materialise W and multiply."""

from __future__ import annotations

from torch import Tensor

from ash.backends.base import Backend
from ash.weight import SparseWeight


class Dense(Backend):
    """Y = to_dense(W) · X. Memory is the whole tensor's; for tests and tiny weights."""

    name = "dense"

    def matmul(self, weight: SparseWeight, x: Tensor) -> Tensor:
        return weight.to_dense().reshape(weight.matrix_shape) @ x


BACKEND = Dense()
