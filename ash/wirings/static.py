"""`StaticWiring`: random entries that stay where they are. The baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash.checks import require
from ash.memory import at_most, need, numbers
from ash.pattern import CSRPattern, ravel
from ash.sampling import generator_from, new_seed
from ash.template import Admissible
from ash.weight import SparseWeight
from ash.wirings.base import Wiring, entries_from, fan_in_uniform, version


class StaticWiring(Wiring):
    """k different entries, drawn once, with learned values.

    Args:
        out_shape, in_shape, admissible: as in `Wiring`.
        k: number of entries, or `density`: their share of the admissible ones (default 0.1).
        indices: `(k, r)`, the entries themselves, instead of drawing them.
        generator: for entries and initial values, on the CPU; torch's default one otherwise.

    Attributes:
        indices: `(k, r)` int64 buffer. values: `(k,)` parameter.
    """

    indices: Tensor
    inference_tensors = ("values", "indices")

    def __init__(
        self,
        out_shape: int | Sequence[int],
        in_shape: int | Sequence[int],
        k: int | None = None,
        *,
        density: float | None = None,
        indices: Int64[Tensor, "k r"] | None = None,
        admissible: Admissible | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(out_shape, in_shape, admissible)
        if indices is None:
            source = generator_from(new_seed(torch.device("cpu"), generator), torch.device("cpu"))
            count = entries_from(k, density, self.admissible)
            self._check_memory(count, device, dtype)
            entries = self.admissible.distinct(count, source)
        else:
            self._check_indices(indices, k)
            entries = indices.clone()
        self.register_buffer("indices", entries.to(device))
        self.values = nn.Parameter(torch.empty(len(entries), device=device, dtype=dtype))
        self._pattern: tuple[Tensor, int, CSRPattern] | None = None
        self.reset_parameters(generator)

    def _check_memory(self, count: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Entries and values, and what drawing them takes."""
        each = numbers(dtype) + 8 * (2 * self.rank + 3)
        what = f"{type(self).__name__} {self.out_shape} x {self.in_shape} with {count:,} entries"
        need(what, count * each, device, lambda free: f"at most k={at_most(free / each)} would fit")

    def _check_indices(self, indices: Tensor, k: int | None) -> None:
        good = indices.dim() == 2 and indices.shape[1] == self.rank and indices.dtype == torch.int64
        require(good, f"indices of shape {tuple(indices.shape)}, {indices.dtype}; expected int64 (k, {self.rank}).")
        require(k is None or k == len(indices), f"k={k} with {len(indices)} indices; give one of them.")
        SparseWeight(indices, torch.ones(len(indices)), self.out_shape, self.in_shape).check()
        require(bool(self.admissible.contains(indices).all()), f"indices outside {self.admissible!r}; leave them out.")

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Values uniform in ±1/√(fan-in over active entries); the entries stay."""
        rows = ravel(self.entries()[:, : len(self.out_shape)], self.out_shape)
        self.entry_values().copy_(fan_in_uniform(rows.cpu(), generator))

    def entries(self) -> Int64[Tensor, "n r"]:
        """The entries in use: here all."""
        return self.indices

    def entry_values(self) -> Float[Tensor, " n"]:
        """Their values."""
        return self.values

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        weight = self.rounded()
        if weight.cached_pattern is None:
            self._pattern = (self.indices, version(self.indices), weight.pattern)
        return weight

    def rounded(self) -> SparseWeight:
        """The weight, in training and in evaluation."""
        pattern = self._known_pattern()
        return SparseWeight(self.entries(), self.entry_values(), self.out_shape, self.in_shape, pattern)

    def _known_pattern(self) -> CSRPattern | None:
        """The pattern of the last call, unless the entries were exchanged or written to since."""
        if self._pattern is None or self._pattern[0] is not self.indices:
            return None
        return self._pattern[2] if self._pattern[1] == version(self.indices) else None

    def stored_entries(self) -> int:
        return len(self.entries())

    @torch.no_grad()
    def load_dense(self, weight: Tensor) -> None:
        """Take the values at the entries from a dense tensor of the same shape."""
        require(weight.shape == self.shape, f"a weight of shape {tuple(weight.shape)}; expected {self.shape}.")
        self.entry_values().copy_(weight[tuple(self.entries().to(weight.device).unbind(-1))])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pattern": None}
