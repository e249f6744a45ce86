"""The decorator of every kernel and device function that Triton compiles."""

# mypy: ignore-errors

from inspect import unwrap

import triton


def kernel(function):
    """Compiled on first use for the device at hand; run by Triton's interpreter where TRITON_INTERPRET=1."""
    return triton.jit(unwrap(function))  # a type checker's import hook may have wrapped it
