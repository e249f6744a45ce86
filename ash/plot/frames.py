"""From a wiring to a `Frame`: its tuples as they stand, in all columns of the weight tensor."""

from __future__ import annotations

import torch

from ash.checks import UserError
from ash.plot.means import Frame
from ash.tuples import IndexTuples
from ash.wirings.gaussian import GaussianWiring
from ash.wirings.hyper import HyperWiring


@torch.no_grad()
def frame_of(
    wiring: GaussianWiring | HyperWiring, step: int, points: bool = False, x: torch.Tensor | None = None
) -> Frame:
    """The tuples of a wiring at a step, for `means`, `row`, `animate` and `History`.

    An adaptive wiring has tuples for an instance x `(*condition_shape)`. With `points`, the integer points of one
    training draw come along; the random state is put back. Raises `UserError` for an adaptive wiring without x.
    """
    wiring.settle()
    tuples = _tuples(wiring, x)
    k, learned, columns = wiring.k, list(wiring.template.learned), list(wiring.template.columns)
    means = torch.zeros(k, wiring.rank, dtype=torch.float64, device=tuples.values.device)
    scales = torch.zeros_like(means)
    means[:, learned], means[:, columns] = tuples.means, wiring.fixed.double()
    scales[:, learned] = tuples.scales.expand(-1, max(1, len(learned))).double()[:, : len(learned)]
    drawn = _points(wiring, x) if points else None
    return Frame(step, means, scales, tuples.values, drawn, wiring.shape, out_rank=len(wiring.out_shape))


def _tuples(wiring: GaussianWiring | HyperWiring, x: torch.Tensor | None) -> IndexTuples:
    if isinstance(wiring, GaussianWiring):
        return wiring.tuples()
    if x is None:
        raise UserError("a frame of an adaptive wiring without an instance; give one: frame_of(wiring, step, x=x[0]).")
    several = wiring.tuples(x.unsqueeze(0))
    return IndexTuples(*(part[0] for part in (several.anchors, several.residuals, several.scales, several.values)))


def _points(wiring: GaussianWiring | HyperWiring, x: torch.Tensor | None) -> torch.Tensor:
    was, instance = wiring.training, torch.zeros(wiring.in_shape) if x is None else x
    with torch.random.fork_rng():
        indices = wiring.train()(instance.unsqueeze(0)).indices.flatten(0, -2)
    wiring.train(was)
    return indices
