"""`EdgeWiring`: a hypernetwork looks at every entry of a sparse input and says where in the output it goes."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from ash.checks import check_finite, check_positions, choose, positive, require
from ash.edge_hypernets import EdgeHypernetwork, EdgeHypernetworkFactory, emit, make_hypernetwork, reset_parts
from ash.edge_weight import EdgeWeight
from ash.emission import DirectMeans, Layout
from ash.kernels import Kernel, get_kernel
from ash.sampling import Sampling, duplicates, generator_from, new_seed, sample_points
from ash.schedules import Anneal, Schedule, at
from ash.shares import SMALLEST, point_weights
from ash.sites import Sites, entry_sites, feature_count, path_sites
from ash.sparse_batch import SparseBatch
from ash.tuples import IndexTuples
from ash.wirings.counting import CountsSteps
from ash.wirings.edge_base import AdjacencyWiring

FEW = 16
"""Up to so many positions in its list a tuple takes them all as points: as cheap as drawing some, and no noise."""

_VALUES = {"emitted": (1, True), "shared": (1, False), "ones": (0, False)}


class EdgeWiring(AdjacencyWiring, CountsSteps):
    """Each site of a graph emits t index tuples that say where in the output its entry goes, and with what value.

    The input columns of a site's tuples are fixed: its entry. The output columns are learned as pointers,
    continuous positions in the site's short list of candidate nodes (see `entry_sites` and `path_sites`), so that the
    same network serves graphs of any size and in any numbering. As in `HyperWiring` a tuple is what is emitted plus
    an offset that all sites share: a mean for every output column, and a value around 1; scales follow a schedule.

    In training a tuple's value is divided over points: all positions of the list, for each column, where these are at
    most 16, and otherwise those that `sampling` draws. In evaluation the means are rounded. A point at a candidate
    that is absent makes no entry, in training as in evaluation, and its share is lost: there a site can leave out
    what other sites make.

    At first the pointers of all tuples are near list positions drawn at random, of which none is the input's own
    entry, (u, v): a transform that keeps edges has to be learned.

    Args:
        hypernetwork: a module (features, graph of each site, number of graphs) -> `(s, t, width)`, or what makes
            one: `f(features, t, width)`, such as `partial(EdgeHypernetwork, hidden=(64,))`.
        t: tuples of a site. out_rank: r, of the output; 1 sends an entry's value to a node.
        sites: `"entry"` or `"path"`. neighbours: see `entry_sites`.
        node_features, channels: how many of each the input has.
        values: `"emitted"`, `"shared"` (one for each of the t tuples), or `"ones"`.
        scale: of all tuples, in positions of the list; a number or a schedule of the optimizer's steps. By default
            from twice the list's length to 0.1 within 200 steps: at first all positions have nearly equal shares, and
            the gradient says which way the wanted ones lie; a narrow start fails where many points coincide.
        kernel: as in `StochasticWiring`. sampling: of points; None takes them all where they are few.
        positions: `(t, out_rank)`, initial means instead of random ones.
        generator: for the initial means; torch's default one otherwise.

    Attributes:
        offset: `(t, total)`, raw numbers. base: `(t, out_rank)`, initial means. step: optimizer steps so far.

    Raises `UserError` for options that do not fit, an input of other features, and emitted numbers that are NaN.

    Source: `Sparse, Adaptive Hypernetworks` (2017), transforms of graphs; the pointers and sites are ours.
    """

    base: Tensor

    def __init__(
        self,
        hypernetwork: nn.Module | EdgeHypernetworkFactory = EdgeHypernetwork,
        t: int = 1,
        *,
        out_rank: int = 2,
        sites: str = "entry",
        neighbours: int = 0,
        node_features: int = 0,
        channels: int = 1,
        values: str = "emitted",
        scale: float | Schedule | None = None,
        kernel: str | Kernel = "student_t",
        sampling: Sampling | None = None,
        positions: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.t, self.out_rank, self.sites, self.neighbours = t, out_rank, sites, neighbours
        self.features = feature_count(sites, channels, node_features)
        self.length = 3 if sites == "path" else 2 + neighbours
        few = self.length**out_rank <= FEW
        self.kernel, self.sampling = get_kernel(kernel), Sampling() if sampling is None and not few else sampling
        self._check_options()
        self.scale = Anneal(2.0 * self.length, 0.1, 200) if scale is None else scale
        positive("scale", at(self.scale, 0))
        columns, emitted = choose("value scheme", values, _VALUES)
        self.layout = Layout(out_rank, 0, columns, False, emitted)
        self.means = DirectMeans()
        self.hypernetwork = make_hypernetwork(hypernetwork, self.features, t, self.layout.width)
        self.hypernetwork.to(device=device, dtype=dtype)
        self.offset = nn.Parameter(torch.zeros(t, self.layout.total, device=device, dtype=dtype))
        self.register_buffer("base", torch.zeros(t, out_rank, device=device, dtype=torch.float64))
        self._register_count()
        self._reset_offset(generator, positions)

    def _check_options(self) -> None:
        positive("t", self.t)
        positive("out_rank", self.out_rank)
        positive("neighbours", self.neighbours, zero=True)
        free = self.sites == "entry" or not self.neighbours
        require(free, f"neighbours={self.neighbours} of paths; expected 0, their candidates are u, v, w.")
        if self.sampling is not None:
            self.sampling.check(self.out_rank)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """New offsets, and a new hypernetwork where its parts have `reset_parameters`."""
        reset_parts(self.hypernetwork)
        self._reset_offset(generator, None)

    @torch.no_grad()
    def _reset_offset(self, generator: torch.Generator | None, positions: Tensor | None) -> None:
        source = generator_from(new_seed(torch.device("cpu"), generator), torch.device("cpu"))
        where = self._away(source) if positions is None else positions.double()
        check_positions(where, (self.t, self.out_rank), "(t, out_rank)")
        self.base.copy_(where)
        self.offset.zero_()
        self.offset[:, self.out_rank :] = 1.0
        self.step.zero_()
        self._mark()

    def _away(self, source: torch.Generator) -> Float64[Tensor, "t r"]:
        """Means within a quarter of a list position, none of which is the input's own entry.

        That stands at (0, 1), and wherever another candidate happens to be u or v; not at a (v, …), nor at a (…, u).
        """
        where = torch.randint(self.length, (self.t, self.out_rank), generator=source)
        while self.out_rank == 2:
            own = (where[:, 0] != 1) & (where[:, 1] != 0) & (where[:, 0] != where[:, 1])
            if not own.any():
                break
            where[own] = torch.randint(self.length, (int(own.sum()), 2), generator=source)
        jitter = torch.rand(self.t, self.out_rank, generator=source, dtype=torch.float64) - 0.5
        return where + 0.5 * jitter

    def _marker(self) -> Tensor | None:
        own = self.offset
        return own if type(own) is nn.Parameter and not own.is_inference() else None

    # --- from a graph to a weight ------------------------------------------------------------------------

    def find(self, x: SparseBatch, nodes: Tensor | None = None) -> Sites:
        """The sites of a batch of graphs."""
        if self.sites == "path":
            return path_sites(x, nodes)
        return entry_sites(x, nodes, self.neighbours)

    def tuples(self, x: SparseBatch, nodes: Tensor | None = None) -> IndexTuples:
        """The tuples of each site, `(s, t, …)`; differentiable."""
        return self._tuples(self.find(x, nodes), x)

    def _tuples(self, sites: Sites, x: SparseBatch) -> IndexTuples:
        features = sites.features.to(self.offset.dtype)
        require(
            features.shape[1] == self.features,
            f"{features.shape[1]} features of a site, of an input with values {tuple(x.values.shape)}; expected "
            f"{self.features}; the wiring's channels and node_features say how many there are.",
        )
        raw = emit(self.hypernetwork, features, x.instance[sites.entry], len(x), (self.t, self.layout.width))
        shape = raw.shape
        check_finite(raw, self)
        means, _, values = self.layout.split(raw, self.offset)
        sizes = torch.full((self.out_rank,), float(self.length), dtype=torch.float64, device=raw.device)
        anchors, residuals = self.means(means, self.base, sizes)
        scales = raw.new_full((1, 1, 1), max(at(self.scale, int(self.step)), SMALLEST)).expand(*shape[:2], 1)
        values = values.squeeze(-1) if self.layout.values else raw.new_ones(shape[:2])
        return IndexTuples(anchors, residuals, scales, values)

    def forward(self, x: SparseBatch, nodes: Float[Tensor, "nodes g"] | None = None) -> EdgeWeight:
        """A weight for the graphs of x: spread over points in training, rounded in evaluation.

        Args:
            nodes: features of all nodes, those of one graph after those of the other; gradients reach them.
        """
        self.settle()
        sites = self.find(x, nodes)
        tuples = self._tuples(sites, x)
        points, values = self._spread(tuples) if self.training else self._round(tuples)
        return self._at(sites, points, values, x)

    def _round(self, tuples: IndexTuples) -> tuple[Int64[Tensor, "s t m r"], Float[Tensor, "s t m"]]:
        points = tuples.rounded((self.length,) * self.out_rank)
        return points.unsqueeze(2), tuples.values.unsqueeze(2)

    def _spread(self, tuples: IndexTuples) -> tuple[Int64[Tensor, "s t m r"], Float[Tensor, "s t m"]]:
        """Points in the list, and what each gets of its tuple's value."""
        s, t, r = tuples.anchors.shape
        points, alive = self._points(tuples)
        weights = point_weights(
            self.kernel,
            points.flatten(0, 1),
            alive.flatten(0, 1),
            tuples.anchors.reshape(s * t, 1, r),
            tuples.residuals.reshape(s * t, 1, r),
            tuples.scales.reshape(s * t, 1, 1),
            tuples.values.reshape(s * t, 1),
            extent=self.length,
        )
        return points, weights.unflatten(0, (s, t))

    def _points(self, tuples: IndexTuples) -> tuple[Int64[Tensor, "s t m r"], Bool[Tensor, "s t m"]]:
        s, t, r = tuples.anchors.shape
        device = tuples.anchors.device
        if self.sampling is None:
            grid = torch.cartesian_prod(*[torch.arange(self.length, device=device)] * r).reshape(-1, r)
            return grid.expand(s, t, -1, -1), torch.ones((), dtype=torch.bool, device=device).expand(s, t, len(grid))
        generator = generator_from(new_seed(device), device)
        points = sample_points(tuples, (self.length,) * r, self.sampling, generator)
        ids = torch.zeros_like(points[..., 0])
        for column in points.unbind(-1):
            ids = ids * self.length + column
        return points, ~duplicates(ids.flatten(0, 1)).reshape(ids.shape)

    def _at(self, sites: Sites, points: Tensor, values: Tensor, x: SparseBatch) -> EdgeWeight:
        """The weight whose entries are at the nodes that the points stand for, where these are present."""
        s, t, m, r = points.shape
        nodes = [sites.candidates.gather(1, points[..., j].flatten(1)) for j in range(r)]
        indices = torch.stack([node.flatten() for node in nodes], 1)
        weight = EdgeWeight(sites.entry.repeat_interleave(t * m), indices, values.flatten(), self._out_sizes(x), x)
        if not self.neighbours:
            return weight
        keep = (indices >= 0).all(1).nonzero().squeeze(1)
        return replace(weight, source=weight.source[keep], indices=indices[keep], values=weight.values[keep])

    def _out_sizes(self, x: SparseBatch) -> Int64[Tensor, "b r"]:
        return x.sizes[:, :1].expand(-1, self.out_rank)

    def extra_repr(self) -> str:
        points = self.length**self.out_rank if self.sampling is None else self.sampling.points(self.out_rank)
        return (
            f"t={self.t}, out_rank={self.out_rank}, sites={self.sites!r}, length={self.length}, "
            f"kernel={self.kernel!r}, points={points}"
        )
