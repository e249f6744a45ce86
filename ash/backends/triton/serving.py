"""Whether the kernels serve."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

enabled = True
"""False keeps the kernels out of use."""


@cache
def available() -> bool:
    """Whether Triton can be imported; does not import it."""
    return find_spec("triton") is not None


@cache
def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels serve for these tensors: on a GPU, outside function transforms and `torch.compile`."""
    if not enabled or not all(tensor.is_cuda and _plain(tensor) for tensor in tensors):
        return False
    return not torch.compiler.is_compiling() and available()


def _plain(tensor: Tensor) -> bool:
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
