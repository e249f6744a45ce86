"""What stands beside an adaptive layer that ranks nodes: layers whose weight is the same for every graph.

Each takes the adjacency matrix of a graph with one row more, in which the seed is marked, n + 1 by n numbers, and gives
n ranks by one weight and a bias: `dense`, all n² (n + 1) weights, or `gaussian`, as many index tuples as the matrix has
positions, all columns of which are learned. They are for graphs of n nodes in one numbering.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash import Anneal, GaussianWiring, Sampling, SparseBatch, SparseLayer, parameter_groups
from experiments.descent import Descent

LR, MEAN_LR = {"dense": 1e-4, "gaussian": 3e-3}, 0.1
"""Of values (larger ones overshoot: an input has some 500 entries, and ranks are about 0.01), and of means."""
SMALL = 0.01
"""Share of their usual start with which values start, for the same reason."""


class FixedRanks(nn.Module):
    """Ranks by one layer with a fixed weight, for graphs of n nodes each.

    Args:
        layer: `(b, n + 1, n)` -> `(b, n)`.

    Shapes: graphs, seeds `(b, c)` -> `(b n, c)`.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, graphs: SparseBatch, seeds: Int64[Tensor, "b c"]) -> Float[Tensor, "nodes c"]:
        matrix = graphs.to_dense()
        b, n, _ = matrix.shape
        marked = nn.functional.one_hot(seeds, n).to(matrix.dtype).unsqueeze(2)
        x = torch.cat([matrix.unsqueeze(1).expand(-1, seeds.shape[1], -1, -1), marked], 2)
        y: Tensor = self.layer(x.flatten(0, 1))
        return y.reshape(b, -1, n).transpose(1, 2).reshape(b * n, -1)


def dense(nodes: int, steps: int) -> tuple[FixedRanks, int]:
    """A dense layer, and how many numbers it stores, biases apart."""
    linear = nn.Linear((nodes + 1) * nodes, nodes)
    nn.init.zeros_(linear.weight)
    return FixedRanks(nn.Sequential(nn.Flatten(), linear)), linear.weight.numel()


def gaussian(nodes: int, steps: int) -> tuple[FixedRanks, int]:
    """A layer with a `GaussianWiring`, and how many numbers it stores: a value and an index for each tuple."""
    k = (nodes + 1) * nodes
    falling = Anneal(nodes / 4, 0.3, max(1, 2 * steps // 3))
    wiring = GaussianWiring(
        nodes, (nodes + 1, nodes), k, sampling=Sampling(False, 4, 4), scale=nodes / 4, scale_floor=0.3,
        scale_ceiling=falling,
    )  # fmt: skip
    with torch.no_grad():
        wiring.values.mul_(SMALL)
    return FixedRanks(SparseLayer((nodes + 1, nodes), nodes, wiring=wiring)), 2 * k


MAKERS = {"dense": dense, "gaussian": gaussian}


def train(
    name: str, model: FixedRanks, steps: int, loss: Callable[[FixedRanks], Tensor], tick: Callable[[], object]
) -> None:
    """Train the layer of that name with Adam and one cosine; `tick` is called after every step."""
    optimizer = torch.optim.Adam(parameter_groups(model, LR[name], mean_lr=MEAN_LR))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    descent = Descent(model, optimizer)
    for step in range(steps):
        descent.step(loss(model), step)
        schedule.step()
        tick()
    model.eval()
