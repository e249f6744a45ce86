"""The backend `"triton"`: y = W · x of a stored weight by Triton's CSR product and SDDMM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ash.backends.base import Backend
from ash.backends.triton import csr
from ash.backends.triton.serving import interpreted
from ash.checks import optional, require
from ash.pattern import CSRPattern
from ash.weight import SparseWeight

HINT = "pip install triton (Linux; a GPU runs it)"


class _Rows(torch.autograd.Function):
    """(values in CSR order, x) → W · x, added up in float32 at least."""

    @staticmethod
    def forward(values: Tensor, x: Tensor, pattern: CSRPattern) -> Tensor:
        return csr.matmul(values, pattern.crow, pattern.col, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, x, ctx.pattern = inputs
        ctx.save_for_backward(values, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, x = ctx.saved_tensors
        d_values = d_x = None
        if ctx.needs_input_grad[0]:
            d_values = csr.sddmm(grad, x, ctx.pattern.crow, ctx.pattern.col).to(values.dtype)
        if ctx.needs_input_grad[1]:
            crow, col, order = ctx.pattern.transposed
            d_x = csr.matmul(values.index_select(0, order), crow, col, grad)
        return d_values, d_x, None


class Triton(Backend):
    """Own kernels for a stored weight on a GPU. Weights that are drawn there multiply by themselves."""

    name = "triton"

    def check(self) -> None:
        optional("triton", HINT)

    def matmul(self, weight: SparseWeight, x: Tensor) -> Tensor:
        require(
            x.is_cuda or interpreted(),
            f"backend 'triton' for tensors on {x.device}; it needs a GPU. Use 'auto', or move weight and input.",
        )
        y: Tensor = _Rows.apply(weight.arranged(), x, weight.pattern)
        return y


BACKEND = Triton()
