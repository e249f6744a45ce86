"""`IndexTuples`: continuous index tuples, the Gaussians over positions in a weight tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ash.checks import require


@dataclass(frozen=True, eq=False)
class IndexTuples:
    """k continuous index tuples of one weight tensor (or of one per instance, with a leading b).

    A mean is held as an integer anchor plus a residual, so that it keeps its precision at positions
    where a float32 resolves no fraction any more. q is the number of learned index columns.

    Attributes:
        anchors: `(*b, k, q)`, int64, no gradient.
        residuals: `(*b, k, q)`, the mean minus its anchor, in units of an index.
        scales: `(*b, k, 1)` (one for all columns) or `(*b, k, q)`: standard deviations in units of an index.
        values: `(*b, k)`.

    Source: `Sparse, Adaptive Hypernetworks` (2017); arXiv 1810.09184, section 2.
    """

    anchors: Int64[Tensor, "*b k q"]
    residuals: Float[Tensor, "*b k q"]
    scales: Float[Tensor, "*b k s"]
    values: Float[Tensor, "*b k"]

    def __post_init__(self) -> None:
        q, s = self.anchors.shape[-1], self.scales.shape[-1]
        require(
            s in (1, q),
            f"scales of shape {tuple(self.scales.shape)} for {q} learned columns; "
            f"expected a last dimension of 1 (one scale for all columns) or {q}.",
        )
        require(
            self.anchors.shape == self.residuals.shape and self.anchors.shape[:-1] == self.values.shape,
            f"anchors {tuple(self.anchors.shape)}, residuals {tuple(self.residuals.shape)} and values "
            f"{tuple(self.values.shape)} do not fit; expected (*b, k, q), (*b, k, q) and (*b, k).",
        )

    @classmethod
    def from_means(cls, means: Tensor, scales: Tensor, values: Tensor) -> IndexTuples:
        """Tuples with the given means `(*b, k, q)`; gradients reach the means through the residuals."""
        anchors = means.detach().round().long()
        return cls(anchors, means - anchors.to(means.dtype), scales, values)

    @property
    def means(self) -> Float[Tensor, "*b k q"]:
        """Positions in float64 (exact up to 2^53), for plots and reports; carries gradients."""
        return self.anchors.double() + self.residuals.double()

    @property
    def k(self) -> int:
        """How many tuples a weight has."""
        return self.values.shape[-1]

    def rounded(self, sizes: tuple[int, ...]) -> Int64[Tensor, "*b k q"]:
        """The integer position nearest to each mean, within a tensor of `sizes` (learned columns)."""
        top = torch.tensor(sizes, dtype=torch.int64, device=self.anchors.device) - 1
        nearest = self.anchors + self.residuals.detach().round().long()
        return torch.minimum(nearest.clamp(min=0), top)

    def take(self, which: Int64[Tensor, " some"]) -> IndexTuples:
        """Some of the tuples, the same ones for every instance."""
        return IndexTuples(
            self.anchors.index_select(-2, which),
            self.residuals.index_select(-2, which),
            self.scales.index_select(-2, which),
            self.values.index_select(-1, which),
        )
