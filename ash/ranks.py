"""The gradient of a whole distributed run: the sum of what its ranks have collected."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ash.growth import DenseGradient, Factors, Score


def distributed() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def over_ranks(score: Score) -> Score:
    """The sum of all ranks' scores, the same on each; every rank has to call it. Without ranks, the score itself.

    The factors of all ranks are gathered, since the largest entries of a sum are not among the largest of its
    terms; a dense gradient is added up.
    """
    if not distributed():
        return score
    if isinstance(score, Factors):
        x, g = _gathered(score.x), _gathered(score.g)
        return Factors(x.unflatten(1, score.in_shape), g.unflatten(1, score.out_shape))
    total = score.dense().contiguous().clone()
    dist.all_reduce(total)
    return DenseGradient(total, len(score.out_shape))


def _gathered(rows: Tensor) -> Tensor:
    """(b, n) of every rank, one after the other; smaller batches are filled up with zeros, which add nothing."""
    length = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    own = torch.cat([rows, rows.new_zeros(int(length) - len(rows), rows.shape[1])])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts)
