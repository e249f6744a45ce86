"""`EdgeWeight`: for every graph of a batch a weight tensor, of which each entry multiplies one stored entry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.checks import require
from ash.sparse_batch import SparseBatch


@dataclass(frozen=True, eq=False)
class EdgeWeight:
    """p entries of the weight tensors of b graphs, output columns learned, input columns those of an entry.

    Attributes:
        source: `(p,)`, int64, number of the input's entry; never decreasing.
        indices: `(p, r)`, int64, position in the output; entries at the same position add up.
        values: `(p,)`; gradients pass through them.
        out_sizes: `(b, r)`, int64, the output's shape.
        x: the input whose entries are multiplied.
    """

    source: Int64[Tensor, " p"]
    indices: Int64[Tensor, "p r"]
    values: Float[Tensor, " p"]
    out_sizes: Int64[Tensor, "b r"]
    x: SparseBatch

    def contract(self, x: SparseBatch, coalesce: bool = True) -> SparseBatch:
        """Weight · x; gradients reach the weight's values and the input's.

        Args:
            x: the input that the weight was made for, or one with other values at the same entries; channels share
                the weight.
            coalesce: add up what meets at the same output position, so that every position is stored once.

        Raises `UserError` for an input of other numbers of entries and graphs.
        """
        require(
            x.entries == self.x.entries and len(x) == len(self.x),
            f"{x.entries} entries of {len(x)} graphs for a weight that was made for {self.x.entries} of {len(self.x)}; "
            "expected the input that it was made for.",
        )
        weights = self.values.reshape(-1, *[1] * (x.values.dim() - 1))
        values = weights * x.values[self.source]
        y = SparseBatch(x.instance[self.source], self.indices, values, self.out_sizes)
        return y.coalesce() if coalesce else y

    def as_batch(self) -> SparseBatch:
        """The weight itself, of rank r + 2, output dimensions first; its `to_dense()` is for small graphs."""
        indices = torch.cat([self.indices, self.x.indices[self.source]], 1)
        sizes = torch.cat([self.out_sizes, self.x.sizes], 1)
        return SparseBatch(self.x.instance[self.source], indices, self.values, sizes)
