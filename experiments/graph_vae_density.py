"""A density fitted to codes after training: a mixture of Gaussians with full covariances, by expectation-maximisation.

What codes of graphs look like together is not the standard normal density that the loss pulls each of them to: the
less the loss pulls, the less. New graphs can be drawn from either.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ash.checks import require

FLOOR = 1e-3
"""Added to the variances, so that no component closes in on a few codes."""


class Mixture(NamedTuple):
    """c Gaussians over codes of d numbers.

    Attributes:
        logs: `(c,)`, log weights. means: `(c, d)`. factors: `(c, d, d)`, Cholesky factors of the covariances.
    """

    logs: Float64[Tensor, " c"]
    means: Float64[Tensor, "c d"]
    factors: Float64[Tensor, "c d d"]

    def each(self, z: Float[Tensor, "n d"]) -> Float64[Tensor, "n c"]:
        """Log of weight times density of every component at every code."""
        apart = (z.double() - self.means[:, None]).transpose(1, 2)
        spread = torch.linalg.solve_triangular(self.factors, apart, upper=False).square().sum(1)
        size = self.factors.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        whole = -0.5 * (spread + z.shape[1] * math.log(2 * math.pi)) - size
        return (whole + self.logs[:, None]).t()

    def log_density(self, z: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """Log density at every code, in nats."""
        return self.each(z).logsumexp(1)

    def draw(self, count: int) -> Float[Tensor, "n d"]:
        """Codes, by torch's default generator."""
        chosen = torch.multinomial(self.logs.exp(), count, replacement=True)
        noise = torch.randn(count, self.means.shape[1], 1, dtype=torch.float64)
        return (self.means[chosen] + (self.factors[chosen] @ noise).squeeze(-1)).float()


def fit(z: Float[Tensor, "n d"], components: int, rounds: int = 40) -> Mixture:
    """The mixture after some rounds of EM, started at some of the codes (by torch's default generator).

    Raises `UserError` for fewer codes than components.
    """
    n, d = z.shape
    require(n >= components, f"{components} components for {n} codes; expected at most as many as there are codes.")
    codes = z.double()
    whole = torch.cov(codes.t()).reshape(d, d) / components ** (2 / d)
    found = Mixture(
        torch.full((components,), -math.log(components), dtype=torch.float64),
        codes[torch.randperm(n)[:components]],
        _factors(whole.expand(components, d, d)),
    )
    for _ in range(rounds):
        found = _maximise(codes, found.each(codes).softmax(1))
    return found


def _maximise(codes: Float64[Tensor, "n d"], shares: Float64[Tensor, "n c"]) -> Mixture:
    """The likeliest mixture where every code belongs to the components by these shares."""
    counts = shares.sum(0) + 1e-9
    means = shares.t() @ codes / counts[:, None]
    apart = codes - means[:, None]
    covariances = (apart * shares.t().unsqueeze(-1)).transpose(1, 2) @ apart / counts[:, None, None]
    return Mixture((counts / counts.sum()).log(), means, _factors(covariances))


def _factors(covariances: Float64[Tensor, "c d d"]) -> Float64[Tensor, "c d d"]:
    found: Tensor = torch.linalg.cholesky(covariances + FLOOR * torch.eye(covariances.shape[-1], dtype=torch.float64))
    return found
