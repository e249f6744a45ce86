"""What stands beside a transform that is learned edge by edge: layers whose weight is the same for every graph.

  gaussian  a `GaussianWiring` of the tensor of rank 4: for each of the n² input positions as many index tuples as an
            edge has in the transform, whose output columns are learned. It stores a value and an index for each
  dense     a weight of n⁴ numbers, and its gradient and Adam's two moments beside it, where these fit into `MOST` bytes

Both are for graphs of n nodes in one numbering: they have no entries for a graph of other size.

Keys, `--baselines`: `gaussian_f1`, `gaussian_exact` (test graphs, rounded), `gaussian_stored_numbers`,
`gaussian_seconds`, `dense_f1`, `dense_exact`, `dense_seconds` (null where it does not fit), `gaussian_f1_larger`,
`dense_f1_larger` (null: they cannot be applied).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ash import Anneal, GaussianWiring, Sampling, SparseBatch, SparseLayer, Template, edge_scores, parameter_groups
from ash import sparse_loss as loss_of
from experiments.descent import Descent
from experiments.graph_transform_data import Data
from experiments.runs import Run

MOST = 1 << 30
"""Bytes that a dense layer may take in training."""
LR, MEAN_LR = 1e-2, 0.3


class Dense(nn.Module):
    """A weight between all positions of adjacency matrices.

    Args:
        nodes: n. Shapes: graphs of n nodes -> graphs of n nodes that store every position.
    """

    def __init__(self, nodes: int):
        super().__init__()
        self.nodes = nodes
        self.weight = nn.Parameter(torch.zeros(nodes**2, nodes**2))

    def forward(self, x: SparseBatch) -> SparseBatch:
        """Every position of the output, also those that are 0."""
        y = x.to_dense().flatten(1) @ self.weight.t()
        b, n = y.shape
        places = torch.arange(n, device=y.device)
        indices = torch.stack([places // self.nodes, places % self.nodes], 1)
        instance = torch.arange(b, device=y.device).repeat_interleave(n)
        return SparseBatch(instance, indices.repeat(b, 1), y.flatten(), x.sizes)


def gaussian(options: Any) -> SparseLayer:
    """The layer whose tuples have a fixed input position each."""
    n, own, steps = options.nodes, options.transform, options.transform.baseline_steps
    each = max(1, own.tuples)
    wiring = GaussianWiring(
        (n, n),
        (n, n),
        template=Template.per_input((n, n), (n, n), each),
        values="learned" if own.values == "emitted" else "ones",
        sampling=Sampling(True, 16, 4),
        scale=n / 4,
        scale_floor=0.3,
        scale_ceiling=Anneal(n / 4, 0.3, max(1, 2 * steps // 3)),
    )
    return SparseLayer((n, n), (n, n), bias=False, wiring=wiring)


def baselines(options: Any, data: Data, run: Run) -> dict[str, object]:
    """Train both, where they fit; the keys of the summary."""
    torch.manual_seed(options.seed)
    layer = gaussian(options).to(run.device)
    groups = parameter_groups(layer, LR, mean_lr=MEAN_LR)
    found = _train("gaussian", layer, torch.optim.Adam(groups), options, data, run)
    wiring = layer.wiring
    assert isinstance(wiring, GaussianWiring)
    found |= {"gaussian_stored_numbers": 2 * wiring.k, "gaussian_f1_larger": None}
    missing = dict.fromkeys(("dense_f1", "dense_exact", "dense_seconds", "dense_f1_larger"))
    if 16 * options.nodes**4 > MOST:
        return found | missing
    dense = Dense(options.nodes).to(run.device)
    return found | missing | _train("dense", dense, torch.optim.Adam(dense.parameters(), LR), options, data, run)


def _train(
    name: str,
    layer: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: Any,
    data: Data,
    run: Run,
) -> dict[str, object]:
    """Train one layer as the transform's is trained; its scores of the test graphs."""
    own, begun = options.transform, run.seconds
    bar = run.progress(own.baseline_steps, name)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, own.baseline_steps)
    call: Callable[[SparseBatch], Any] = layer
    descent = Descent(layer, optimizer)
    for step in range(own.baseline_steps):
        x, y = data.train.batch(torch.randint(len(data.train.x), (own.batch,)).tolist())
        loss: Tensor = loss_of(call(x), y)
        descent.step(loss, step)
        schedule.step()
        bar.update(1)
    layer.eval()
    with torch.no_grad():
        x, y = data.test.batch(range(len(data.test.x)))
        scores = edge_scores(call(x), y)
    seconds = round(run.seconds - begun, 3)
    return {f"{name}_f1": scores.f1, f"{name}_exact": scores.exact, f"{name}_seconds": seconds}
