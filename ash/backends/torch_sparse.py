"""torch_sparse's product, for users of PyG. Optional."""

from __future__ import annotations

from torch import Tensor

from ash.backends.base import Backend
from ash.checks import TORCH_SPARSE_HINT, optional
from ash.weight import SparseWeight


class TorchSparse(Backend):
    """Y = SparseTensor(W) · X by `torch_sparse.matmul`."""

    name = "torch_sparse"

    def check(self) -> None:
        optional("torch_sparse", TORCH_SPARSE_HINT)

    def matmul(self, weight: SparseWeight, x: Tensor) -> Tensor:
        if not x.numel():  # its kernels divide by the number of columns
            return x.new_zeros(weight.matrix_shape[0], x.shape[1]) + 0 * (weight.values.sum() + x.sum())
        torch_sparse = optional("torch_sparse", TORCH_SPARSE_HINT)
        pattern = weight.pattern
        matrix = torch_sparse.SparseTensor(
            rowptr=pattern.crow.long(),
            col=pattern.col.long(),
            value=weight.arranged().to(x.dtype),
            sparse_sizes=weight.matrix_shape,
            is_sorted=True,
            trust_data=True,
        )
        result: Tensor = torch_sparse.matmul(matrix, x)
        return result


BACKEND = TorchSparse()
