"""Parametrisations of the means of free tuples: how a stored parameter becomes a bounded position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ash import jit
from ash.checks import choose


class Means(nn.Module, ABC):
    """The means of k tuples in q learned columns, in [0, size − 1].

    `offset` `(k, q)` is the learned parameter of every parametrisation.
    """

    offset: nn.Parameter

    def __init__(
        self,
        k: int,
        sizes: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.sizes = tuple(sizes)
        self.offset = nn.Parameter(torch.zeros(k, len(self.sizes), device=device, dtype=dtype))
        self._register_state()

    def _register_state(self) -> None:
        """Register what a parametrisation stores besides the offset; default: nothing."""
        return

    @property
    def top(self) -> Float[Tensor, " q"]:
        """The largest position of every column."""
        return torch.tensor(self.sizes, dtype=self.offset.dtype, device=self.offset.device) - 1

    @abstractmethod
    def forward(self, scales: Float[Tensor, "k s"]) -> tuple[Int64[Tensor, "k q"], Float[Tensor, "k q"]]:
        """Required. Anchors and residuals; gradients reach `offset`."""

    @abstractmethod
    def place(self, which: Int64[Tensor, " j"], positions: Float[Tensor, "j q"]) -> None:
        """Required. Put some tuples at float64 `positions`."""

    def settle(self, scales: Float[Tensor, "k s"]) -> None:
        """Called once after every optimizer step, without gradients; default: nothing."""
        return


class Anchored(Means):
    """μ = anchor + fraction + σ.detach() · offset; `settle` moves what the offset has gathered into the anchor.

    The offset is in units of the tuple's own scale, so an optimizer's step is proportional to the scale (a
    natural-gradient step for a Gaussian's mean): a wide tuple jumps far, a narrow one settles. Anchor (int64)
    and fraction keep a mean's precision at 10^7, where a float32 resolves half an index.
    """

    anchor: Tensor
    fraction: Tensor

    def _register_state(self) -> None:
        self.register_buffer("anchor", torch.zeros_like(self.offset, dtype=torch.int64, requires_grad=False))
        self.register_buffer("fraction", torch.zeros_like(self.offset, requires_grad=False))

    def forward(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        return self.anchor, self.fraction + scales.detach() * self.offset

    @torch.no_grad()
    def settle(self, scales: Tensor) -> None:
        if self._compiles(scales):
            self._settle_compiled(scales)
        else:
            self._settle_plain(scales)

    def _settle_plain(self, scales: Tensor) -> None:
        total = self.fraction.addcmul_(scales, self.offset)
        whole = total.round()
        self.anchor.add_(whole.long())
        total.sub_(whole)
        self.offset.zero_()
        self._clamp()

    def _compiles(self, scales: Tensor) -> bool:
        """Whether one compiled pass serves; it writes to the tensors' own memory."""
        own = self.anchor, self.fraction, self.offset, scales
        kinds = {tensor.dtype for tensor in own[1:]}
        fits = all(tensor.is_contiguous() for tensor in own) and kinds in ({torch.float32}, {torch.float64})
        return fits and jit.serves(self.offset.numel(), *own)

    def _settle_compiled(self, scales: Tensor) -> None:
        from ash.jit.means import settle

        top = torch.tensor(self.sizes, dtype=torch.int64) - 1
        own = self.anchor, self.fraction, self.offset
        settle(*jit.arrays(*own, scales, top))
        increment_version(own)

    def _clamp(self) -> None:
        top = torch.tensor(self.sizes, dtype=torch.int64, device=self.anchor.device) - 1
        inside = torch.minimum(self.anchor.clamp(min=0), top)
        outside = (inside != self.anchor) | ((inside == 0) & (self.fraction < 0))
        outside |= (inside == top) & (self.fraction > 0)
        self.anchor.copy_(inside)
        self.fraction.masked_fill_(outside, 0.0)

    @torch.no_grad()
    def place(self, which: Tensor, positions: Tensor) -> None:
        whole = positions.round()
        self.anchor[which] = whole.long()
        self.fraction[which] = (positions - whole).to(self.fraction.dtype)
        self.offset[which] = 0.0
        self._clamp()


class Direct(Means):
    """μ = offset, in units of an index, clamped after every step. For comparison: one step size for all."""

    def forward(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        means = torch.minimum(self.offset.clamp(min=0), self.top)
        anchors = means.detach().round().long()
        return anchors, means - anchors.to(means.dtype)

    @torch.no_grad()
    def settle(self, scales: Tensor) -> None:
        self.offset.copy_(torch.minimum(self.offset.clamp(min=0), self.top))

    @torch.no_grad()
    def place(self, which: Tensor, positions: Tensor) -> None:
        self.offset[which] = positions.to(self.offset.dtype)


class Sigmoid(Means):
    """μ = (size − 1) · sigmoid(offset), as sparse-hyper does. For comparison: steps vanish at the border."""

    def forward(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        means = self.offset.sigmoid() * self.top
        anchors = means.detach().round().long()
        return anchors, means - anchors.to(means.dtype)

    @torch.no_grad()
    def place(self, which: Tensor, positions: Tensor) -> None:
        share = (positions / self.top.clamp(min=1)).clamp(1e-4, 1 - 1e-4)
        self.offset[which] = share.logit().to(self.offset.dtype)


_MEANS = {"anchored": Anchored, "direct": Direct, "sigmoid": Sigmoid}


def get_means(name: str) -> type[Means]:
    """A parametrisation by name: `"anchored"`, `"direct"` or `"sigmoid"`; `UserError` for any other."""
    return choose("parametrisation of means", name, _MEANS)
