"""What the fuzz tests share: counted examples, strategies, and which of the library's paths an example takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ash import SparseBatch, SparseWeight, UserError, jit
from ash.backends import compiled, instances
from ash.backends import torch as torch_backend

Shape = tuple[int, ...]
Test = TypeVar("Test", bound=Callable[..., None])


class Ran:
    """How many examples this process has been through."""

    examples = 0


def fuzz(number: int, /, **strategies: st.SearchStrategy[Any]) -> Callable[[Test], Test]:
    """Run a test on so many examples, each counted when it is through; an argument `seed` is torch's seed."""

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            torch.manual_seed(kwargs.get("seed", 0))
            test(*args, **kwargs)
            Ran.examples += 1

        chosen = settings(
            max_examples=number, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
        )
        return chosen(given(**strategies)(counted))  # type: ignore[return-value]

    return decorate


SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
FULL = st.sampled_from([torch.float64, torch.float32])
EXTREMES = (-(2**63), -(2**31) - 1, -(2**31), -1, 2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**62, 2**63 - 1)
"""Indices at the ends of the integer types, none of them in a tensor of a few positions."""
ODD = (float("nan"), float("inf"), float("-inf"))


def shapes(most: int = 3, largest: int = 6, least: int = 1) -> st.SearchStrategy[Shape]:
    """Up to `most` sizes, 1 among them."""
    return st.lists(st.integers(1, largest), min_size=least, max_size=most).map(tuple)


def indices_in(shape: Shape, lead: Shape, kind: str = "random") -> Tensor:
    """Index tuples `(*lead, r)`: at random, in order, in the corners, or all at one place."""
    if kind == "corners":
        columns = [torch.randint(0, 2, lead) * (size - 1) for size in shape]
    elif kind == "one place":
        columns = [torch.randint(0, size, ()).expand(lead) for size in shape]
    else:
        columns = [torch.randint(0, size, lead) for size in shape]
    if kind == "in order" and len(lead) == 1:
        columns[0] = columns[0].sort().values
    return torch.stack(columns, -1)


@st.composite
def options(
    draw: st.DrawFn, good: dict[str, Any], bad: dict[str, Any], sizes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One good choice of each option and one of the `sizes`; in one case of five a bad choice of one of them.

    Options that are None are left out. Choices are lists, or strategies.
    """

    def choice(given: Any) -> Any:
        return draw(given if isinstance(given, st.SearchStrategy) else st.sampled_from(given))

    found = {name: choice(given) for name, given in good.items()}
    if sizes:
        name = choice(sorted(sizes))
        found[name] = choice(sizes[name])
    if draw(st.integers(0, 4)) == 0:
        name = choice(sorted(bad))
        found[name] = choice(bad[name])
    return {name: value for name, value in found.items() if value is not None}


KINDS = st.sampled_from(["random", "in order", "corners", "one place"])
LAYOUTS = st.sampled_from(["contiguous", "turned", "strided", "shifted"])


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers elsewhere in memory: dimensions in another order, every second number, an odd address."""
    if layout == "turned":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, 7)], -1)[..., 0]
    if layout == "shifted":
        room = torch.empty(x.numel() + 3, dtype=x.dtype)
        room[3:] = x.flatten()
        return room[3:].view(x.shape)
    return x


def weight_of(
    out_shape: Shape, in_shape: Shape, n: int, kind: str, b: int | None, dtype: torch.dtype, learns: bool = True
) -> SparseWeight:
    """n entries, duplicates among them, shared or one for each of b instances."""
    lead = (n,) if b is None else (b, n)
    values = torch.randn(lead, dtype=torch.float64).to(dtype).requires_grad_(learns)
    return SparseWeight(indices_in((*out_shape, *in_shape), lead, kind), values, out_shape, in_shape)


def batch_of(sizes: list[Shape], n: int, kind: str, channels: Shape, dtype: torch.dtype) -> SparseBatch:
    """n entries in tensors of these sizes, duplicates among them, in any order within a tensor."""
    b, r = len(sizes), len(sizes[0])
    instance = torch.randint(0, b, (n,)).sort().values
    each = torch.tensor(sizes)
    share = torch.rand(n, r) if kind != "corners" else torch.randint(0, 2, (n, r)) * 0.999
    share = share[:1].expand(n, r) if kind == "one place" and n else share
    indices = (share.double() * each[instance]).long()
    values = torch.randn(n, *channels, dtype=torch.float64).to(dtype).requires_grad_()
    return SparseBatch(instance, indices, values, each)


PATHS: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "default": (),
    "compiled": ((jit, "LEAST_POINTS", 0), (compiled, "LEAST_BATCH", 1), (compiled, "LEAST_WORK", 0)),
    "threads": ((jit, "LEAST_POINTS", 0), (jit, "PIECE", 4), (torch, "get_num_threads", lambda: 2)),
    "plain": ((jit, "enabled", False), (torch_backend, "native", False)),
    "blocks": ((jit, "enabled", False), (torch_backend, "native", False), (torch_backend, "GATHER_BLOCK", 7),
               (instances, "GATHER_BLOCK", 5)),
}  # fmt: skip
each_path = st.sampled_from(sorted(PATHS))


@contextmanager
def path(name: str) -> Iterator[None]:
    """By which path the library computes: its own choice, compiled, in two threads, in plain torch, in tiny blocks."""
    with ExitStack() as stack:
        for module, attribute, value in PATHS[name]:
            stack.enter_context(patch.object(module, attribute, value))
        yield


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, and None; or None and the message with which it is refused."""
    try:
        return call(), None
    except UserError as error:
        return None, str(error)


def close(found: Tensor, wanted: Tensor, size: Tensor, terms: int) -> None:
    """`found` is `wanted` up to rounding, of sums of so many terms whose absolute values add up to `size`."""
    assert found.shape == wanted.shape
    info = torch.finfo(found.dtype)
    bound = (terms + 8) * info.eps * size.double() + 8 * info.smallest_normal
    off = (found.double() - wanted.double()).abs() > bound
    assert not off.any(), (found[off][:3], wanted[off][:3])
