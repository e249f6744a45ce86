"""Patches of a picture as the columns of a matrix, so that a convolution is a product; closed under differentiation.

    columns = Unfold(x)       dL/dx = Fold(dL/dcolumns)       and the derivative of each is the other
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Pair = tuple[int, int]


class Window(NamedTuple):
    """How a kernel moves over a picture: its size, stride and dilation, rows first."""

    kernel: Pair
    stride: Pair
    dilation: Pair

    def steps(self, size: Pair) -> Pair:
        """How many places it has, each way, in a picture of that size (padding included)."""
        high, wide = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, *self, strict=True))
        return high, wide

    def seen(self, place: Pair, steps: Pair) -> tuple[slice, slice]:
        """Rows and columns of the picture that one tap of the kernel sees, one for each step."""
        starts = (t * d for t, d in zip(place, self.dilation, strict=True))
        rows, cols = (slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, self.stride, steps, strict=True))
        return rows, cols


class Unfold(torch.autograd.Function):
    """`(c, b, h, w)`, padded already -> `(c, kh, kw, b, oh, ow)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        ctx.window, ctx.size = window, (x.shape[2], x.shape[3])
        return _unfold(x, window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        folded: Tensor = Fold.apply(grad, ctx.window, ctx.size)
        return folded, None


class Fold(torch.autograd.Function):
    """The transpose of `Unfold`: every number of a patch is added to the place that it came from."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, window: Window, size: Pair) -> Tensor:
        ctx.window = window
        return _fold(columns, window, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        unfolded: Tensor = Unfold.apply(grad, ctx.window)
        return unfolded, None, None


def _unfold(x: Tensor, window: Window) -> Tensor:
    x = x.contiguous()
    c, b, h, w = x.shape
    (kh, kw), (sh, sw), (dh, dw) = window
    sizes = (c, kh, kw, b, *window.steps((h, w)))
    return x.as_strided(sizes, (b * h * w, dh * w, dw, h * w, sh * w, sw)).contiguous()


def _fold(columns: Tensor, window: Window, size: Pair) -> Tensor:
    c, kh, kw, b, oh, ow = columns.shape
    x = columns.new_zeros(c, b, *size)
    for i in range(kh):
        for j in range(kw):
            rows, cols = window.seen((i, j), (oh, ow))
            x[:, :, rows, cols] += columns[:, i, j]
    return x


def unfold(x: Float[Tensor, "c b h w"], window: Window) -> Float[Tensor, "c kh kw b oh ow"]:
    """The part of a picture under each tap of a kernel; the picture is padded already, its channels come first."""
    if torch.compiler.is_compiling():
        return _unfold(x, window)
    patches: Tensor = Unfold.apply(x, window)
    return patches
