"""The oracle: materialise W and multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from ash.backends.base import Backend
from ash.weight import SparseWeight


class Dense(Backend):
    """Y = to_dense(W) · X. Memory is the whole tensor's; for tests and tiny weights."""

    name = "dense"

    def matmul(self, weight: SparseWeight, x: Tensor) -> Tensor:
        wide = torch.promote_types(weight.values.dtype, x.dtype)
        y: Tensor = weight.to_dense().reshape(weight.matrix_shape).to(wide) @ x.to(wide)
        return y.to(x.dtype)


BACKEND = Dense()
