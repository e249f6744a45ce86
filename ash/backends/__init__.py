"""Backends: how Y = W · X is computed for a shared weight. A lazy registry.

| name | what it does | runs where |
|---|---|---|
| `dense` | materialises W: the oracle | everywhere |
| `torch` | CSR product, SDDMM for the values' gradient; a gather path where MKL is missing | everywhere |
| `torch_sparse` | `torch_sparse`'s CSR product, for PyG users | where torch-sparse is installed |
| `triton` | own CSR kernels; weights of tuples multiply while they are drawn | on a GPU, where Triton is installed |
"""

from __future__ import annotations

import importlib
from functools import cache

import ash.backends.torch  # noqa: F401 – its operators register on import, which must not fall into a transform
from ash.backends.base import Backend
from ash.checks import choose

_MODULES = {
    "dense": "ash.backends.dense",
    "torch": "ash.backends.torch",
    "torch_sparse": "ash.backends.torch_sparse",
    "triton": "ash.backends.triton.backend",
}
SMALL = 1 << 16
"""Positions of a weight (256 kB in float32) up to which the dense product is faster at any density: a CSR product,
its transpose and SDDMM are three calls of about 0.1 ms each, however few the entries."""
FULL, FULL_LARGE = 0.35, 0.6
"""Density from which the dense product is faster: of weights that stay in the cache and for large batches; else."""
LARGE, LARGE_BATCH = 1 << 18, 256
"""Positions (1 MB) up to which a weight stays in the cache, and columns from which on a batch is large."""


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name, loaded on first use.

    Raises `UserError` for an unknown name and `BackendUnavailable`, with what to install, where it cannot run.
    """
    module = importlib.import_module(choose("backend", name, _MODULES))
    backend: Backend = module.BACKEND
    backend.check()
    return backend


def choose_backend(rows: int, cols: int, nnz: int, batch: int = 64) -> str:
    """The backend for a (rows × cols) weight with nnz stored entries and an input of `batch` columns.

    Small matrices are multiplied densely, and larger ones where most of their entries exist: there the matrix and its
    gradient take less memory (8 bytes a position) than the entries with their indices do. Everything else is sparse in
    memory and time. Measured on one core of an AVX-512 server, forward and backward, batches of 1 to 512, with
    and without numba: the `crossover_…` rows of `python -m experiments benchmark --only crossover`.
    """
    positions = rows * cols
    full = FULL if positions <= LARGE or batch >= LARGE_BATCH else FULL_LARGE
    return "dense" if positions <= SMALL or nnz >= full * positions else "torch"


__all__ = ["Backend", "choose_backend", "get_backend"]
