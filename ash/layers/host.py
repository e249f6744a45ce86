"""What hosts have in common: how they get their wiring, and one bias for every output position."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ash.checks import require
from ash.memory import need, numbers
from ash.wirings.base import Wiring
from ash.wirings.gaussian import GaussianWiring

Own = TypeVar("Own", bound="BiasedHost")

WiringFactory = Callable[..., Wiring]


def make_wiring(
    wiring: Wiring | WiringFactory | None, out_shape: tuple[int, ...], in_shape: tuple[int, ...], **factory: Any
) -> Wiring:
    """A wiring for a weight of the given shape, from one, or from a factory called as `f(out_shape, in_shape)`.

    Raises `UserError` where a wiring is of another shape, or a factory returns something else.
    """
    if not isinstance(wiring, Wiring):
        make = GaussianWiring if wiring is None else wiring
        given = {name: value for name, value in factory.items() if value is not None}
        wiring = make(out_shape, in_shape, **given)
    require(isinstance(wiring, Wiring), f"a factory that returned a {type(wiring).__name__}; expected a Wiring.")
    expected = (out_shape, in_shape)
    actual = (wiring.out_shape, wiring.in_shape)
    require(actual == expected, f"a wiring of shape {actual[0]} x {actual[1]}; expected {out_shape} x {in_shape}.")
    return wiring


class BiasedHost(nn.Module):
    """A wiring, and one bias `(*out_shape,)` or none; what a layer that replaces a dense one does with both."""

    wiring: Wiring
    bias: nn.Parameter | None

    def _register_bias(self, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        shape = self.wiring.out_shape
        if bias:
            size = math.prod(shape) * numbers(dtype)
            need(f"a bias for the outputs {shape}", size, device, lambda free: "leave it out: bias=False")
        own = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", own)
        self._reset_bias()

    def reset_parameters(self) -> None:
        """New wiring and bias, as when the layer was made."""
        self.wiring.reset_parameters()
        self._reset_bias()

    @torch.no_grad()
    def _reset_bias(self) -> None:
        """Uniform in ±1/√(mean fan-in over the stored entries)."""
        if self.bias is not None:
            fan_in = self.wiring.stored_entries() / math.prod(self.wiring.out_shape)
            bound = 1 / math.sqrt(max(1.0, fan_in))
            self.bias.uniform_(-bound, bound)

    @torch.no_grad()
    def _take(self: Own, dense: nn.Linear | nn.Conv2d) -> Own:
        """This layer with the bias and the mode of a dense one and, at the wiring's entries, its weights."""
        self.wiring.load_dense(dense.weight.detach())
        if self.bias is not None and dense.bias is not None:
            self.bias.copy_(dense.bias)
        return self.train(dense.training)
