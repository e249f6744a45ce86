"""Tasks with known answers, and the plainest possible reference of what the library computes in blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def identity(n: int) -> Tensor:
    """The n × n identity."""
    return torch.eye(n)


def permutation(n: int, seed: int = 0) -> Tensor:
    """A random n × n permutation matrix."""
    return torch.eye(n)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def sparse_matrix(rows: int, cols: int, entries: int, seed: int = 0) -> Tensor:
    """A matrix with so many entries at random places, of random sign and a size from 0.5 to 1.5."""
    source = torch.Generator().manual_seed(seed)
    places = torch.randperm(rows * cols, generator=source)[:entries]
    sizes = 0.5 + torch.rand(entries, generator=source)
    signs = torch.randint(0, 2, (entries,), generator=source) * 2 - 1
    return torch.zeros(rows * cols).index_put((places,), sizes * signs).reshape(rows, cols)


def log_kernel(u: Tensor, q: int, nu: float | None) -> Tensor:
    """log w of a Gaussian (nu None) or of a Student t with nu degrees of freedom, u = Σ (p − μ)²/σ²."""
    return -u / 2 if nu is None else -(nu + q) / 2 * torch.log(1 + u / nu)


def point_weights(
    points: Tensor,
    alive: Tensor,
    means: Tensor,
    scales: Tensor,
    values: Tensor,
    nu: float | None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Weight (c, p) of every point from the whole (c, t, p) table in float64; differentiable.

    points (c, p, q), alive (c, p), means (c, t, q), scales (c, t, s), values (c, t); groups of points (c, p)
    and of tuples (c, t).
    """
    means, scales, values = means.double(), scales.double(), values.double()
    differences = points[:, None].double() - means[:, :, None]
    u = (differences / scales[:, :, None]).square().sum(-1)
    logits = log_kernel(u, points.shape[-1], nu)
    seen = alive[:, None].expand_as(logits)
    if groups is not None:
        seen = seen & (groups[0][:, None] == groups[1][:, :, None])
    share = torch.softmax(logits.masked_fill(~seen, -torch.inf), dim=-1)
    return (values[:, :, None] * share).sum(1)


def first_copies(ids: list[int]) -> list[bool]:
    """Whether each id stands there for the first time."""
    seen: set[int] = set()
    return [not (i in seen or seen.add(i)) for i in ids]  # type: ignore[func-returns-value]


def matmul(weight: Tensor, x: Tensor, out_rank: int) -> Tensor:
    """W (*out, *in) · x (b, *in, *extra) -> (b, *out, *extra), by tensordot."""
    inputs = weight.dim() - out_rank
    dims = list(range(out_rank, weight.dim())), list(range(1, 1 + inputs))
    return torch.tensordot(weight, x, dims).movedim(out_rank, 0)


class Snapshot:
    """The state of a module as it is now, to be compared bit for bit."""

    def __init__(self, module: torch.nn.Module):
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot) or self.state.keys() != other.state.keys():
            return False
        return all(torch.equal(value, other.state[name]) for name, value in self.state.items())

    __hash__ = None  # type: ignore[assignment]
