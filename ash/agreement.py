"""Whether all ranks of a distributed run hold the same wirings, bit by bit."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ash.ranks import distributed
from ash.wirings.base import Wiring

_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
"""2⁶⁴ over the golden ratio, as a signed number: spreads what differs in a few bits."""


class RanksDiffer(RuntimeError):
    """Ranks of a distributed run hold different topologies: a defect, of a wiring or of the training loop."""


def check_same_topology(model: nn.Module) -> None:
    """Compare parameters and buffers of all wirings over ranks, bit by bit, by a digest; every rank has to call it.

    What guides a rank's own draws (`Search`) is left out. Reads each number once and exchanges eight bytes a tensor.
    Raises `RanksDiffer`, on every rank, with the names of those that differ.
    """
    if not distributed():
        return
    own = {
        f"{name}.{each}": value
        for name, module in model.named_modules()
        if isinstance(module, Wiring)
        for each, value in module.state_dict().items()
        if isinstance(value, Tensor) and not each.startswith("search.")
    }
    if not own:
        return
    digests = torch.stack([_digest(value) for value in own.values()])
    extremes = torch.stack([digests, ~digests])  # the least of all, and the least of what is ordered the other way
    dist.all_reduce(extremes, op=dist.ReduceOp.MIN)
    different = [name for name, same in zip(own, (extremes[0] == ~extremes[1]).tolist(), strict=True) if not same]
    if different:
        raise RanksDiffer(f"ranks differ in {', '.join(different)}; all have to change wirings alike.")


def _digest(tensor: Tensor) -> Tensor:
    """64 bits of a tensor's content, whose order counts."""
    flat = tensor.detach().contiguous().flatten()
    bits = (flat.view(_INTS[flat.element_size()]) if flat.dtype != torch.bool else flat).to(torch.int64)
    place = torch.arange(1, len(bits) + 1, device=bits.device)
    mixed = (bits + place * _FACTOR) * _FACTOR
    return (mixed ^ (mixed >> 29)).mul(_FACTOR).sum()
