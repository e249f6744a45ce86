"""Growth and CSR kernels on a GPU, for the benchmark."""

from __future__ import annotations

import torch
from torch import Tensor

from ash import Factors
from ash.backends import torch as plain
from ash.backends.triton import csr, top
from ash.growth import Score
from experiments.benchmark_case import Case, Step
from experiments.benchmark_gpu_layers import DEVICE, TOLERANCE, synchronous

SMALL = (8192, 32, 4096)
"""Rows, batch and entries of a search that torch can check."""



def factors(rows: int, b: int) -> Factors:
    return Factors(torch.randn(b, rows, device=DEVICE), torch.randn(b, rows, device=DEVICE))


def growth_step(case: Case) -> Step:
    """Ten entries a row of size², by tiles of the precision that the rival's name says."""
    made = factors(case.size, case.batch)
    top.precision = case.rival if case.rival in top.PRECISIONS else "tf32"

    def run() -> None:
        if made.places(10 * case.size) is None:
            raise ArithmeticError("the search found no bar")

    return synchronous(run)


def check_growth(case: Case) -> float:
    """Of a search that torch can do: the share of entries that differ; fails above `TOLERANCE`."""
    rows, b, n = SMALL
    made = factors(rows, b)
    found, wanted = made.places(n), Score.places(made, n)
    differing = 1 - float(torch.isin(found, wanted).float().mean())
    if differing > TOLERANCE:  # entries that are equal to rounding may change places
        raise ArithmeticError(f"growth: {differing:.1e} of the entries are not among the largest")
    return differing


def _matrix(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = case.size
    crow = torch.arange(0, 8 * n + 1, 8, device=DEVICE, dtype=torch.int32)
    col = torch.randint(0, n, (n, 8), device=DEVICE, dtype=torch.int32).sort(-1).values.flatten()
    x, g = (torch.randn(n, case.batch, device=DEVICE) for _ in range(2))
    return torch.randn(len(col), device=DEVICE), crow, col, x, g


def csr_step(case: Case) -> Step:
    values, crow, col, x, g = _matrix(case)
    if case.layer == "gpu_csr_matmul":
        return synchronous(lambda: csr.matmul(values, crow, col, x))
    return synchronous(lambda: csr.sddmm(g, x, crow, col))


def cusparse_step(case: Case) -> Step:
    values, crow, col, x, g = _matrix(case)
    if case.layer == "gpu_csr_matmul":
        return synchronous(lambda: plain.csr_matmul(values, crow, col, x, None, None, None))
    return synchronous(lambda: plain.csr_sddmm(g, x, crow, col))


def check_csr(case: Case) -> float:
    values, crow, col, x, g = _matrix(Case(case.layer, size=512, batch=16))
    pairs = [
        (csr.matmul(values, crow, col, x), plain.csr_matmul(values, crow, col, x, None, None, None)),
        (csr.sddmm(g, x, crow, col), plain.csr_sddmm(g, x, crow, col)),
    ]
    return max(float((own - other).norm() / other.norm()) for own, other in pairs)
