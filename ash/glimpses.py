"""Glimpses: a hypernetwork looks at a small view of a picture and says where to read it at full resolution.

A glimpse is a grid of p × p index tuples around a centre that is emitted for every instance: the output (glimpse,
row, column) of a tuple is fixed, the pixel that it reads is centre + spacing · grid. So g glimpses are a sparse weight
of g · p² tuples on the picture, `(g, p, p)` × `(h, w)`, and cost what these cost, however large the picture.

    locator = ConvLocator((25, 25), (100, 100), glimpses=1)
    wiring = glimpse_wiring((100, 100), 1, 16, locator, spacing=1.5)
    layer = SparseLayer((100, 100), (1, 16, 16), bias=False, wiring=wiring)
    pixels = layer(picture, condition=view)                                   # (b, 1, 16, 16)

Source: `Sparse, Adaptive Hypernetworks` (2017), 'attention'; the soft argmax over a heat map: arXiv 1504.00702.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ash.checks import positive, require, shape
from ash.sampling import Sampling
from ash.template import Template
from ash.wirings.hyper import HyperWiring


def glimpse_grid(side: int, spacing: float = 1.0) -> Float64[Tensor, "k 2"]:
    """Rows and columns of p × p positions around 0, `spacing` indices apart, row by row; k = p²."""
    line = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return torch.cartesian_prod(line, line)


class HeatMap(nn.Module):
    """Features of a view -> the g hottest places, each a centre in the picture.

    A 1 × 1 convolution gives every cell a logit and a step (rows, columns, in units of a cell). The first place is
    around the hottest cell: the mean over it and its eight neighbours, by the softmax of the logits, of a cell's
    centre plus its step. These cells are then left out, and so on. So every centre has a gradient by logits and steps.

    Args:
        channels: of the features. picture: `(h, w)`, whose indices the centres are in.
        glimpses: g, how many centres.

    Attributes:
        attention: `(b, i · j)`, the softmax over all cells in the last pass.
        scores: `(b, g)`, the log of the share of the attention that each place has.

    Shapes: `(b, channels, i, j)` -> `(b, g, 2)`.
    """

    attention: Tensor | None = None
    scores: Tensor | None = None

    def __init__(self, channels: int, picture: Sequence[int], glimpses: int):
        super().__init__()
        self.picture, self.glimpses = shape("picture", picture), glimpses
        self.head = nn.Conv2d(channels, 3, 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """New logits; steps start at 0."""
        self.head.reset_parameters()
        self.head.weight[1:] = 0
        if self.head.bias is not None:
            self.head.bias.zero_()

    def forward(self, features: Float[Tensor, "b c i j"]) -> Float[Tensor, "b g 2"]:
        raw = self.head(features).float().flatten(2)
        places = (self._cells(features) + raw[:, 1:]) * self._pitch(features) - 0.5  # (b, 2, i · j)
        share = raw[:, 0].log_softmax(-1)
        self.attention = share.exp()
        centres, scores, left = [], [], share
        for _ in range(self.glimpses):
            here = left.masked_fill(~self._around(left, features.shape[-2:]), -torch.inf)
            total = here.logsumexp(-1)
            centres.append(((here - total[:, None]).exp().unsqueeze(1) * places).sum(-1))
            scores.append(total)
            left = left.masked_fill(here > -torch.inf, -1e4)
        self.scores = torch.stack(scores, 1)
        return torch.stack(centres, 1)

    def _cells(self, features: Tensor) -> Tensor:
        """Centres of the cells, in units of a cell: `(2, i · j)`."""
        rows, columns = (torch.arange(n, device=features.device) + 0.5 for n in features.shape[-2:])
        return torch.cartesian_prod(rows, columns).t()

    def _pitch(self, features: Tensor) -> Tensor:
        """Indices of the picture from cell to cell: `(2, 1)`."""
        i, j = features.shape[-2:]
        return torch.tensor([[self.picture[0] / i], [self.picture[1] / j]], device=features.device)

    @staticmethod
    def _around(logits: Float[Tensor, "b n"], size: Sequence[int]) -> Tensor:
        """True at the hottest cell and those that touch it: `(b, n)`."""
        i, j = size
        best = logits.detach().argmax(-1, keepdim=True)
        cell = torch.arange(i * j, device=logits.device)
        return ((cell // j - best // j).abs() <= 1) & ((cell % j - best % j).abs() <= 1)


class ConvLocator(nn.Module):
    """Convolutions over a view of a picture, and a `HeatMap` of what they find: `(b, *view)` -> `(b, g, 2)`.

    Args:
        view: `(h, w)` of what it sees. picture: `(h, w)`, whose indices the centres are in.
        glimpses: how many centres it gives.
        channels: of the convolutions: 5 × 5, then 3 × 3, the second of which halves the view.

    Attributes:
        features: `(b, c, i, j)` of the last pass.
        heat: the `HeatMap`, which holds the attention and the scores of that pass.
    """

    features: Tensor | None = None

    def __init__(
        self, view: Sequence[int], picture: Sequence[int], glimpses: int = 1, channels: Sequence[int] = (12, 24, 24)
    ):
        super().__init__()
        self.view = shape("view", view)
        require(len(self.view) == 2 and len(channels) >= 1, f"view={self.view}, channels={tuple(channels)}; "
                "expected (h, w), and at least one convolution.")  # fmt: skip
        layers: list[nn.Module] = []
        before = 1
        for place, after in enumerate(channels):
            size, stride = (5 if place == 0 else 3), (2 if place == 1 else 1)
            layers += [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.trunk, self.heat = nn.Sequential(*layers), HeatMap(before, picture, glimpses)

    def forward(self, view: Float[Tensor, "b h w"]) -> Float[Tensor, "b g 2"]:
        self.features = self.trunk(view.unsqueeze(1))
        centres: Tensor = self.heat(self.features)
        return centres


class Glimpses(nn.Module):
    """A hypernetwork that moves grids of tuples: it emits, for all tuples of a glimpse, what its centre moves by.

    Made for `HyperWiring(means="direct", positions=glimpses.positions, free=False)`; see `glimpse_wiring`.

    Args:
        locator: any module x -> centres `(b, g, 2)` in indices of the picture, or `(b, g, 3)` with the logarithm of a
            zoom, by which the spacing is multiplied.
        picture: `(h, w)`. glimpses: g. side: p. spacing: between neighbours of the grid, in indices.

    Attributes:
        positions: `(g · p², 2)`, the grids around the middle of the picture.
        centres: `(b, g, 2 or 3)`, what the locator gave last, with its gradient.

    Shapes: x -> `(b, g · p², 2)`. Raises `UserError` for a locator whose output is of another shape.
    """

    grid: Tensor

    def __init__(self, locator: nn.Module, picture: Sequence[int], glimpses: int, side: int, spacing: float = 1.0):
        super().__init__()
        self.picture = shape("picture", picture)
        require(len(self.picture) == 2, f"picture={self.picture}; expected (h, w).")
        require(glimpses >= 1 and side >= 1, f"{glimpses} glimpses of {side} x {side}; expected at least 1 of each.")
        positive("spacing", spacing)
        reach = (side - 1) * spacing + 1
        require(reach <= min(self.picture), f"a glimpse that reaches over {reach:g} indices of a picture of "
                f"{self.picture}; expected at most {min(self.picture)}; choose a smaller side or spacing.")  # fmt: skip
        self.locator, self.glimpses, self.side = locator, glimpses, side
        self.register_buffer("grid", glimpse_grid(side, spacing).float(), persistent=False)
        self.centres: Tensor | None = None

    @property
    def middle(self) -> Float64[Tensor, " 2"]:
        """The middle of the picture."""
        return (torch.tensor(self.picture, dtype=torch.float64) - 1) / 2

    @property
    def positions(self) -> Float64[Tensor, "k 2"]:
        """Where the tuples are before anything is emitted."""
        return (self.grid.double().cpu() + self.middle).repeat(self.glimpses, 1)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k 2"]:
        centres = self.locator(x)
        expected = (x.shape[0], self.glimpses)
        require(centres.dim() == 3 and tuple(centres.shape[:2]) == expected and centres.shape[2] in (2, 3),
                f"a locator that gives {tuple(centres.shape)}; expected (b, g, 2) or (b, g, 3) with b, g = "
                f"{expected}: a row, a column, and maybe a log zoom.")  # fmt: skip
        self.centres = centres
        moved = (centres[..., :2] - self.middle.to(centres)).unsqueeze(2)
        if centres.shape[2] == 3:
            moved = moved + torch.expm1(centres[..., None, 2:]) * self.grid
        return moved.expand(-1, -1, self.side**2, -1).flatten(1, 2)


def glimpse_wiring(
    picture: Sequence[int], glimpses: int, side: int, locator: nn.Module, *, spacing: float = 1.0,
    condition_shape: Sequence[int] | None = None, **options: Any,
) -> HyperWiring:  # fmt: skip
    """A `HyperWiring` `(g, p, p)` × `(h, w)` whose tuples lie in grids around the centres that `locator` gives.

    Args:
        condition_shape: of what the locator sees; by default its attribute `view`, or else the picture.
        options: of `HyperWiring`; by default all values are 1, scales are scheduled, and points are the corners.
    """
    network = Glimpses(locator, picture, glimpses, side, spacing)
    seen = getattr(locator, "view", None) if condition_shape is None else condition_shape
    out_shape = (glimpses, side, side)
    given: dict[str, Any] = {"values": "ones", "scales": "scheduled", "scale": 1.0}
    given |= {"sampling": Sampling(global_samples=0, local_samples=0)} | options
    return HyperWiring(
        out_shape,
        network.picture,
        hypernetwork=network,
        condition_shape=seen,
        means="direct",
        positions=network.positions,
        free=False,
        template=Template.per_output(out_shape, network.picture, 1),
        **given,
    )
