"""Shares: how a tuple's value spreads over the integer points of its context, streamed.

Share of tuple i at point p: the softmax over the points of the context of the kernel's log density. The
weight of a point is the sum over tuples of value × share. The (tuples × points) table of a context is
computed in blocks that fit a core's cache, once forward and once more backward, and never held whole, so
memory stays proportional to tuples + points.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from ash.kernels import Kernel

BLOCK = 1 << 16
"""Entries of the table computed at a time, per thread: a few float32 buffers of them fit a core's L2 cache."""

COARSE = 1 << 12
"""Up to this distance a float32 holds a mean to 2^-12 of an index; beyond, anchor and residual are kept apart."""

EXACT = 1 << 24
"""Up to this distance a float32 holds every integer."""

SMALLEST = 1e-8
"""Scales below this many indices count as this, so that no square leaves float32."""


class Table(NamedTuple):
    """The (tuples × points) tables of c contexts of t tuples and p points each, as what they are made of.

    Positions are relative to the first anchor of their context.
    """

    points: Tensor  # (q, c, p)
    dead: Tensor | None  # (c, p), infinite at dead points and 0 elsewhere; None where every point lives
    anchors: Tensor  # (q, c, t)
    residuals: Tensor | None  # (q, c, t), or None where the anchors include them
    inverse: Tensor  # (s, c, t): 1/σ
    point_groups: Tensor | None  # (c, p) int64: fixed columns, flattened
    tuple_groups: Tensor | None  # (c, t) int64

    def part(self, c: slice, t: slice) -> Table:
        """The rows of some contexts and tuples; all points."""
        return Table(
            self.points[:, c],
            None if self.dead is None else self.dead[c],
            self.anchors[:, c, t],
            None if self.residuals is None else self.residuals[:, c, t],
            self.inverse[:, c, t],
            None if self.point_groups is None else self.point_groups[c],
            None if self.tuple_groups is None else self.tuple_groups[c, t],
        )


def _table(
    points: Tensor, alive: Tensor, anchors: Tensor, residuals: Tensor, scales: Tensor, groups: Any, extent: int
) -> Table:
    """Relative positions in floating point; float64 where one context spans more than float32 can tell apart."""
    single = anchors.shape[1] == 1
    dtype = torch.float64 if extent > EXACT and not single else torch.promote_types(residuals.dtype, torch.float32)
    origin = anchors[:, :1]
    near, offset = (anchors - origin).to(dtype).movedim(-1, 0), residuals.to(dtype).movedim(-1, 0)
    joined = single or extent <= COARSE or dtype == torch.float64
    point_groups, tuple_groups = groups if groups is not None else (None, None)
    return Table(
        (points - origin).to(dtype).movedim(-1, 0).contiguous(),
        None if alive.all() else torch.where(alive, 0.0, torch.inf).to(dtype),
        (near + offset).contiguous() if joined else near.contiguous(),
        None if joined else offset.contiguous(),
        scales.to(dtype).clamp(min=SMALLEST).reciprocal().movedim(-1, 0).contiguous(),
        point_groups,
        tuple_groups,
    )


def blocks(contexts: int, tuples: int, points: int) -> Iterator[tuple[slice, slice]]:
    """(contexts, tuples) slices whose tables have about `BLOCK` entries per thread."""
    budget = BLOCK * torch.get_num_threads()
    c_step = max(1, budget // max(1, tuples * points))
    t_step = tuples if c_step > 1 else max(1, min(tuples, budget // max(1, points)))
    for c in range(0, contexts, c_step):
        for t in range(0, tuples, max(1, t_step)):
            yield slice(c, c + c_step), slice(t, t + t_step)


def _distances(part: Table) -> tuple[list[Tensor], Tensor]:
    """p − μ for every column, (c, t, p) each, in units of σ where every column has its own; and u.

    u is infinite where a point is dead or has other fixed columns than the tuple; its share is then exactly 0.
    """
    shared = part.inverse.shape[0] == 1
    u: Tensor | None = None
    differences = []
    for j in range(part.points.shape[0]):
        d = part.points[j, :, None, :] - part.anchors[j, :, :, None]
        if part.residuals is not None:
            d.sub_(part.residuals[j, :, :, None])
        if not shared:
            d.mul_(part.inverse[j, :, :, None])
        u = d * d if u is None else u.addcmul_(d, d)
        differences.append(d)
    if u is None:
        u = part.points.new_zeros(*part.anchors.shape[1:], part.points.shape[-1])
    elif shared:
        u.mul_(part.inverse[0, :, :, None].square())
    if part.dead is not None:
        u.add_(part.dead[:, None, :])
    if part.point_groups is not None and part.tuple_groups is not None:
        u.masked_fill_(part.point_groups[:, None, :] != part.tuple_groups[:, :, None], torch.inf)
    return differences, u


def _full_precision(values: Tensor) -> torch.autocast:
    """Autocast would multiply in bfloat16, and a tuple's value would no longer be conserved."""
    return torch.autocast(values.device.type, enabled=False)


class _PointWeights(torch.autograd.Function):
    """(values, residuals, scales) → weight of every point (c, p)."""

    @staticmethod
    def forward(values: Tensor, residuals: Tensor, scales: Tensor, kernel: Kernel, table: Table) -> Tensor:
        dtype = table.points.dtype
        weights = torch.zeros(table.points.shape[1:], dtype=dtype, device=values.device)
        with _full_precision(values):
            for c, t in blocks(values.shape[0], values.shape[1], weights.shape[1]):
                part = table.part(c, t)
                share = kernel.shares(_distances(part)[1], part.points.shape[0])
                weights[c].add_(torch.bmm(values[c, None, t].to(dtype), share).squeeze(1))
        return weights.to(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, _, _, ctx.kernel, table = inputs
        ctx.save_for_backward(values, *table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, *saved = ctx.saved_tensors
        table = Table(*saved)
        dtype, (q, c_all, t_all), s = table.points.dtype, table.anchors.shape, table.inverse.shape[0]
        d_values = torch.empty_like(values)
        d_residuals = values.new_empty(c_all, t_all, q)
        d_scales = values.new_empty(c_all, t_all, s)
        with _full_precision(values):
            for c, t in blocks(c_all, t_all, grad.shape[1]):
                part = _gradients(ctx.kernel, table.part(c, t), values[c, t].to(dtype), grad[c].to(dtype))
                d_values[c, t], d_residuals[c, t], d_scales[c, t] = part
        return d_values, d_residuals, d_scales, None, None


def _gradients(kernel: Kernel, part: Table, values: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block by its values (c, t), residuals (c, t, q) and scales (c, t, s).

    With s the shares and ḡ = Σ g s, the logit of a point receives v s (g − ḡ). The density falls by
    slope · du, where du/dμ = −2 (p − μ)/σ² and du/dσ = −2 (p − μ)²/σ³.
    """
    differences, u = _distances(part)
    q, inverse = len(differences), part.inverse.movedim(0, -1)
    slope = kernel.slope(u, q)
    share = kernel.shares(u, q)
    mean = torch.bmm(share, grad.unsqueeze(-1))
    flow = share.mul_(grad.unsqueeze(1) - mean)
    if isinstance(slope, Tensor):
        flow.mul_(slope)
    firsts, seconds = [], []
    for d in differences:
        once = flow * d
        firsts.append(once.sum(-1))
        seconds.append(once.mul_(d).sum(-1))
    factor = values.unsqueeze(-1) * (-2 if isinstance(slope, Tensor) else -2 * slope)
    if not q:
        return mean.squeeze(-1), factor[..., :0], torch.zeros_like(inverse)
    d_residuals, d_scales = torch.stack(firsts, -1), torch.stack(seconds, -1)
    if inverse.shape[-1] == 1:  # differences in units of an index, not of σ
        d_residuals, d_scales = d_residuals * inverse, d_scales.sum(-1, keepdim=True) * inverse.square()
    return mean.squeeze(-1), d_residuals * inverse * factor, d_scales * inverse * factor


def point_weights(
    kernel: Kernel,
    points: Int64[Tensor, "c p q"],
    alive: Bool[Tensor, "c p"],
    anchors: Int64[Tensor, "c t q"],
    residuals: Float[Tensor, "c t q"],
    scales: Float[Tensor, "c t s"],
    values: Float[Tensor, "c t"],
    groups: tuple[Int64[Tensor, "c p"], Int64[Tensor, "c t"]] | None = None,
    extent: int = EXACT,
) -> Float[Tensor, "c p"]:
    """Weight of every point: the sum over its context's tuples of value × share.

    Args:
        kernel: the log density.
        points: integer points (learned columns) of c contexts.
        alive: False where a point is a duplicate or not admissible; it gets weight exactly 0.
        anchors, residuals, scales, values: the tuples of each context, as in `IndexTuples`.
        groups: flattened fixed columns of points and tuples; a tuple reaches points of its own group only.
        extent: the largest size of a learned column, which decides how positions are held.

    Every tuple must have at least one living point that it reaches. Gradients flow to residuals, scales
    and values. Source: arXiv 1810.09184, equation 2; streamed as described above.
    """
    if len(points) == 1 and not alive.all():
        return _among_living(kernel, points, alive, anchors, residuals, scales, values, groups, extent)
    table = _table(points, alive, anchors, residuals.detach(), scales.detach(), groups, extent)
    return _PointWeights.apply(values, residuals, scales, kernel, table)


def _among_living(
    kernel: Kernel, points: Tensor, alive: Tensor, anchors: Tensor, residuals: Tensor, scales: Tensor,
    values: Tensor, groups: Any, extent: int,
) -> Tensor:  # fmt: skip
    """`point_weights` of one context, whose dead points need not enter the table at all."""
    living = alive[0].nonzero().squeeze(-1)
    if groups is not None:
        groups = (groups[0][:, living], groups[1])
    some = point_weights(
        kernel, points[:, living], alive[:, living], anchors, residuals, scales, values, groups, extent
    )
    return some.new_zeros(alive.shape).index_copy(1, living, some)
