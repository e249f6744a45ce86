"""Chebyshev nodes: how a few points of a cell stand for all points in it.

A smooth function over a cell is interpolated by its values at p^q nodes, and so a sum over many points, each with
a charge, is a sum over the nodes with charges of theirs: Σ g f(x) ≈ Σ G f(node), where G sums g times the Lagrange
polynomial of the node at x. The nodes of a lower order have their charges from those of the highest.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ORDERS = (1, 2, 4, 6, 8)
"""Nodes of a cell along each column, from the roughest to the finest interpolation."""

MOST = 64
"""Nodes that a cell may have."""


class Nodes(NamedTuple):
    """The nodes of all orders, one order after the other, in the cell from −1 to 1."""

    orders: Int64[Tensor, " o"]
    starts: Int64[Tensor, " o+1"]  # where each order's nodes begin
    grid: Float[Tensor, "q g"]
    knots: Float[Tensor, " p"]  # of the highest order, along one column
    basis: Float[Tensor, "p p"]  # its Lagrange polynomials (columns) in terms of Chebyshev's (rows)
    lower: Float[Tensor, "top rest"]  # from charges of the highest order to those of the others

    @property
    def top(self) -> int:
        """Nodes of the highest order."""
        return len(self.lower)

    def all(self, charges: Float[Tensor, "cells top"]) -> Float[Tensor, "cells g"]:
        """Charges of all orders from those of the highest."""
        return torch.cat([charges @ self.lower, charges], 1)

    def highest(self, sums: Float[Tensor, "cells g"]) -> Float[Tensor, "cells top"]:
        """What the nodes of all orders have received, at the nodes of the highest: the transpose of `all`."""
        rest = self.lower.shape[1]
        return sums[:, rest:] + sums[:, :rest] @ self.lower.t()


@cache
def nodes(q: int, dtype: torch.dtype, most: int = MOST) -> Nodes:
    """The nodes for q columns, of all orders of which a cell has at most `most` nodes."""
    orders = [p for p in ORDERS if p**q <= most]
    grids = [torch.stack(torch.meshgrid(*[_knots(p)] * q, indexing="ij")).reshape(q, -1) for p in orders]
    starts = torch.tensor([0, *(p**q for p in orders)]).cumsum(0)
    top = orders[-1]
    parts = [_power(_polynomials(_knots(top), p), q) for p in orders[:-1]]
    lower = torch.cat(parts, 1) if parts else torch.zeros(top**q, 0, dtype=torch.float64)
    basis = _basis(top)
    found = (torch.cat(grids, 1), _knots(top), basis, lower)
    return Nodes(torch.tensor(orders), starts, *(each.to(dtype).contiguous() for each in found))


def _knots(p: int) -> Tensor:
    return torch.cos((2 * torch.arange(p, dtype=torch.float64) + 1) * math.pi / (2 * p))


def _basis(p: int) -> Tensor:
    basis = _chebyshev(_knots(p), p).t() * (2 / p)
    basis[0] /= 2
    return basis


def _chebyshev(x: Tensor, p: int) -> Tensor:
    """Chebyshev's polynomials below degree p at x in [−1, 1], `(x, p)`."""
    return torch.cos(torch.arange(p) * torch.arccos(x).unsqueeze(-1))


def _polynomials(x: Tensor, p: int) -> Tensor:
    """The Lagrange polynomials of order p at x, `(x, p)`."""
    return _chebyshev(x, p) @ _basis(p)


def _power(one: Tensor, q: int) -> Tensor:
    """The q-fold tensor product of a map of one column with itself."""
    product = one
    for _ in range(q - 1):
        product = torch.kron(product, one)
    return product
