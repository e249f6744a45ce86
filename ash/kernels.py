"""Kernels: log densities around a mean, as functions of the squared distance in units of the scale."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from ash.checks import positive, require, unknown

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


class Kernel(ABC):
    """A radial density over q learned columns, up to a factor that does not depend on the point.

    With u = Σ (p − μ)² / σ², `log_density` gives log w(u) and `slope` gives d log w / du.
    """

    @abstractmethod
    def log_density(self, u: Float[Tensor, "*n"], q: int) -> Float[Tensor, "*n"]:
        """Required. log w at `u`; may overwrite `u`."""

    @abstractmethod
    def slope(self, u: Float[Tensor, "*n"], q: int) -> Float[Tensor, "*n"] | float:
        """Required. d log w / du at `u`, a tensor or a constant."""

    def shares(self, u: Float[Tensor, "*n p"], q: int) -> Float[Tensor, "*n p"]:
        """w(u) divided by its sum over the last dimension; 0 where u is infinite. May overwrite `u`.

        In log space, so that no σ > 0 gives 0/0; some u of every row must be finite.
        """
        return torch.softmax(self.log_density(u, q), dim=-1)


class Gaussian(Kernel):
    """log w = −u / 2. Here σ is a standard deviation (sparse-hyper calls the variance sigma)."""

    def log_density(self, u: Tensor, q: int) -> Tensor:
        return u.mul_(-0.5)

    def slope(self, u: Tensor, q: int) -> float:
        return -0.5

    def __repr__(self) -> str:
        return "gaussian"


class StudentT(Kernel):
    """Multivariate t with ν degrees of freedom: log w = −(ν + q)/2 · log(1 + u/ν).

    The fat tail keeps a gradient where a Gaussian's underflows: the blog's open idea against scales
    that vanish too early. With ν = 1 and two columns, log w = −1.5 log(1 + d²/σ²).
    """

    def __init__(self, nu: float = 1.0):
        positive("nu", nu)
        require(math.isfinite(nu), f"nu={nu}; expected a finite number; with ν → ∞ it is kernel='gaussian'.")
        self.nu = float(nu)

    def log_density(self, u: Tensor, q: int) -> Tensor:
        return u.div_(self.nu).log1p_().mul_(-0.5 * (self.nu + q))

    def slope(self, u: Tensor, q: int) -> Tensor:
        return (u + self.nu).reciprocal_().mul_(-0.5 * (self.nu + q))

    def shares(self, u: Tensor, q: int) -> Tensor:
        """As in log space, but for a small integer ν + q by roots and products, in a third of the time.

        Relative to the nearest point, whose weight is then 1, so that nothing underflows to 0/0 here either.
        """
        power = self.nu + q
        if power not in (2, 3, 4, 5, 6):
            return super().shares(u, q)
        if self.nu != 1:
            u.div_(self.nu)
        relative = u.add_(1).div_(u.amin(-1, keepdim=True))
        base = relative.reciprocal_() if power % 2 == 0 else relative.rsqrt_()
        weights = base.pow(power // 2 if power % 2 == 0 else power)
        return weights.div_(weights.sum(-1, keepdim=True))

    def __repr__(self) -> str:
        return f"student_t({self.nu:g})"


def get_kernel(name: str | Kernel) -> Kernel:
    """A kernel by name: `"gaussian"`, `"student_t"` (ν = 1) or `"student_t(3)"`.

    Raises `UserError` for any other name.
    """
    if isinstance(name, Kernel):
        return name
    match = re.fullmatch(rf"(gaussian|student_t)(?:\(({_NUMBER})\))?", name.strip())
    if match is None or (match[1] == "gaussian" and match[2]):
        raise unknown("kernel", name, ["gaussian", "student_t", "student_t(3)"])
    if match[1] == "gaussian":
        return Gaussian()
    return StudentT(float(match[2])) if match[2] else StudentT()
