"""`Codebook`: every tuple chooses its value among a few scalars that all tuples share."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ash.checks import positive, require
from ash.schedules import Schedule, at


class Codebook(nn.Module):
    """s learned scalars; a tuple's value is one of them, chosen by its logits.

    In training a scalar is drawn in proportion to the softmax of the logits (Gumbel noise, then the largest);
    the gradient passes to the logits as if the value were the soft mixture at the temperature, straight through
    the choice. In evaluation the largest logit wins. So a tuple is forced to one scalar, never to a mixture, as
    the weights of a convolution are: the blog's '15 source scalars'. One codebook may serve several wirings.

    Args:
        size: s.
        spread: scalars start evenly from −spread to spread; by default the wiring that the codebook is given to
            takes 1/√(mean fan-in).
        temperature: of the softmax, a number or a schedule of the step; hand over an `Anneal` to harden it.
        noise: draw the choice; False takes the largest logit in training too.

    Attributes:
        scalars: `(s,)` parameter.

    Raises `UserError` for a size below 1, a spread or temperature that is not above 0.

    Source: `Sparse, Adaptive Hypernetworks` (2017), 'Real tasks'; straight-through Gumbel-softmax: arXiv 1611.01144.
    Departure: the blog's code learned the logits by the score function.
    """

    def __init__(
        self, size: int, *, spread: float | None = None, temperature: float | Schedule = 1.0, noise: bool = True
    ):
        super().__init__()
        require(size >= 1, f"a codebook of size {size}; expected at least 1 scalar.")
        positive("temperature", at(temperature, 0))
        if spread is not None:
            positive("spread", spread)
        self.spread, self.temperature, self.noise = spread, temperature, noise
        self.scalars = nn.Parameter(torch.empty(size))
        self.start(1.0)

    @property
    def size(self) -> int:
        """s, the number of scalars."""
        return len(self.scalars)

    @torch.no_grad()
    def start(self, spread: float) -> None:
        """Set the scalars evenly from −spread to spread, or to the codebook's own one where it was given."""
        ends = self.spread or spread
        self.scalars.copy_(torch.linspace(-ends, ends, self.size) if self.size > 1 else torch.tensor([ends]))

    def choice(self, logits: Float[Tensor, "*k s"]) -> Int64[Tensor, "*k"]:
        """The scalar that each tuple has in evaluation."""
        return logits.argmax(-1)

    def forward(
        self, logits: Float[Tensor, "*k s"], generator: torch.Generator | None = None, step: int = 0
    ) -> Float[Tensor, "*k"]:
        """The values of tuples. With a generator they are drawn, as in training; without one the largest logit wins."""
        require(
            logits.shape[-1] == self.size,
            f"logits of shape {tuple(logits.shape)} for a codebook of {self.size}; expected (*, k, {self.size}).",
        )
        if generator is None:
            return self.scalars.to(logits.dtype)[self.choice(logits)]
        noisy = logits
        if self.noise:
            uniform = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device, generator=generator)
            tiny = torch.finfo(logits.dtype).tiny
            noisy = logits - uniform.clamp_(min=tiny).log_().neg_().clamp_(min=tiny).log_()
        soft = (noisy / max(at(self.temperature, step), 1e-6)).softmax(-1)
        hard = torch.zeros_like(soft).scatter_(-1, noisy.argmax(-1, keepdim=True), 1.0)
        return (hard + soft - soft.detach()) @ self.scalars.to(logits.dtype)

    def extra_repr(self) -> str:
        return f"{self.size}"
