"""Dynamic wirings whose layers exchange entries: Sparse Momentum (SNFS) and DSR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from ash.checks import choose, positive, require
from ash.growth import DenseGradient, Score
from ash.wirings.dynamic import RigLWiring, SETWiring

_MOMENTA = {"window": False, "dense": True}


class SNFSWiring(RigLWiring):
    """Sparse Momentum: entries grow where the gradient's momentum is largest, in layers where it is largest.

    What all layers drop is divided among them by the mean |momentum| of their entries.

    Args:
        momentum: `"window"`, an exponentially weighted sum of the last `window` steps' gradients in factored form,
            so that memory stays proportional to k; or `"dense"`, of all steps' gradients, held as a dense tensor.
        window, decay: steps of the window, and the weight of a step's gradient beside the next one's.
        others: as in `DynamicWiring`.

    Source: Dettmers and Zettlemoyer, arXiv 1907.04840. Departure: the window.
    """

    exchanges = True

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        momentum: str = "window",
        window: int = 16,
        decay: float = 0.9,
        **others: object,
    ):
        super().__init__(out_shape, in_shape, k, **others)  # type: ignore[arg-type]
        self.dense_momentum = choose("momentum", momentum, _MOMENTA)
        require(window >= 1, f"window={window}; expected at least 1 step.")
        require(0 <= decay < 1, f"decay={decay}; expected a number from 0 to 1, without 1.")
        self.window, self.decay = (None if self.dense_momentum else window), decay

    def remember(self, before: Score | None, fresh: Score) -> Score:
        if self.dense_momentum:
            fresh = DenseGradient(fresh.dense(), len(self.out_shape))
        return super().remember(before, fresh)

    def claim(self, dropped: Int64[Tensor, " j"], score: Score | None) -> float:
        """Mean |momentum| of the entries that stay."""
        assert score is not None
        kept = torch.ones(self.stored_entries(), dtype=torch.bool, device=dropped.device)
        kept[dropped] = False
        return float(score.at(self.entries()[kept]).abs().mean()) if bool(kept.any()) else 0.0


class DSRWiring(SETWiring):
    """Dynamic sparse reparameterisation: one threshold of |w| for all layers, adapted; random growth.

    All entries below the threshold are dropped, whatever layer they are in; what all layers drop is divided among
    them by how many entries they have kept. After a rewiring that dropped too few (too many) the threshold doubles
    (halves).

    Args:
        threshold: of |w|, to begin with.
        tolerance: too few and too many are this share below and above what was wanted.
        others: as in `DynamicWiring`.

    Source: Mostafa and Wang, arXiv 1902.05967. Departure: a layer keeps at least its largest entry.
    """

    exchanges = True
    threshold: Tensor

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        threshold: float = 1e-3,
        tolerance: float = 0.1,
        **others: object,
    ):
        super().__init__(out_shape, in_shape, k, **others)  # type: ignore[arg-type]
        positive("threshold", threshold)
        positive("tolerance", tolerance, zero=True)
        self.tolerance = tolerance
        self.register_buffer("threshold", torch.tensor(threshold, device=self.indices.device))

    def to_drop(self, fraction: float, score: Score | None, generator: torch.Generator) -> Int64[Tensor, " j"]:
        """Numbers of the entries below the threshold, the smallest first; none where the fraction is 0."""
        size = self.entry_values().detach().abs()
        below = (size < self.threshold).nonzero().squeeze(-1) if fraction > 0 else size.new_zeros(0).long()
        return below[size[below].argsort()][: len(size) - 1]

    def claim(self, dropped: Int64[Tensor, " j"], score: Score | None) -> float:
        """How many entries stay."""
        return float(self.stored_entries() - len(dropped))

    def after_event(self, dropped: int, wanted: int) -> None:
        """Double or halve the threshold."""
        if dropped < (1 - self.tolerance) * wanted:
            self.threshold.mul_(2.0)
        elif dropped > (1 + self.tolerance) * wanted:
            self.threshold.div_(2.0)
