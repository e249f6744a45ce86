"""From a wiring to a `Frame`: its tuples as they stand, in all columns of the weight tensor."""

from __future__ import annotations

import torch

from ash.plot.means import Frame
from ash.wirings.gaussian import GaussianWiring


@torch.no_grad()
def frame_of(wiring: GaussianWiring, step: int, points: bool = False) -> Frame:
    """The tuples of a wiring at a step, for `means`, `row`, `animate` and `History`.

    With `points`, the integer points of one training draw come along; the random state is put back.
    """
    wiring.settle()
    tuples = wiring.tuples()
    k, learned, columns = wiring.k, list(wiring.template.learned), list(wiring.template.columns)
    means = torch.zeros(k, wiring.rank, dtype=torch.float64, device=tuples.values.device)
    scales = torch.zeros_like(means)
    means[:, learned], means[:, columns] = tuples.means, wiring.fixed.double()
    scales[:, learned] = tuples.scales.expand(-1, max(1, len(learned))).double()[:, : len(learned)]
    drawn = _points(wiring) if points else None
    return Frame(step, means, scales, tuples.values, drawn, wiring.shape, out_rank=len(wiring.out_shape))


def _points(wiring: GaussianWiring) -> torch.Tensor:
    was = wiring.training
    with torch.random.fork_rng():
        indices = wiring.train()(torch.zeros(1, *wiring.in_shape)).indices.flatten(0, -2)
    wiring.train(was)
    return indices
