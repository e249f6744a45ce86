"""The decorator of every kernel that numba compiles."""

# mypy: ignore-errors

from functools import partial
from inspect import unwrap

from numba import njit

FAST = {"reassoc", "nsz", "nnan", "contract", "arcp"}
"""What sums may be rearranged by, so that they run in vector registers. Infinity keeps its meaning."""


def kernel(function=None, *, fastmath=False):
    """Compiled on first use, kept on disk where a directory for it can be written; runs without the GIL."""
    if function is None:
        return partial(kernel, fastmath=fastmath)
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": fastmath}
    function = unwrap(function)  # a type checker's import hook may have wrapped it
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)
