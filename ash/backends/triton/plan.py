"""What a draw is made of besides its tuples, and the same draw stored, in plain torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.backends.triton.points import Places, draw
from ash.contexts import Context, spread
from ash.kernels import Kernel, StudentT
from ash.template import Everything, Template
from ash.tuples import IndexTuples

CHUNK = 128
"""Tuples of the largest chunk that a program holds."""


@dataclass(frozen=True)
class Ordered(Context):
    """A context whose chunks are known: `given` `(c, t)`, padded by −1; None where tuples follow each other."""

    given: Tensor | None = field(default=None, compare=False)

    def order(self, k: int, generator: torch.Generator, device: torch.device) -> Int64[Tensor, "c t"] | None:
        return self.given


def flattened(indices: Int64[Tensor, "*n q"], steps: tuple[tuple[int, int], ...]) -> Int64[Tensor, "*n 2"]:
    """Rows and columns of the matrix; the steps are no tensor, which a CUDA graph could not copy to the device."""
    lines = [indices.new_zeros(indices.shape[:-1]) for _ in range(2)]
    for column, step in zip(indices.unbind(-1), steps, strict=True):
        lines = [line.add(column, alpha=by) for line, by in zip(lines, step, strict=True)]
    return torch.stack(lines, -1)


@dataclass(frozen=True)
class Plan:
    """What a draw is made of besides the tuples.

    Attributes:
        places: where points lie, and how many there are of each kind.
        template, fixed: fixed columns, and the tuples' indices `(k, f)` there.
        out_shape, in_shape: of the weight tensor.
        context: `Ordered`; chunks of at most `CHUNK` tuples.
        kernel: `Gaussian` or `StudentT`.
        seed: (1,), int64, where the tuples are, so that nothing is read back from there.
    """

    places: Places
    template: Template
    fixed: Int64[Tensor, "k f"]
    out_shape: tuple[int, ...]
    in_shape: tuple[int, ...]
    context: Ordered
    kernel: Kernel
    seed: Int64[Tensor, " one"]

    @property
    def nu(self) -> float:
        """Degrees of freedom; 0 for a Gaussian."""
        return self.kernel.nu if isinstance(self.kernel, StudentT) else 0.0

    def steps(self, columns: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """What an index of each of some columns of the tensor adds to (row, column) of the matrix."""
        r, found = len(self.out_shape), []
        for c in columns:
            side, sizes = (0, self.out_shape[c + 1 :]) if c < r else (1, self.in_shape[c - r + 1 :])
            step = 1
            for size in sizes:
                step *= size
            found.append((step, 0) if side == 0 else (0, step))
        return tuple(found)

    def starts(self) -> Int64[Tensor, "k 2"] | None:
        """Row and column of a tuple's fixed indices; None where nothing is fixed."""
        if not self.template.columns:
            return None
        return flattened(self.fixed, self.steps(self.template.columns))

    def points(self, tuples: IndexTuples) -> Int64[Tensor, "*b k m q"]:
        """The points that the kernels draw."""
        parts = (part.detach().flatten(0, -2) for part in (tuples.anchors, tuples.residuals, tuples.scales))
        anchors, residuals, scales = parts
        points = draw(anchors, residuals, scales, self.places, self.seed)
        return points.unflatten(1, tuples.values.shape).movedim(0, -1)

    def weights(self, tuples: IndexTuples, points: Int64[Tensor, "*b k m q"]) -> Float[Tensor, "*b k m"]:
        """The weight of every point; differentiable by the tuples."""
        shape = (*self.out_shape, *self.in_shape)
        return spread(
            tuples,
            points,
            self.template.fill(points, self.fixed),
            shape,
            kernel=self.kernel,
            context=self.context,
            template=self.template,
            admissible=Everything(shape),
            generator=torch.Generator(),
        )
