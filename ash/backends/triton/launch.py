"""How the kernels of a draw are launched: blocks, scratch, arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ash.backends.triton.plan import Plan
from ash.backends.triton.points import table

TUPLES, WIDTH, TILE = 128, 64, 2048
"""Tuples a program; columns of x at a time; numbers of x at a time."""
LEAST, POINTS = 16, 16
"""Tuples of a chunk at least, padded; points of its table at a time."""
WAVES = 8
"""Programs that a multiprocessor holds."""


@cache
def programs(device: torch.device) -> int:
    """How many programs run at a time; a few in the interpreter, so that they too take several blocks each."""
    return WAVES * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def power(number: int) -> int:
    """The smallest power of two from a number on."""
    return 1 << max(0, number - 1).bit_length()


def divisor(number: int) -> int:
    """The largest power of two that divides a number."""
    return number & -number


@dataclass(frozen=True)
class Tuples:
    """Tuples as the kernels take them: all instances one after the other, or one of them where all are the same.

    Attributes:
        values, residuals, scales: in float32 or float64. anchors: int64. repeat: whether there is one instance alone.
    """

    values: Tensor
    residuals: Tensor
    scales: Tensor
    anchors: Tensor
    repeat: bool

    @classmethod
    def of(cls, *tensors: Tensor) -> Tuples:
        """From values (b, k), residuals, scales and anchors (b, k, …), which may be expanded."""
        repeat = len(tensors[0]) > 1 and all(tensor.stride(0) == 0 for tensor in tensors)
        some = (tensor[:1] if repeat else tensor for tensor in tensors)
        values, residuals, scales, anchors = (tensor.detach().flatten(0, 1).contiguous() for tensor in some)
        return cls(values, residuals, scales, anchors, repeat)


class Launch:
    """A launch of the kernels of a draw on tuples of b instances and an x of `width` columns."""

    def __init__(self, plan: Plan, tuples: Tuples, b: int, k: int, width: int):
        self.plan, self.tuples, self.b, self.k, self.width = plan, tuples, b, k, width
        self.device, self.chunked = tuples.values.device, plan.context.name != "tuple"
        self.t = plan.context.size(k)
        self.block = max(LEAST, power(self.t)) if self.chunked else TUPLES
        self.total = b * math.ceil(k / self.t) if self.chunked else b * k
        blocks = self.total if self.chunked else math.ceil(self.total / self.block)
        self.grid = (min(blocks, programs(self.device)),)

    def run(self, kernel: Any, before: list[Tensor], **more: Any) -> None:
        """Run a kernel whose data are `before`."""
        own, plan = self.tuples, self.plan
        rows, cols = math.prod(plan.out_shape), math.prod(plan.in_shape)
        starts = plan.starts()
        first = [own.values, own.anchors, own.residuals, own.scales, plan.seed if starts is None else starts]
        given = [*first, table(plan.places.wide, self.device), plan.seed, *self._order(), *before, *self._scratch()]
        counts = [len(self._order()[0]), self.total, self.t] if self.chunked else [self.total]
        numbers = [*counts, self.k, rows, cols, self.width]
        with torch.cuda.device_of(own.values):
            kernel[self.grid](*given, *numbers, **self._known(starts is not None), **more)

    def _order(self) -> list[Tensor]:
        if not self.chunked:
            return []
        order = self.plan.context.given
        return [torch.arange(self.k, device=self.device).reshape(-1, self.t) if order is None else order]

    def _scratch(self) -> list[Tensor]:
        if self.width == 1 and not self.chunked:
            return [self.plan.seed, self.tuples.values]  # nothing passes through it
        count = self.block * self.plan.places.m
        each = (3 + len(self.plan.places.sizes), 3) if self.chunked else (2, 2)
        lines = torch.empty(self.grid[0], each[0] * count, dtype=torch.int64, device=self.device)
        return [lines, self.tuples.values.new_empty(self.grid[0], each[1] * count)]

    def _known(self, fixed: bool) -> dict[str, Any]:
        """What the kernels are compiled for: without contraction, a product and a sum round as in torch, so that
        both draw the same points."""
        plan, places = self.plan, self.plan.places
        e = power(min(self.width, WIDTH))
        return {
            "PLACES": (places.sizes, places.widths, places.counts, places.wide),
            "STRIDES": plan.steps(plan.template.learned),
            "M": places.m,
            "S": self.tuples.scales.shape[-1],
            "NU": plan.nu,
            "FIXED": fixed,
            "REPEAT": self.tuples.repeat,
            "T": self.block,
            "enable_fp_fusion": False,
            "num_warps": 8 if self.chunked and self.block > 64 else 4,
            "SPAN": e * math.ceil(self.width / e),
            "P": min(divisor(self.block * places.m), POINTS if self.chunked else max(16, TILE // e)),
            "E": e,
        }
