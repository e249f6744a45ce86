"""`PositionWiring`: every node has a place in the output, a learned position, and an edge goes where its ends do."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash.checks import check_finite, positive, require
from ash.edge_hypernets import EdgeHypernetworkFactory, emit, make_hypernetwork, reset_parts
from ash.edge_weight import EdgeWeight
from ash.growth import BLOCK
from ash.sampling import Sampling, generator_from, new_seed
from ash.schedules import Schedule
from ash.sites import entry_sites, feature_count
from ash.sparse_batch import SparseBatch
from ash.template import Template
from ash.wirings.edge_base import AdjacencyWiring
from ash.wirings.gaussian import GaussianWiring

SAMPLING = Sampling(global_samples=2, local_samples=2, guided_samples=2, kept_samples=1)


class PositionWiring(AdjacencyWiring):
    """An entry (u, v) goes to (μ_u, μ_v): a table of positions, one for each node, that both columns share.

    No network can tell from the neighbourhood of a node what number it is to have: a transform that depends on the
    nodes' numbers, such as a fixed relabelling, is a table. The table is a `GaussianWiring` of one tuple for each
    node, with learned scales; the points of an entry are all pairs of points of its two ends, and their shares are
    products. In evaluation the positions are rounded. Values are 1, or what a hypernetwork adds to 1.

    The gradient through shares is local. Where else to look, `guide` tells: the gradient of the squared error by the
    table, with every other node spread evenly over the output, is a sum over graphs of (what is missing in row a) ×
    (the degree of node u), both less their means. For every node its most negative rows become guided points. So
    what finds a large permutation is how the degree of a node varies from graph to graph along with a row of the
    target: of 128 nodes of random graphs the right row is among the two guided points for more than half after the
    first batch of 8, and for 99 % after 40. The gradient through shares takes it up, the rows that are served ask no
    more, and all 128 are right after 60 to 70 batches (`python -m experiments graphs --task relabel`). By the gradient
    alone tables of 16 and of 32 nodes were learned, one of 128 was not. Graphs of which all nodes have one degree
    guide nowhere.

    Args:
        nodes: n, of the largest graph; the output has n × n positions.
        hypernetwork: None, or a module or a factory of one, as in `EdgeWiring`, which emits one number for each
            entry: its value, less 1.
        node_features, channels: how many of each the input has, which only a hypernetwork sees.
        sampling: of the points of a node. scale, scale_ceiling: of the positions, in units of a node; by default a
            quarter of n. scale_floor: as in `GaussianWiring`.
        window: how many of the last graphs `guide` goes by: it keeps 4 · window · n numbers, and takes 2 · window · n²
            multiplications in blocks.
        generator: for the initial positions; torch's default one otherwise. No node starts at its own number.

    Attributes:
        table: the positions of the nodes, a `GaussianWiring`.

    An optimizer's step of 0.1 to 0.2 suits the table: it is in units of the scale. Do not force scales down by a
    schedule: a node that is in a wrong place gets away by growing wide again.

    Raises `UserError` for fewer than 2 nodes, other options that do not fit, and graphs of more nodes.
    """

    degrees: Tensor
    missing: Tensor
    seen: Tensor

    def __init__(
        self,
        nodes: int,
        *,
        hypernetwork: nn.Module | EdgeHypernetworkFactory | None = None,
        node_features: int = 0,
        channels: int = 1,
        sampling: Sampling = SAMPLING,
        scale: float | None = None,
        scale_floor: float | Schedule = 0.1,
        scale_ceiling: float | Schedule | None = None,
        window: int = 320,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        require(nodes >= 2, f"nodes={nodes}; expected at least 2, so that none need start at its own number.")
        positive("window", window)
        self.nodes = nodes
        wide = max(1.0, nodes / 4)
        self.table = GaussianWiring(
            nodes,
            nodes,
            template=Template.per_input((nodes,), (nodes,), 1),
            values="ones",
            sampling=sampling,
            scale=wide if scale is None else scale,
            scale_floor=scale_floor,
            scale_ceiling=wide if scale_ceiling is None else scale_ceiling,
            device=device,
            dtype=dtype,
        )
        self.hypernetwork: nn.Module | None = None
        if hypernetwork is not None:
            made = make_hypernetwork(hypernetwork, feature_count("entry", channels, node_features), 1, 1)
            self.hypernetwork = made.to(device=device, dtype=dtype)
        like = self.table.log_scale.detach()
        self.register_buffer("degrees", like.new_zeros(2, window, nodes))
        self.register_buffer("missing", like.new_zeros(2, window, nodes))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._place(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """New positions, and a new hypernetwork where its parts have `reset_parameters`."""
        if self.hypernetwork is not None:
            reset_parts(self.hypernetwork)
        self._place(generator)

    @torch.no_grad()
    def _place(self, generator: torch.Generator | None) -> None:
        """Positions drawn from all but the node's own number."""
        source = generator_from(new_seed(torch.device("cpu"), generator), torch.device("cpu"))
        own = torch.arange(self.nodes, dtype=torch.float64)
        step = 0.6 + torch.rand(self.nodes, generator=source, dtype=torch.float64) * (self.nodes - 1.2)
        where = (own + step + 0.5) % self.nodes - 0.5
        self.table.reset_parameters(source, where.unsqueeze(1))
        self.seen.zero_()

    # --- from graphs to weights --------------------------------------------------------------------------

    def forward(self, x: SparseBatch, nodes: Float[Tensor, "nodes g"] | None = None) -> EdgeWeight:
        """A weight for the graphs of x: points around the positions in training, the nearest ones in evaluation."""
        self._check(x)
        drawn = self.table()
        points, shares = drawn.indices[:, 0].unflatten(0, (self.nodes, -1)), drawn.values.unflatten(0, (self.nodes, -1))
        u, v = x.indices.unbind(1)
        m = points.shape[1]
        indices = torch.stack([points[u].repeat_interleave(m, 1), points[v].repeat(1, m)], 2).flatten(0, 1)
        values = (shares[u].unsqueeze(2) * shares[v].unsqueeze(1)).flatten(1)
        if self.hypernetwork is not None:
            values = values * self._values(x, nodes)
        source = torch.arange(x.entries, device=u.device).repeat_interleave(m * m)
        return EdgeWeight(source, indices, values.flatten(), self._out_sizes(x), x)

    def _check(self, x: SparseBatch) -> None:
        require(x.rank == 2, f"tensors of rank {x.rank}; expected graphs, as adjacency matrices of rank 2.")
        largest = int(x.sizes.max()) if len(x) else 0
        require(largest <= self.nodes, f"a graph of {largest} nodes; expected at most nodes={self.nodes}.")

    def _out_sizes(self, x: SparseBatch) -> Int64[Tensor, "b r"]:
        return torch.full_like(x.sizes, self.nodes)

    def _values(self, x: SparseBatch, nodes: Tensor | None) -> Float[Tensor, "n 1"]:
        assert self.hypernetwork is not None
        features = entry_sites(x, nodes).features.to(self.table.log_scale.dtype)
        raw = emit(self.hypernetwork, features, x.instance, len(x), (1, 1))
        check_finite(raw, self)
        return 1 + raw.flatten(1)

    # --- where to look -------------------------------------------------------------------------------------

    @torch.no_grad()
    def guide(self, x: SparseBatch, prediction: SparseBatch, target: SparseBatch) -> None:
        """Note the degrees of x and what is missing in each row and column, and make each node its guided points.

        Args:
            x: `(n_i, n_i)` graphs. prediction, target: `(n, n)`, what the layer gave for them, and should have.

        Raises `UserError` for other sizes.
        """
        self._check(x)
        for name, batch in (("a prediction", prediction), ("a target", target)):
            fits = len(batch) == len(x) and bool((batch.sizes == self.nodes).all()) and batch.rank == 2
            require(fits, f"{name} of sizes {batch.sizes[:3].tolist()}; expected {len(x)} times {[self.nodes] * 2}.")
        if not self.table.search.guides:
            return
        window = self.degrees.shape[1]
        where = (int(self.seen) + torch.arange(len(x), device=self.degrees.device)) % window
        for side in (0, 1):
            self.degrees[side, where] = self._sums(x, side)
            self.missing[side, where] = self._sums(target, side) - self._sums(prediction, side)
        self.seen += len(x)
        self.table.search.propose(self._proposals(min(int(self.seen), window)))

    def _sums(self, batch: SparseBatch, side: int) -> Float[Tensor, "b n"]:
        """The sum of every row (side 0) or column (1) of every graph; of channels, of all."""
        values = batch.values.unsqueeze(-1).flatten(1).sum(1).to(self.degrees.dtype)
        places = batch.instance * self.nodes + batch.indices[:, side]
        return values.new_zeros(len(batch) * self.nodes).index_add(0, places, values).unflatten(0, (len(batch), -1))

    def _proposals(self, used: int) -> Int64[Tensor, "g 2"]:
        """(row, node): for every node the rows where its gradient is most negative, in blocks of nodes."""
        each = min(self.table.sampling.guided_samples, self.nodes)
        seen, asked = ((part[:, :used] - part[:, :used].mean(1, keepdim=True)).flatten(0, 1) for part in
                       (self.degrees, self.missing))  # fmt: skip
        blocks = seen.split(max(1, math.ceil(BLOCK / self.nodes)), dim=1)
        rows = torch.cat([(asked.t() @ block).topk(each, dim=0).indices for block in blocks], 1)
        return torch.stack([rows, torch.arange(self.nodes, device=rows.device).expand_as(rows)], 2).flatten(0, 1)

    def extra_repr(self) -> str:
        return f"nodes={self.nodes}"
