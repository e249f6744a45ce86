"""What hosts share that make the whole tensor of a small weight: convolutions, graphs of layers."""

from __future__ import annotations

from torch import Tensor

from ash.growth import DenseGradient
from ash.weight import SparseWeight
from ash.wirings.base import Wiring


def materialise(wiring: Wiring, weight: SparseWeight) -> Tensor:
    """The tensor of a draw of `wiring`, `(*out_shape, *in_shape)`, with a leading b for a weight per instance.

    Where the wiring asks for the weight's gradient, it gets it when the backward pass comes by.
    """
    dense = weight.to_dense()
    if wiring.wants_factors and not weight.per_instance:
        if not dense.requires_grad:
            dense.requires_grad_()
        out_rank = len(wiring.out_shape)
        dense.register_hook(lambda g: wiring.observe(DenseGradient(g, out_rank)))
    return dense
