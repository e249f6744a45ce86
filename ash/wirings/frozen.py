"""`FrozenWiring`: the entries of an evaluated weight and nothing else, for inference."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ash.pattern import ravel, unravel
from ash.weight import SparseWeight
from ash.wirings.base import Wiring, version


class FrozenWeight(SparseWeight):
    """A weight that does not change: its dense tensor is made once."""

    @cached_property
    def _dense(self) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return super().to_dense()

    def to_dense(self) -> Float[Tensor, "..."]:
        return self._dense


class FrozenWiring(Wiring):
    """The entries of a shared weight, each once and in C order: no means, no scales, no candidates, no gradient.

    Args:
        weight: what is kept; entries at the same position are added up.

    Attributes:
        values, positions: `(n,)` buffers, the values and the flattened positions. Loading a `state_dict` takes over
            as many entries as it has.
    """

    values: Tensor
    positions: Tensor
    inference_tensors = ("values", "positions")

    def __init__(self, weight: SparseWeight):
        super().__init__(weight.out_shape, weight.in_shape)
        with torch.no_grad():
            whole = weight.coalesce()
            self.register_buffer("values", whole.values.detach().clone())
            self.register_buffer("positions", ravel(whole.indices, whole.shape))
        self._kept: tuple[list[tuple[Tensor, int]], FrozenWeight] | None = None

    def forward(self, x: Tensor | None = None) -> SparseWeight:
        return self.rounded()

    def rounded(self) -> SparseWeight:
        """The weight; made once, and again when the buffers change, which a graph being traced does not look at."""
        if self._kept is not None and torch.compiler.is_compiling():
            return self._kept[1]
        now = [(tensor, version(tensor)) for tensor in (self.values, self.positions)]
        if self._kept is None or any(a is not b or v != w for (a, v), (b, w) in zip(self._kept[0], now, strict=True)):
            with torch.inference_mode(False):
                indices = unravel(self.positions, self.shape)
            self._kept = (now, FrozenWeight(indices, self.values, self.out_shape, self.in_shape))
        return self._kept[1]

    def stored_entries(self) -> int:
        return len(self.values)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("values", "positions"):
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.dim() == 1:
                own = getattr(self, name)
                setattr(self, name, own.new_empty(len(given)))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}
