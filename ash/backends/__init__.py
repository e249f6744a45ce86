"""Backends: how Y = W · X is computed for a shared weight. A lazy registry.

| name | what it does | runs where |
|---|---|---|
| `dense` | materialises W: the oracle | everywhere |
| `torch` | CSR product, SDDMM for the values' gradient; a gather path where MKL is missing | everywhere |
| `torch_sparse` | `torch_sparse`'s CSR product, for PyG users | where torch-sparse is installed |
"""

from __future__ import annotations

import importlib
from functools import cache

import ash.backends.torch  # noqa: F401 – its operators register on import, which must not fall into a transform
from ash.backends.base import Backend
from ash.checks import choose

_MODULES = {"dense": "ash.backends.dense", "torch": "ash.backends.torch", "torch_sparse": "ash.backends.torch_sparse"}
_DENSE_BELOW = 1 << 12


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

    Tiny matrices that are half full are multiplied densely; everything else is sparse.
    """
    small = rows * cols <= _DENSE_BELOW and 2 * nnz >= rows * cols
    return "dense" if small else "torch"


__all__ = ["Backend", "choose_backend", "get_backend"]
