"""How the outputs of several layers become the input of one: brought to one size, weighed, merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d, interpolate, pad

Shape = tuple[int, ...]

RESIZES = {"nearest": True, "bilinear": True, "bicubic": True, "area": True, "pad": False}
"""Whether maps are brought down to the smallest map (or up to the largest)."""
_AREAS: dict[int, Callable[..., Tensor]] = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}


def resize(x: Float[Tensor, "b c *s"], size: Shape, mode: str) -> Float[Tensor, "b c *t"]:
    """Maps at another size: interpolated without anti-aliasing, averaged (`area`), or zero-padded around (`pad`)."""
    if tuple(x.shape[2:]) == size:
        return x
    if mode == "pad":
        missing = [b - a for a, b in zip(x.shape[2:], size, strict=True)]
        return pad(x, [side for m in reversed(missing) for side in (m // 2, m - m // 2)])
    if mode == "area":
        pooled: Tensor = _AREAS[len(size)](x, size)
        return pooled
    return interpolate(x, size=size, mode=mode, align_corners=None if mode == "nearest" else False)


@dataclass(frozen=True)
class Target:
    """What one layer is fed with, worked out once.

    Attributes:
        sources: those that can be connected to it, or always are, in order.
        size: what maps are brought to; None where there are none.
        flat: whether the layer takes vectors, not maps.
        widths: for each of `sources`, its maps (or features) as they are merged.
        shape: of the merged input of one instance.
    """

    sources: tuple[int, ...]
    size: Shape | None
    flat: bool
    widths: tuple[int, ...]
    shape: Shape


def common_size(sizes: Sequence[Shape], mode: str) -> Shape | None:
    """The smallest extent in each dimension, or with `pad` the largest; None for no maps at all."""
    choose = min if RESIZES[mode] else max
    return tuple(choose(each) for each in zip(*sizes, strict=True)) or None


def width(shape: Shape, size: Shape | None, flat: bool, pooled: bool) -> int:
    """How many maps (or features, where the target is flat) a source of one instance's `shape` has in a merge."""
    if flat and len(shape) > 1 and not pooled and size is not None:
        return shape[0] * math.prod(size)
    return shape[0]


def fit(x: Tensor, target: Target, mode: str, pooled: bool) -> Tensor:
    """A source's output `(b, c)` or `(b, c, *s)` as maps of the target's size; for flat targets maybe `(b, c)`."""
    if x.dim() == 2:
        if target.flat or target.size is None:
            return x
        return x.reshape(*x.shape, *[1] * len(target.size)).expand(*x.shape, *target.size)
    if target.flat and (pooled or target.size is None):
        return x.flatten(2).mean(2)
    assert target.size is not None
    return resize(x, target.size, mode)


def widen(x: Tensor, width: int, value: float) -> Tensor:
    """`(b, c, …)` -> `(b, width, …)`, the maps that it lacks filled with `value`."""
    missing = width - x.shape[1]
    if not missing:
        return x
    return torch.cat([x, x.new_full((x.shape[0], missing, *x.shape[2:]), value)], 1)


def total(parts: Sequence[Tensor], width: int) -> Tensor:
    """The sum of the parts; maps that a part does not have count as 0."""
    result = widen(parts[0], width, 0.0)
    for part in parts[1:]:
        result = result + widen(part, width, 0.0)
    return result


def largest(parts: Sequence[Tensor], present: Sequence[Tensor | None], width: int) -> Tensor:
    """The largest of the parts at every place, of those present there; 0 where none is. None: everywhere present."""
    lowest = -math.inf
    shown = [
        widen(x if here is None else torch.where(here, x, lowest), width, lowest)
        for x, here in zip(parts, present, strict=True)
    ]
    top = shown[0] if len(shown) == 1 else torch.stack(shown).amax(0)
    whole = any(here is None and x.shape[1] == width for x, here in zip(parts, present, strict=True))
    return top if whole else torch.where(top == lowest, 0.0, top)
