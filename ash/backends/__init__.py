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
SMALL = 1 << 14
"""Positions of a weight (64 kB in float32) up to which the dense product is faster at any density: a CSR product,
its transpose and SDDMM are three calls of about 0.1 ms each, however few the entries."""
FULL, FULL_BELOW = 0.2, 1 << 18
"""Density from which the dense product is faster, for weights of at most so many positions (1 MB)."""


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name, loaded on first use.

    Raises `UserError` for an unknown name and `BackendUnavailable`, with what to install, where it cannot run.
    """
    module = importlib.import_module(choose("backend", name, _MODULES))
    backend: Backend = module.BACKEND
    backend.check()
    return backend


def choose_backend(rows: int, cols: int, nnz: int) -> str:
    """The backend for a (rows × cols) weight with nnz stored entries.

    Small matrices are multiplied densely, larger ones where many of their entries exist, and those of more than a
    megabyte never: everything else is sparse in memory and time. Measured on one core of an AVX-512 server, forward
    and backward, batches of 32 to 512.
    """
    positions = rows * cols
    full = positions <= FULL_BELOW and nnz >= FULL * positions
    return "dense" if full or positions <= SMALL else "torch"


__all__ = ["Backend", "choose_backend", "get_backend"]
