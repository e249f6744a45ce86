"""Wording and testing of every user error.

A message says what was given, what was expected and what to do, in this order.
"""

from __future__ import annotations

import difflib
import importlib
import math
import operator
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


TORCH_SPARSE_HINT = (
    "pip install --no-build-isolation torch-scatter torch-sparse (compiles for about fifteen minutes; torch first)"
)


class UserError(ValueError):
    """Something that the caller can mend: a shape, a name, an option, a file."""


class BackendUnavailable(UserError, ImportError):
    """A backend was asked for by name and cannot run here; the message says what to install."""


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def optional(module: str, hint: str) -> ModuleType:
    """Import an optional package; where it is missing, raise `BackendUnavailable` with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendUnavailable(f"{module} is not available here ({error}); install it with: {hint}") from error


def choose(kind: str, name: str, choices: Mapping[str, T]) -> T:
    """Look `name` up among `choices`; an unknown name raises `UserError` and lists the known ones."""
    if name in choices:
        return choices[name]
    raise unknown(kind, name, choices)


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among `choices`, with the nearest one suggested."""
    known = sorted(choices)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}; expected one of {', '.join(map(repr, known))}.{hint}")


def positive(name: str, value: float, *, zero: bool = False) -> None:
    """Raise `UserError` unless `value` is above zero (or, with `zero`, at least zero)."""
    bound = "at least 0" if zero else "above 0"
    require(value >= 0 if zero else value > 0, f"{name}={value!r}; expected a number {bound}.")


def shape(name: str, value: object, *, empty: bool = False) -> tuple[int, ...]:
    """`value` (an int or a sequence of ints) as a tuple of sizes of at least 1."""
    try:
        sizes = tuple(map(operator.index, value if isinstance(value, Iterable) else (value,)))
    except TypeError:
        raise UserError(f"{name}={value!r}; expected an int or a sequence of ints, such as (28, 28).") from None
    require(empty or len(sizes) > 0, f"{name}={value!r}; expected at least one dimension.")
    require(all(s >= 1 for s in sizes), f"{name}={value!r}; expected sizes of at least 1.")
    return sizes


def check_positions(positions: Tensor, expected: tuple[int, ...], letters: str) -> None:
    """Raise `UserError` unless initial means are finite and of the expected shape, `letters` in words."""
    given = tuple(positions.shape)
    require(given == expected, f"positions {given}; expected {letters} = {expected}.")
    require(bool(torch.isfinite(positions).all()), "positions that are NaN or infinite; expected finite numbers.")


def check_finite(x: Tensor, module: nn.Module) -> None:
    """Raise `UserError` if x holds NaN or infinite numbers, naming the module.

    One pass over x on the CPU: a sum is finite unless a term is not (or the sum overflows, which the second
    look tells apart). On a GPU the check runs there, without waiting, and fails as a device assertion.
    """
    if not x.is_floating_point() or not x.numel() or torch.compiler.is_compiling():
        return
    total = x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32))  # float16 overflows at 65,504
    if x.is_cuda:
        torch._assert_async(torch.isfinite(total))
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(total) or math.isfinite(total.item()):
        return
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise UserError(
            f"{bad} of {x.numel()} input numbers of {type(module).__name__}({module.extra_repr()}) are NaN or "
            "infinite; expected finite numbers. Look at the data, the learning rate, or the layer before."
        )
