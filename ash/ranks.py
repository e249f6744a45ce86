"""Distributed runs: the same layers on every rank, and the gradient of all: the sum of what ranks have collected."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ash.growth import DenseGradient, Factors, Score, keys
from ash.pattern import unravel
from ash.template import Admissible

WORTH = 1 << 20
"""Entries of a weight from which ranks divide a search among them."""


def distributed() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def data_parallel(model: nn.Module, **options: Any) -> DistributedDataParallel:
    """torch's `DistributedDataParallel` for a model with wirings: all ranks begin with the model of rank 0.

    Buffers, which hold anchors and topologies, are sent once and not in every step: ranks change them in the same way,
    and writing them anew would undo the structures that layers keep from step to step. Gradients are averaged, the
    size of what is stored. Each rank draws its own points of stochastic wirings, from its own default generator (seed
    ranks differently): two draws are averaged as two samples are, an estimate of the same gradient with less noise.
    Means, anchors and topologies depend on averaged gradients alone, so that they stay the same; `ash.Rewirer` gathers
    what it needs of all ranks.

    Args:
        options: as for `DistributedDataParallel`.
    """
    share(model)
    known = inspect.signature(DistributedDataParallel).parameters
    each_step = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(model, **{each_step: False, **options})


@torch.no_grad()
def share(model: nn.Module) -> None:
    """Take over all parameters and buffers of rank 0; every rank has to call it."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        whole = tensor.detach().clone()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


def over_ranks(score: Score) -> Score:
    """The sum of all ranks' scores, the same on each; every rank has to call it. Without ranks, the score itself.

    The factors of all ranks are gathered, since the largest entries of a sum are not among the largest of its
    terms; a dense gradient is added up.
    """
    if not distributed():
        return score
    if isinstance(score, Factors):
        x, g = _gathered(score.x), _gathered(score.g)
        whole = Factors(x.unflatten(1, score.in_shape), g.unflatten(1, score.out_shape))
        whole.split = search_over_ranks
        return whole
    total = score.dense().contiguous().clone()
    dist.all_reduce(total)
    return DenseGradient(total, len(score.out_shape))


def search_over_ranks(
    score: Factors,
    n: int,
    exclude: Int64[Tensor, " e"] | None = None,
    admissible: Admissible | None = None,
    by: str = "largest",
    rows: Int64[Tensor, " o"] | None = None,
) -> Int64[Tensor, " n"]:
    """`score.places(…)`, of which every rank searches a share of the rows; every rank has to call it, with one score.

    The n best of each share are gathered: 12 n bytes from each rank. A small weight is searched by each rank itself.
    """
    if math.prod(score.shape) <= WORTH:
        return score.places(n, exclude, admissible, by, rows)
    height, world = math.prod(score.out_shape), dist.get_world_size()
    every = torch.arange(height, device=score.x.device) if rows is None else rows
    own = every[dist.get_rank() :: world]
    ids = every.new_full((n,), -1)
    key = score.x.new_full((n,), -torch.inf)
    found = score.places(n, exclude, admissible, by, own) if len(own) else own
    ids[: len(found)], key[: len(found)] = found, keys(score.at(unravel(found, score.shape)), by)
    all_ids, all_keys = _all(ids), _all(key)
    best = all_keys.sort(descending=True, stable=True).indices
    return all_ids[best[all_ids[best] >= 0][:n]]


def _all(own: Tensor) -> Tensor:
    """A tensor of every rank, one after the other."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts)


def _gathered(rows: Tensor) -> Tensor:
    """(b, n) of every rank, one after the other; smaller batches are filled up with zeros, which add nothing."""
    length = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    return _all(torch.cat([rows, rows.new_zeros(int(length) - len(rows), rows.shape[1])]))
