"""From raw numbers to index tuples: what a hypernetwork emits, and how it becomes bounded means and scales."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ash.checks import choose

EDGE = 1e-4
"""How near to an end of its range a mean may start: at the end itself a sigmoid has no gradient."""


class Layout(NamedTuple):
    """The columns of raw numbers: q means, then a log scale, then a value or s logits.

    `scales` and `values` count columns, 0 where nothing is stored. Of each tuple's `total` columns the
    hypernetwork emits `width`: the means, and what `emit_scales` and `emit_values` say.
    """

    q: int
    scales: int
    values: int
    emit_scales: bool
    emit_values: bool

    @property
    def total(self) -> int:
        """Columns of the learned offset."""
        return self.q + self.scales + self.values

    @property
    def width(self) -> int:
        """Numbers that the hypernetwork emits for each tuple."""
        return self.q + self.scales * self.emit_scales + self.values * self.emit_values

    def split(
        self, raw: Float[Tensor, "*b k w"], offset: Float[Tensor, "k t"], value_unit: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means, log scales and values `(*b, k, …)`: what is emitted plus the offset, or the offset alone.

        Emitted values are in units of `value_unit`.
        """
        # Split at once: a slice each would cost a zero-filled tensor of raw's size in the backward pass.
        emitted = (self.q, self.scales * self.emit_scales, self.values * self.emit_values)
        sizes, units = (self.q, self.scales, self.values), (1.0, 1.0, value_unit)
        means, scales, values = (
            torch.add(own, new, alpha=unit) if new.shape[-1] else own.expand(*raw.shape[:-1], -1)
            for own, new, unit in zip(offset.split(sizes, -1), raw.split(emitted, -1), units, strict=True)
        )
        return means, scales, values


class _Inward(torch.autograd.Function):
    """Clamp; outside, the gradient passes where a descent would lead back inside."""

    @staticmethod
    def forward(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        return x.clamp(low, high)  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, clamped = ctx.saved_tensors
        if torch.equal(x, clamped):
            return grad, None, None
        outward = (clamped - x) * grad > 0  # a descent along the gradient would lead further away
        return grad.masked_fill(outward, 0.0), None, None


def clamp_inward(x: Float[Tensor, "*n"], low: Tensor | float, high: Tensor | float) -> Float[Tensor, "*n"]:
    """x within [low, high]; beyond, a gradient passes only where a step along it leads back."""
    clamped: Tensor = _Inward.apply(x, low, high)
    return clamped


class EmittedMeans(ABC):
    """How a raw number becomes a position in `[0, size − 1]` of a learned column."""

    @abstractmethod
    def offset(self, positions: Float64[Tensor, "k q"], sizes: Float64[Tensor, " q"]) -> Float64[Tensor, "k q"]:
        """Required. The raw numbers that give `positions`."""

    @abstractmethod
    def __call__(
        self, raw: Float[Tensor, "*b k q"], base: Float64[Tensor, "k q"], sizes: Float64[Tensor, " q"]
    ) -> tuple[Int64[Tensor, "*b k q"], Float[Tensor, "*b k q"]]:
        """Required. Anchors and residuals; gradients reach `raw` through the residuals."""


class SigmoidMeans(EmittedMeans):
    """μ = (size − 1) · sigmoid(raw): the whole column, its ends out of reach. In float64 where float32 is too coarse.

    Source: the blog and sparse-hyper.
    """

    reach = 0.0

    def offset(self, positions: Tensor, sizes: Tensor) -> Tensor:
        share = (positions + self.reach) / (sizes - 1 + 2 * self.reach).clamp(min=1)
        return share.clamp(EDGE, 1 - EDGE).logit()

    def __call__(self, raw: Tensor, base: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if bool((sizes > 1 << 16).any()) else raw.dtype
        means = raw.to(exact).sigmoid() * (sizes - 1 + 2 * self.reach).to(exact) - self.reach
        anchors = means.detach().round()
        return anchors.long(), (means - anchors).to(raw.dtype)


class StretchedMeans(SigmoidMeans):
    """μ = size · sigmoid(raw) − 1/2: both ends can be reached, and each index has an equal part of the range."""

    reach = 0.5


class DirectMeans(EmittedMeans):
    """μ = position + raw, in units of an index, within half an index of the column.

    The given positions are kept apart from what is emitted, so that a mean keeps its precision anywhere.
    """

    def offset(self, positions: Tensor, sizes: Tensor) -> Tensor:
        return torch.zeros_like(positions)

    def __call__(self, raw: Tensor, base: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        # The bounds of float32 are relative to the position: as far off as 2^24 indices they are exact enough.
        moved = clamp_inward(raw, (-0.5 - base).to(raw.dtype), (sizes - 0.5 - base).to(raw.dtype))
        anchor = base.round()
        residual = moved + (base - anchor).to(raw.dtype)
        whole = residual.detach().round()
        return anchor.long() + whole.long(), residual - whole


_MEANS: dict[str, EmittedMeans] = {"sigmoid": SigmoidMeans(), "stretched": StretchedMeans(), "direct": DirectMeans()}


def get_emitted_means(name: str) -> EmittedMeans:
    """How means are emitted, by name: `"sigmoid"`, `"stretched"` or `"direct"`; `UserError` for any other."""
    return choose("way to emit means", name, _MEANS)
