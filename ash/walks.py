"""Sums over the cells of a tree in plain torch: for machines without numba. What is computed stands in `ash.cells`.

All tuples of a block walk the tree together, level by level. A far cell is one source in its middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.kernels import Kernel, StudentT
from ash.nodes import Nodes
from ash.trees import Tree

BLOCK = 1 << 20
"""Sources of a block of tuples, about."""

ERROR = {torch.float32: 3e-5, torch.float64: 1e-12}
"""Bound of the error of a cell's share, relative to it."""

CELLS = 32
"""A cell may be off by a share of `ERROR` / `CELLS` of the whole: about as many lie at each distance."""

WIDEST = 0.5
"""Half diagonal of a cell over its distance, as in `ash.cells`, above which it is opened."""

LAST_BITS = {torch.float32: 30, torch.float64: 60}
"""What a Gaussian leaves out sums to at most 2^−this of a tuple's share."""


class Cloud(NamedTuple):
    """Tuples that look at points through a tree: everything but their values."""

    kernel: Kernel
    tree: Tree
    roots: Int64[Tensor, " t"]
    anchors: Float[Tensor, "t q"]
    residuals: Float[Tensor, "t q"]
    inverse: Float[Tensor, "t s"]  # 1/σ
    nodes: Nodes

    @property
    def nu(self) -> float:
        """Degrees of freedom; 0 for a Gaussian."""
        return self.kernel.nu if isinstance(self.kernel, StudentT) else 0.0

    @property
    def power(self) -> float:
        """A density falls as distance^−power; 0 for a Gaussian."""
        return self.nu + self.q if self.nu else 0.0

    @property
    def q(self) -> int:
        """Learned columns."""
        return len(self.tree.where)

    @property
    def bounds(self) -> list[float]:
        """Of each order p of nodes: the error of a cell's share is at most `ERROR` times this · (α/D)^p of it."""
        error = ERROR[self.anchors.dtype]
        orders = self.nodes.orders.tolist() if self.nu else []
        return [_rising(self.power, p) * 2.0 ** (1 - p) / error for p in orders]

    @property
    def reach(self) -> float:
        """Squared distance, in units of σ, beyond which cells are left out; for fat tails `CELLS`."""
        bits = LAST_BITS[self.anchors.dtype]
        return CELLS if self.nu else 2 * (math.log(max(1, self.tree.where.shape[1])) + bits * math.log(2))

    def take(self, which: Int64[Tensor, " j"]) -> Cloud:
        """Some of the tuples."""
        names = ("roots", "anchors", "residuals", "inverse")
        return self._replace(**{name: getattr(self, name)[which] for name in names})


def _rising(power: float, p: int) -> float:
    """(p + power − 1)! / (p! (power − 1)!), for any power."""
    return math.exp(math.lgamma(p + power) - math.lgamma(p + 1) - math.lgamma(power))


class Sources(NamedTuple):
    """What some tuples see, side by side."""

    owner: Int64[Tensor, " n"]
    place: Int64[Tensor, " n"]  # a point's, or behind all points a cell's
    away: Float[Tensor, "n q"]


def sources(cloud: Cloud, which: slice) -> Sources:
    """The sources of some tuples."""
    own = cloud.take(torch.arange(len(cloud.roots), device=cloud.roots.device)[which])
    tree, points = cloud.tree, cloud.tree.where.shape[1]
    runs, far = _walk(own)
    counts = tree.last[runs[1]] - tree.first[runs[1]]
    owner = runs[0].repeat_interleave(counts)
    begin = (tree.first[runs[1]] - counts.cumsum(0) + counts).repeat_interleave(counts)
    place = begin + torch.arange(len(owner), device=owner.device)
    where = torch.cat([tree.where[:, place].t(), tree.middle[far[1]]])
    owner, place = torch.cat([owner, far[0]]), torch.cat([place, points + far[1]])
    return Sources(owner, place, (where - own.anchors[owner]) - own.residuals[owner])


def _walk(own: Cloud) -> tuple[Tensor, Tensor]:
    """(tuple, cell) of the cells whose points count, and of those that count as one source: (2, n) each."""
    tree, (bound, *_) = own.tree, own.bounds or [0.0]
    sizes = tree.last - tree.first
    least, weight = _near_home(own)
    owner = (sizes[own.roots] > 0).nonzero().squeeze(-1)
    cell = own.roots[owner]
    runs, far = [], []
    while len(owner):
        near, alpha = _near(own, owner, cell)
        if own.nu:
            apart = (alpha / (own.nu + near)).sqrt()
            logs = own.kernel.log_density(near, own.q) - own.kernel.log_density(least[owner], own.q)
            share = (weight[owner] * sizes[cell] * logs.clamp(max=0).exp()).clamp(max=1)
            smooth = (apart <= WIDEST) & (bound * share * apart <= 1)
            far.append(torch.stack([owner, cell])[:, smooth & (sizes[cell] > 1)])
            stay = ~smooth | (sizes[cell] == 1)
        else:
            stay = near - least[owner] <= own.reach
        owner, cell = owner[stay], cell[stay]
        leaf = tree.child[cell] < 0
        runs.append(torch.stack([owner, cell])[:, leaf])
        owner, left = owner[~leaf].repeat(2), tree.child[cell[~leaf]]
        cell = torch.cat([left, left + 1])
    none = own.roots.new_zeros(2, 0)
    return torch.cat([none, *runs], 1), torch.cat([none, *far], 1)


def _near(own: Cloud, owner: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance in units of the scale from means to cells; the cells' own half diagonals, squared."""
    tree, inverse, half = own.tree, own.inverse[owner], own.tree.half[cell]
    away = ((tree.middle[cell] - own.anchors[owner]) - own.residuals[owner]).abs() - half
    return (away.clamp(min=0) * inverse).square().sum(-1), (half * inverse).square().sum(-1)


def _near_home(own: Cloud) -> tuple[Tensor, Tensor]:
    """u of the nearest point of the leaf around each mean, and `CELLS` over the leaf's density relative to its."""
    tree, owner = own.tree, torch.arange(len(own.roots), device=own.roots.device)
    cell = own.roots
    while bool((inner := tree.child[cell] >= 0).any()):
        left = torch.where(inner, tree.child[cell], cell)
        right = torch.where(inner, left + 1, cell)
        cell = torch.where(_near(own, owner, right)[0] < _near(own, owner, left)[0], right, left)
    counts = tree.last[cell] - tree.first[cell]
    widest = int(counts.max()) if len(counts) else 0
    place = tree.first[cell].unsqueeze(-1) + torch.arange(widest, device=cell.device)
    within = place < tree.last[cell].unsqueeze(-1)
    where = tree.where[:, place.clamp(max=max(0, tree.where.shape[1] - 1))].movedim(0, -1)
    away = (where - own.anchors.unsqueeze(1)) - own.residuals.unsqueeze(1)
    u = (away * own.inverse.unsqueeze(1)).square().sum(-1).masked_fill(~within, torch.inf)
    least = u.amin(1) if widest else u.new_zeros(len(u))
    logs = own.kernel.log_density(u, own.q) - own.kernel.log_density(least.clone(), own.q).unsqueeze(-1)
    return least, CELLS / logs.exp().sum(-1)


def _blocks(cloud: Cloud) -> Iterator[slice]:
    """Blocks of tuples of about `BLOCK` sources, by those of some evenly spaced ones."""
    step = max(1, int(BLOCK / max(1.0, mean_sources(cloud))))
    for begin in range(0, len(cloud.roots), step):
        yield slice(begin, begin + step)


def mean_sources(cloud: Cloud, some: int = 64) -> float:
    """How many sources a tuple has, by some evenly spaced ones."""
    t = len(cloud.roots)
    which = torch.arange(min(some, t), device=cloud.roots.device) * t // max(1, min(some, t))
    return len(sources(cloud.take(which), slice(None)).owner) / max(1, len(which))


def _densities(cloud: Cloud, own: Sources, u: Tensor) -> Tensor:
    """Relative to the largest of each tuple."""
    logs = cloud.kernel.log_density(u, cloud.q)
    largest = logs.new_full((int(own.owner.max()) + 1,), -torch.inf).scatter_reduce(0, own.owner, logs, "amax")
    return (logs - largest[own.owner]).exp()


def _cell_sums(tree: Tree, values: Tensor) -> Tensor:
    """Values of points, and behind them of cells: the sums of theirs."""
    running = torch.nn.functional.pad(values.double().cumsum(0), (1, 0))
    return torch.cat([values, (running[tree.last] - running[tree.first]).to(values.dtype)])


def weigh(cloud: Cloud, values: Float[Tensor, " t"]) -> Float[Tensor, " n"]:
    """Weights of the points, in the order of the tree."""
    tree, n = cloud.tree, cloud.tree.where.shape[1]
    ones = _cell_sums(tree, torch.ones_like(tree.where[0]))
    given = torch.zeros_like(ones)
    for block in _blocks(cloud):
        own = sources(cloud, block)
        if not len(own.owner):
            continue
        some = values[block]
        w = _densities(cloud, own, (own.away * cloud.inverse[block][own.owner]).square().sum(-1))
        total = torch.zeros_like(some).index_add_(0, own.owner, w * ones[own.place])
        given.index_add_(0, own.place, w * (some / total)[own.owner])
    steps = torch.zeros(n + 1, dtype=torch.float64, device=values.device)
    steps.index_add_(0, tree.first, given[n:].double()).index_add_(0, tree.last, -given[n:].double())
    return given[:n] + steps.cumsum(0)[:n].to(given.dtype)


def weigh_back(
    cloud: Cloud, values: Float[Tensor, " t"], grad: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " t"], Float[Tensor, "t q"], Float[Tensor, "t s"]]:
    """Gradients by values, residuals and scales; see `ash.shares`."""
    tree, shared = cloud.tree, cloud.inverse.shape[1] == 1
    ones, g = (_cell_sums(tree, each) for each in (torch.ones_like(grad), grad))
    found = torch.zeros_like(values), torch.zeros_like(cloud.residuals), torch.zeros_like(cloud.inverse)
    for block in _blocks(cloud):
        own = sources(cloud, block)
        if not len(own.owner):
            continue
        d_values, d_residuals, d_scales = (each[block] for each in found)
        away = own.away * (inverse := cloud.inverse[block][own.owner])
        u = away.square().sum(-1)
        slope = cloud.kernel.slope(u, cloud.q)
        w = _densities(cloud, own, u)
        total = torch.zeros_like(d_values).index_add_(0, own.owner, w * ones[own.place])
        d_values.index_add_(0, own.owner, w * g[own.place]).div_(total)
        flow = w * (g[own.place] - d_values[own.owner] * ones[own.place]) * slope
        flow = flow * (-2 * values[block] / total)[own.owner]
        once = flow.unsqueeze(-1) * away * inverse
        d_residuals.index_add_(0, own.owner, once)
        twice = once * away
        d_scales.index_add_(0, own.owner, twice.sum(-1, keepdim=True) if shared else twice)
    return found
