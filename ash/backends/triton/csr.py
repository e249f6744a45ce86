"""CSR product and SDDMM by Triton's kernels, for float32, float64, bfloat16 and float16, which are added up in float32.

`ash.backends.torch` takes them for bfloat16 and float16 on a GPU, which cuSPARSE's calls there do not serve, and for
float32 and float64 where `MEASURED` says so. Nobody has measured that yet: cuSPARSE is the default. Figures
`csr_matmul` and `csr_sddmm` of `python -m experiments benchmark --suite gpu` compare the two.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ash.backends.triton.launch import power
from ash.backends.triton.serving import serves

MEASURED = {"matmul": "cusparse", "sddmm": "cusparse"}
"""Which is faster in float32: cusparse or own."""

HALF = (torch.bfloat16, torch.float16)


def wanted(name: str, x: Tensor) -> bool:
    """Whether `matmul` or `sddmm` of such an x is to be taken from here."""
    return (x.dtype in HALF or MEASURED[name] == "own") and serves(x)


def matmul(
    values: Float[Tensor, " n"], crow: Int[Tensor, " ends"], col: Int[Tensor, " n"], x: Float[Tensor, "i e"]
) -> Float[Tensor, "o e"]:
    """(rows × cols in CSR) · x, in x's type."""
    from ash.backends.triton.rows import multiply

    rows, width, e = len(crow) - 1, x.shape[1], power(min(x.shape[1], 64))
    y = x.new_empty(rows, width)
    if not y.numel():
        return y
    grid = (rows, math.ceil(width / e))
    with torch.cuda.device_of(x):
        multiply[grid](values, crow, col, x.contiguous(), y, width, KIND=_kind(x), P=32, E=e)
    return y


def sddmm(
    g: Float[Tensor, "o e"], x: Float[Tensor, "i e"], crow: Int[Tensor, " ends"], col: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The entries of g · xᵀ at a CSR structure, in its order and x's type."""
    from ash.backends.triton.rows import sample

    width, e = x.shape[1], power(min(x.shape[1], 64))
    values, known = x.new_empty(len(col)), {"SPAN": e * math.ceil(width / e), "P": 32, "E": e}
    if not len(col):
        return values
    with torch.cuda.device_of(x):
        sample[(len(g),)](g.contiguous(), x.contiguous(), crow, col, values, width, KIND=_kind(x), **known)
    return values


def _kind(x: Tensor) -> object:
    import triton.language as tl

    return tl.float64 if x.dtype == torch.float64 else tl.float32
