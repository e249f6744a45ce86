"""The decorator of every kernel that numba compiles."""

# mypy: ignore-errors

from inspect import unwrap

from numba import njit


def kernel(function):
    """Compiled on first use, kept on disk where a directory for it can be written; runs without the GIL."""
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    function = unwrap(function)  # a type checker's import hook may have wrapped it
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)
