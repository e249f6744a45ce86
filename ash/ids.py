"""Sets of flattened positions, as int64 in rising order."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


def ascending(ids: Int64[Tensor, " n"]) -> Int64[Tensor, " m"]:
    """The ids in order, each once; those that are come back as they are."""
    return ids if bool((ids[1:] > ids[:-1]).all()) else ids.unique()


def among(ids: Int64[Tensor, " n"], some: Int64[Tensor, " m"]) -> Bool[Tensor, " n"]:
    """Which ids are among some that ascend."""
    if not len(some):
        return torch.zeros_like(ids, dtype=torch.bool)
    return some[torch.searchsorted(some, ids).clamp_(max=len(some) - 1)] == ids


def merged(one: Int64[Tensor, " n"], other: Int64[Tensor, " m"]) -> Int64[Tensor, " both"]:
    """The union of two sets without common ids, in linear time but for a look-up of each of the others."""
    places = torch.searchsorted(one, other).add_(torch.arange(len(other), device=one.device))
    whole = one.new_empty(len(one) + len(other))
    free = torch.ones_like(whole, dtype=torch.bool)
    whole[places], free[places] = other, False
    return whole.masked_scatter_(free, one)
