"""Shares by cells: what `ash.shares` computes, at a cost that grows with tuples · log(points).

A tuple looks at the points of its context through a tree of cells (`ash.trees`).

**Gaussian: exact to float32.** With u the squared distance in units of σ, the share of a point is at most
exp(−(u − u₀)/2), where u₀ is any point's: a softmax compares points with each other, so what counts is not how far
a point is, but how much farther than another. Cells beyond u = u₀ + R are left out, u₀ being the nearest point's of
the leaf around the mean. At most N points are left out, so their shares sum to at most N exp(−R/2), which
R = 2 (ln N + 30 ln 2) makes 2^-30: a sixty-fourth of a float32's last bit, which leaves room for the gradients,
where every share is multiplied by up to R. (float64: 60 ln 2.) With N = 10^5, a tuple with a point at its mean sees
8 σ far.

**Student's t: to about 10^-6.** A fat tail ends nowhere, but it is smooth: far cells are seen as a few Chebyshev
nodes each (`ash.nodes`), the nearer the more. With α the half diagonal of a cell in units of σ, D² = ν + u at its
nearest corner and p nodes along each column, its share is off by about

    C(p + ν + q − 1, p) · 2^(1 − p) · (α/D)^p

of itself. The lowest order p is taken for which this is at most `ERROR`, or `ERROR` / `CELLS` of the tuple's whole
share, of which the leaf around its mean gives a lower bound. Where there is none, the cell is opened; where it has
fewer points than nodes, these are taken. In float64 `ERROR` is 10^-12, and most cells are opened.

Wide tuples among narrow ones need no care: a wide Gaussian sees all points, a wide t sees them through nodes.
Sources: Barnes and Hut 1986; for nodes in place of multipoles Fong and Darve 2009, Wang, Krasny and Tlupova 2020.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from ash import jit, walks
from ash.kernels import Gaussian, Kernel, StudentT
from ash.nodes import nodes
from ash.shares import EXACT, SMALLEST
from ash.trees import grow_tree
from ash.walks import WIDEST, Cloud

LEAF = 96
"""Points up to which a cell is not split."""


LEAST = 1 << 20
"""Entries of a table below which it is computed whole."""

COSTS = {"compiled": 1.5, "torch": 40.0}
"""Time of a source, about the most that was measured, in that of an entry of the streamed table."""


class _CellWeights(torch.autograd.Function):
    """(values, residuals, scales) → weight of every point, in the order of the tree."""

    @staticmethod
    def forward(values: Tensor, residuals: Tensor, scales: Tensor, cloud: Cloud, charges: Tensor) -> Tensor:
        return _weigh(cloud, charges, values) if len(charges) else walks.weigh(cloud, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, _, _, ctx.cloud, charges = inputs
        ctx.save_for_backward(values, charges)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, charges = ctx.saved_tensors
        if len(charges):
            return (*_weigh_back(ctx.cloud, charges, values, grad), None, None)
        return (*walks.weigh_back(ctx.cloud, values, grad), None, None)


# --- compiled ------------------------------------------------------------------------------------------------------


def _charges(cloud: Cloud, values: Float[Tensor, " n"]) -> Float[Tensor, "cells g"]:
    """Charges of the nodes of all cells that stand for those of the points; a Gaussian needs none."""
    from ash.jit.interpolation import gather_up

    cells = len(cloud.tree.first)
    if not cloud.nu:
        return values.new_zeros(cells, 1)
    charges = values.new_empty(cells, cloud.nodes.top)
    gather_up(*_interpolation(cloud), *jit.arrays(values, charges))
    return cloud.nodes.all(charges)


def _interpolation(cloud: Cloud) -> tuple[Any, ...]:
    where, tree, knots, basis = jit.arrays(cloud.tree.where), _cells(cloud), cloud.nodes.knots, cloud.nodes.basis
    return (*where, tree, *jit.arrays(knots, basis))


def _cells(cloud: Cloud) -> tuple[Any, ...]:
    tree = cloud.tree
    return tuple(jit.arrays(tree.first, tree.last, tree.child, tree.middle, tree.half))


def _given(cloud: Cloud, charges: Tensor, values: Tensor) -> list[Any]:
    """The first arguments of the kernels that walk."""
    number = jit.arrays(values)[0].dtype.type
    tree = cloud.tree
    bounds = torch.tensor(cloud.bounds, dtype=values.dtype)
    room = int((tree.last - tree.first).max())
    tuples = tuple(jit.arrays(cloud.anchors, cloud.residuals, cloud.inverse))
    limits = (*jit.arrays(cloud.nodes.orders, cloud.nodes.starts, bounds), number(WIDEST), number(cloud.reach))
    kernel = (number(cloud.nu), number(cloud.power))
    where, grid, charged, worth, roots = jit.arrays(tree.where, cloud.nodes.grid, charges, values, cloud.roots)
    return [where, _cells(cloud), grid, limits, kernel, charged, tuples, worth, roots, room]


def _weigh(cloud: Cloud, charges: Tensor, values: Tensor) -> Tensor:
    from ash.jit.cells import weigh
    from ash.jit.interpolation import spread_down

    given, parts = _given(cloud, charges, values), jit.pieces(len(values), 1, 64)
    weights = values.new_zeros(len(parts), cloud.tree.where.shape[1])
    sums = values.new_zeros(len(parts), *charges.shape)
    found = jit.arrays(weights, sums)
    jit.run(lambda i, begin, end: weigh(*given, found[0][i], found[1][i], begin, end), parts)
    whole = weights.sum(0) if len(parts) > 1 else weights[0]
    if cloud.nu:
        spread_down(*_interpolation(cloud), *jit.arrays(cloud.nodes.highest(sums.sum(0)), whole))
    return whole


def _weigh_back(cloud: Cloud, charges: Tensor, values: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    from ash.jit.cells import weigh_back

    grad = grad.contiguous()
    given, cells = _given(cloud, charges, values), _charges(cloud, grad)
    found = torch.zeros_like(values), torch.zeros_like(cloud.residuals), torch.zeros_like(cloud.inverse)
    last = jit.arrays(grad, cells, *found)
    parts = jit.pieces(len(values), 1, 64)
    jit.run(lambda _, begin, end: weigh_back(*given, *last, begin, end), parts)
    return found


def _mean_sources(cloud: Cloud, some: int = 64) -> float:
    """`ash.walks.mean_sources`, compiled."""
    from ash.jit.cells import count_sources

    t = len(cloud.roots)
    which = torch.arange(min(some, t)) * t // max(1, min(some, t))
    given = _given(cloud, cloud.tree.where.new_zeros(0, 0), cloud.tree.where.new_zeros(0))
    return float(count_sources(*given, *jit.arrays(which))) / max(1, len(which))


# --- what contexts call -------------------------------------------------------------------------------------------


def cell_weights(
    always: bool,
    kernel: Kernel,
    points: Int64[Tensor, "c p q"],
    alive: Bool[Tensor, "c p"],
    anchors: Int64[Tensor, "c t q"],
    residuals: Float[Tensor, "c t q"],
    scales: Float[Tensor, "c t s"],
    values: Float[Tensor, "c t"],
    groups: tuple[Int64[Tensor, "c p"], Int64[Tensor, "c t"]] | None = None,
    extent: int = EXACT,
) -> Float[Tensor, "c p"] | None:
    """`ash.shares.point_weights` by cells, for a Gaussian or Student's t and at least one learned column.

    None where `always` is False and the whole table is expected to cost less: of a small table, and where tuples
    see too many sources, which some of them are asked for. That is a function of tuples and points alone.
    """
    if not always and not _considered(kernel, values, points):
        return None
    dtype = torch.float64 if extent > EXACT else torch.promote_types(residuals.dtype, torch.float32)
    learned = [tensor.to(dtype) for tensor in (values.flatten(), residuals.flatten(0, 1), scales.flatten(0, 1))]
    living, context, roots, count = _contexts(alive, groups, values.shape)
    own = points.flatten(0, 1)[living]
    compiled = jit.serves(values.numel() * points.shape[1], *learned)
    cloud = Cloud(
        kernel,
        grow_tree(own, context, count, LEAF, dtype),
        roots,
        anchors.flatten(0, 1).to(dtype),
        learned[1].detach(),
        learned[2].detach().clamp(min=SMALLEST).reciprocal(),
        nodes(own.shape[1], dtype) if compiled else nodes(own.shape[1], dtype, 1),
    )
    if not always and not _pays(cloud, compiled):
        return None
    charges = _charges(cloud, torch.ones_like(cloud.tree.where[0])) if compiled else values.new_zeros(0)
    weights = _CellWeights.apply(*learned, cloud, charges).to(values.dtype)
    flat = weights.new_zeros(alive.numel()).index_copy(0, living[cloud.tree.order], weights)
    return flat.reshape(alive.shape)


def fits(kernel: Kernel, points: Tensor) -> bool:
    """Whether shares by cells are to be had: not under function transforms or a compiler, which hide the points."""
    plain = not torch._C._functorch.is_functorch_wrapped_tensor(points) and not torch.compiler.is_compiling()
    return plain and points.shape[-1] > 0 and points.numel() > 0 and type(kernel) in (Gaussian, StudentT)


def _considered(kernel: Kernel, values: Tensor, points: Tensor) -> bool:
    """Whether a table is large enough to ask further. On a GPU the streamed one is fast, and the walks are not."""
    return fits(kernel, points) and points.is_cpu and values.numel() * points.shape[1] >= LEAST


def _pays(cloud: Cloud, compiled: bool) -> bool:
    """Whether cells cost less than the table: always where a compiled t sees its points through nodes."""
    if compiled and cloud.nu:
        return True
    entries = float((cloud.tree.last - cloud.tree.first)[cloud.roots].double().mean())
    seen = _mean_sources(cloud) if compiled else walks.mean_sources(cloud)
    return seen * COSTS["compiled" if compiled else "torch"] < entries


def _contexts(alive: Tensor, groups: Any, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, int]:
    """Living points that some tuple reaches; their contexts and those of the tuples; how many.

    Every group of fixed columns within a context is a context of its own here.
    """
    c, t = shape
    device = alive.device
    rows = torch.arange(c, device=device).unsqueeze(-1)
    if groups is None:
        living = alive.flatten().nonzero().squeeze(-1)
        return living, living // alive.shape[1], rows.expand(c, t).flatten(), c
    top = max(int(each.max()) if each.numel() else 0 for each in groups) + 1
    points, tuples = ((each + rows * top).flatten() for each in groups)
    names, roots = torch.unique(tuples, return_inverse=True)
    place = torch.searchsorted(names, points).clamp(max=len(names) - 1)
    living = (alive.flatten() & (names[place] == points)).nonzero().squeeze(-1)
    return living, place[living], roots, len(names)
