"""Kernels that numba compiles for the CPU: whether they serve, and how their work is split among threads.

numba is optional and loaded by the first call that is large enough. Every caller has a plain path in torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

LEAST_POINTS = 1 << 15
"""Points of a step below which loading numba (about two seconds) is not worth what it saves."""

PIECE = 1 << 14
"""Points that a thread should get at least."""

enabled = True
"""False keeps the compiled kernels out of use."""

ALIGNED = 64
"""Bytes of a line of the cache, and of the widest vector register."""

Pieces = list[tuple[int, int]]


@cache
def available() -> bool:
    """Whether numba can be imported; does not import it."""
    return find_spec("numba") is not None


def serves(points: int, *tensors: Tensor) -> bool:
    """Whether the kernels serve, and pay, for so many points of these tensors."""
    if not enabled or points < max(1, LEAST_POINTS) or not all(_plain(tensor) for tensor in tensors):
        return False
    return not torch.compiler.is_compiling() and available()


def _plain(tensor: Tensor) -> bool:
    """Whether the tensor lies in the memory of the CPU. Under function transforms, which hide it, torch draws."""
    return tensor.is_cpu and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "ash-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def pieces(count: int, grain: int, least: int = 1) -> Pieces:
    """0 … count in as many runs as there are threads for, of whole grains and of at least `least`."""
    grains = -(-count // grain)
    threads = max(1, min(torch.get_num_threads(), grains, count // max(1, least)))
    ends = [min(count, grain * (grains * i // threads)) for i in range(threads + 1)]
    return list(zip(ends[:-1], ends[1:], strict=True))


def run(task: Callable[[int, int, int], None], parts: Pieces) -> None:
    """task(number, begin, end) for every piece: the first here, the others in threads."""
    others = []
    if len(parts) > 1:
        pool = _pool(torch.get_num_threads() - 1)
        others = [pool.submit(task, i, *piece) for i, piece in enumerate(parts) if i]
    task(0, *parts[0])
    for other in others:
        other.result()


def arrays(*tensors: Tensor) -> list[Any]:
    """The tensors as contiguous numpy arrays, without copies where they are contiguous."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def blank(dtype: torch.dtype, *shape: int) -> Tensor:
    """Room for numbers that are read or written in any order; it begins at a multiple of 64 bytes.

    numpy asks the system for large pages where it is large, torch does not: a matrix of a million rows then is a third
    faster to go through.
    """
    import numpy as np

    size = math.prod(shape) * dtype.itemsize
    space = np.empty(size + ALIGNED, np.uint8)
    start = -space.ctypes.data % ALIGNED
    return torch.from_numpy(space[start : start + size]).view(dtype).view(shape)
