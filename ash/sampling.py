"""Integer points around index tuples, and exact de-duplication.

Points carry no gradient. Every draw is a function of the generator that is passed in.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ash import jit
from ash.checks import positive, require
from ash.jit.tuples import LARGEST, draw_points
from ash.tuples import IndexTuples

EXACT = 1 << 16
"""Up to this size a float32 rounds to even and odd indices alike; beyond, ties are frequent and noise is float64."""

PAIRWISE = 32
"""Up to so many points a context, comparing all pairs is faster than sorting."""


@dataclass(frozen=True)
class Sampling:
    """How many integer points a tuple samples.

    Attributes:
        corners: the 2^q integer points around the mean (q learned columns).
        global_samples: uniform over the tensor.
        local_samples: near the mean: drawn from the tuple's own scale, or, where `local_region` is given,
            uniform in a window of that many indices per column, centred on the mean and shifted to lie
            inside the tensor.
        guided_samples: entries where the previous batch's loss asked for weight, of all entries of the tensor.
        kept_samples: of a tuple's own points, those where the previous batch's loss asked most for its value:
            what chance has found once is not lost again. Costs nothing but the points themselves.
    """

    corners: bool = True
    global_samples: int = 2
    local_samples: int = 2
    guided_samples: int = 0
    kept_samples: int = 0
    local_region: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("global_samples", "local_samples", "guided_samples", "kept_samples"):
            positive(name, getattr(self, name), zero=True)
        require(self.corners or self.points(1) > 0, "a tuple without points; ask for corners or some samples.")
        region = self.local_region if isinstance(self.local_region, tuple) else (self.local_region or 1,)
        good = self.local_region != 0 and all(w >= 1 for w in region)
        require(good, f"local_region={self.local_region!r}; expected at least 1 index in every column.")

    def check(self, q: int) -> None:
        """Raise `UserError` if the region is made for another number of learned columns than q."""
        fits = not isinstance(self.local_region, tuple) or len(self.local_region) == q
        require(fits, f"local_region={self.local_region} for {q} learned columns; give one number, or {q}.")

    def points(self, q: int) -> int:
        """m, the number of points of a tuple with q learned columns."""
        drawn = self.global_samples + self.local_samples + self.guided_samples + self.kept_samples
        return (2**q if self.corners else 0) + drawn


def new_seed(device: torch.device, generator: torch.Generator | None = None) -> int:
    """One 63-bit seed from torch's default generator of the device, or from `generator`."""
    where = device if generator is None else generator.device
    return int(torch.randint(0, 2**63 - 1, (), device=where, generator=generator).item())


def generator_from(seed: int, device: torch.device) -> torch.Generator:
    """A generator of its own for one forward pass, leaving the default one alone."""
    return torch.Generator(device=device).manual_seed(seed)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is captured, during which nothing can be read back from the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def pass_generator(device: torch.device) -> torch.Generator:
    """The generator of one forward pass; in a CUDA graph the device's own, from where every replay goes on."""
    if capturing(device):
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return generator_from(new_seed(device), device)


def sample_points(
    tuples: IndexTuples,
    sizes: Sequence[int],
    plan: Sampling,
    generator: torch.Generator,
    proposals: Int64[Tensor, "g q"] | None = None,
    groups: tuple[Int64[Tensor, " g"], Int64[Tensor, " k"]] | None = None,
    kept: Int64[Tensor, "k s q"] | None = None,
) -> Int64[Tensor, "*b k m q"]:
    """The m integer points of each tuple within a tensor of `sizes` (its q learned columns).

    The nearest corner comes first. `proposals` are dealt out in random order to the guided samples; where
    there are none, uniform points take their place, so that m never changes. With `groups` (the flattened fixed
    columns of proposals and of tuples) a tuple gets proposals of its own group only. `kept` are the points that
    the tuples have kept.

    Large draws on the CPU run in compiled kernels, which make other points; there local ones lie within 3.6 σ.
    """
    m = plan.points(len(sizes))
    if sizes and max(sizes) <= LARGEST and jit.serves(tuples.values.numel() * m, tuples.residuals):
        points = _compiled(tuples, tuple(sizes), plan, generator)
        free = points[..., m - plan.guided_samples - plan.kept_samples :, :]
        if plan.guided_samples and proposals is not None:
            own = free[..., : plan.guided_samples, :]
            own.copy_(_guided(own, generator, proposals, groups))
        if plan.kept_samples and kept is not None:
            own = free[..., plan.guided_samples :, :]
            own.copy_(torch.where(kept < 0, own, kept))
        return points
    parts = [corner_points(tuples, sizes)] if plan.corners else []
    if plan.global_samples:
        parts.append(_uniform(tuples, sizes, plan.global_samples, generator))
    if plan.local_samples:
        parts.append(_local(tuples, sizes, plan, generator))
    if plan.guided_samples:
        uniform = _uniform(tuples, sizes, plan.guided_samples, generator)
        parts.append(uniform if proposals is None else _guided(uniform, generator, proposals, groups))
    if plan.kept_samples:
        uniform = _uniform(tuples, sizes, plan.kept_samples, generator)
        parts.append(uniform if kept is None else torch.where(kept < 0, uniform, kept))
    return torch.cat(parts, dim=-2)


def _compiled(tuples: IndexTuples, sizes: tuple[int, ...], plan: Sampling, generator: torch.Generator) -> Tensor:
    """All points, uniform ones in place of guided and kept ones. Each index column lies by itself in memory."""
    anchors, residuals, scales = (t.flatten(0, -2) for t in (tuples.anchors, tuples.residuals, tuples.scales))
    seed = new_seed(tuples.values.device, generator)
    points = draw_points(anchors, residuals, scales, sizes, widths(plan, sizes), counts(plan), seed)
    return points.unflatten(1, tuples.values.shape).movedim(0, -1)


def counts(plan: Sampling) -> tuple[int, int, int, int]:
    """Whether there are corners; numbers of uniform, local, and of guided and kept points, which are uniform too."""
    return int(plan.corners), plan.global_samples, plan.local_samples, plan.guided_samples + plan.kept_samples


def widths(plan: Sampling, sizes: Sequence[int]) -> tuple[int, ...]:
    """Of the window of local points in every column; 0 where they are normal."""
    if plan.local_region is None:
        return (0,) * len(sizes)
    plan.check(len(sizes))
    region = plan.local_region if isinstance(plan.local_region, tuple) else (plan.local_region,) * len(sizes)
    return tuple(min(w, s) for w, s in zip(region, sizes, strict=True))


def corner_points(tuples: IndexTuples, sizes: Sequence[int]) -> Int64[Tensor, "*b k m q"]:
    """The 2^q integer points around each mean, the nearest first; at the border some coincide."""
    q = len(sizes)
    nearest = tuples.rounded(tuple(sizes))
    side = tuples.residuals.detach() - (nearest - tuples.anchors).to(tuples.residuals.dtype)
    step = torch.where(side >= 0, 1, -1)
    bits = torch.tensor(list(itertools.product((0, 1), repeat=q)), dtype=torch.int64, device=nearest.device)
    return _clip(nearest.unsqueeze(-2) + bits.reshape(2**q, q) * step.unsqueeze(-2), sizes)


def _clip(points: Tensor, sizes: Sequence[int]) -> Tensor:
    top = torch.tensor(list(sizes), dtype=torch.int64, device=points.device) - 1
    return torch.minimum(points.clamp_(min=0), top)


def _uniform(tuples: IndexTuples, sizes: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    shape, device = (*tuples.values.shape, count), tuples.values.device
    columns = [torch.randint(0, size, shape, device=device, generator=generator) for size in sizes]
    return torch.stack(columns, -1) if columns else torch.zeros(*shape, 0, dtype=torch.int64, device=device)


def _local(tuples: IndexTuples, sizes: Sequence[int], plan: Sampling, generator: torch.Generator) -> Tensor:
    count, q = plan.local_samples, len(sizes)
    exact = torch.float64 if max(sizes, default=1) > EXACT else torch.float32
    residuals = tuples.residuals.detach().unsqueeze(-2)
    residuals = residuals.to(torch.promote_types(residuals.dtype, exact))
    shape = (*tuples.values.shape, count, q)
    if plan.local_region is None:
        noise = torch.randn(shape, dtype=residuals.dtype, device=residuals.device, generator=generator)
        steps = (residuals + noise * tuples.scales.detach().unsqueeze(-2)).round().long()
        return _clip(tuples.anchors.unsqueeze(-2) + steps, sizes)
    window = widths(plan, sizes)
    width = torch.tensor(window, dtype=torch.int64, device=residuals.device)
    top = torch.tensor(list(sizes), dtype=torch.int64, device=residuals.device) - width
    low = (residuals - 0.5 * (width - 1)).round().long() + tuples.anchors.unsqueeze(-2)
    return torch.minimum(low.clamp(min=0), top) + _uniform(tuples, window, count, generator)


def _guided(points: Tensor, generator: torch.Generator, proposals: Tensor, groups: Any) -> Tensor:
    if not len(proposals):
        return points
    if groups is not None:
        return _guided_within(points, generator, proposals, *groups)
    shape = points.shape
    flat = points.reshape(-1, shape[-1])
    used = min(len(proposals), len(flat))
    places = torch.randperm(len(flat), generator=generator, device=flat.device)[:used]
    chosen = torch.randperm(len(proposals), generator=generator, device=flat.device)[:used]
    return flat.index_copy(0, places, proposals[chosen]).reshape(shape)


def _guided_within(
    points: Tensor, generator: torch.Generator, proposals: Tensor, theirs: Tensor, own: Tensor
) -> Tensor:
    """Every tuple goes through the proposals of its group from a random one on, as far as they reach."""
    ordered, order = torch.sort(theirs)
    low = torch.searchsorted(ordered, own).unsqueeze(-1)
    count = torch.searchsorted(ordered, own, right=True).unsqueeze(-1) - low
    start = torch.randint(0, 2**62, low.shape, device=low.device, generator=generator)
    slot = torch.arange(points.shape[-2], device=low.device)
    place = low + (start % count.clamp(min=1) + slot) % count.clamp(min=1)
    chosen = proposals[order[place.clamp(max=len(order) - 1)]]
    return torch.where((slot < count).unsqueeze(-1), chosen, points)


def duplicates(ids: Int64[Tensor, "c p"]) -> Bool[Tensor, "c p"]:
    """True for every point that stands earlier in its context already; exact, by flattened positions."""
    c, p = ids.shape
    if p <= PAIRWISE:
        seen = torch.zeros(c, p, dtype=torch.bool, device=ids.device)
        for j in range(1, p):
            seen[:, j] = (ids[:, :j] == ids[:, j : j + 1]).any(-1)
        return seen
    ordered, order = torch.sort(ids, dim=-1, stable=True)
    again = torch.zeros(c, p, dtype=torch.bool, device=ids.device)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter_(-1, order, again)
