"""`Explored`: which entries of a weight tensor have ever been in use, exactly, without a dense mask."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ash.ids import among, ascending, merged

BYTES_PER_ENTRY = 32
"""Up to so many bytes for each entry in use one bit per position is held; above, a sorted list of the positions."""

AT_ONCE = 1 << 16
"""Positions that are looked up at a time, to save memory."""


class Explored:
    """The set of positions of a weight tensor that have been in use, and its share of the admissible ones.

    Args:
        shape: the weight tensor's.
        admissible: how many entries may exist.
        entries: about how many are in use at a time.

    A small tensor has a bit for every position, a huge one a sorted list, 8 bytes for each position ever in use.
    """

    def __init__(self, shape: tuple[int, ...], admissible: int, entries: int):
        self.admissible, self.count = admissible, 0
        size = math.prod(shape)
        self.by_bits = size <= 8 * BYTES_PER_ENTRY * max(1, entries)
        if self.by_bits:
            self.known = torch.zeros(-(-size // 8), dtype=torch.uint8)
        else:
            self.known = torch.zeros(0, dtype=torch.int64)

    def add(self, ids: Int64[Tensor, " n"]) -> None:
        """Note the flattened positions of the entries in use, all different."""
        if not self.by_bits:
            own = ascending(ids.cpu())
            self.known = merged(self.known, own[~among(own, self.known)])
            self.count = len(self.known)
            return
        for part in ids.cpu().split(AT_ONCE):
            byte, bit = part >> 3, (1 << (part & 7)).to(torch.uint8)
            new = (self.known[byte] & bit) == 0
            self.known.index_add_(0, byte[new], bit[new])  # different bits: a sum is a union
            self.count += int(new.sum())

    @property
    def rate(self) -> float:
        """Share of the admissible entries that has ever been in use."""
        return self.count / self.admissible

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"known": self.known, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.known, self.count = state["known"].clone(), int(state["count"])
