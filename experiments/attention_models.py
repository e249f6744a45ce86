"""The three nets of the attention experiment: on glimpses, on the whole canvas, on the view; and what they cost.

All take canvases `(b, h, w)` and their views `(b, v, v)` and give `(b, classes)` logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ash import Anneal, SparseLayer
from ash.glimpses import ConvLocator, glimpse_wiring
from ash.wirings.hyper import HyperWiring

LOCATOR = (8, 24, 24, 24)
"""Channels of the convolutions that look at the view."""


def block(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, a norm, a ReLU."""
    convolution = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


class FullNet(nn.Module):
    """A convolutional net on the whole canvas, wherever on it the digit lies."""

    def __init__(self, classes: int, channels: Sequence[int] = (32, 48, 96)):
        super().__init__()
        a, b, c = channels
        self.body = nn.Sequential(
            block(1, a, 7, 4), block(a, b), block(b, b), nn.MaxPool2d(2), block(b, c), block(c, c),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(c, classes),
        )  # fmt: skip

    def forward(self, canvas: Tensor, view: Tensor) -> Tensor:
        logits: Tensor = self.body(canvas.unsqueeze(1))
        return logits


class ViewNet(nn.Module):
    """A convolutional net on the view alone."""

    def __init__(self, classes: int, channels: Sequence[int] = (20, 42, 76)):
        super().__init__()
        a, b, c = channels
        self.body = nn.Sequential(
            block(1, a, 5), block(a, b, 3, 2), block(b, b), block(b, c, 3, 2),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(c, classes),
        )  # fmt: skip

    def forward(self, canvas: Tensor, view: Tensor) -> Tensor:
        logits: Tensor = self.body(view.unsqueeze(1))
        return logits


def glimpse_classifier(outputs: int, channels: Sequence[int] = (16, 24, 48)) -> nn.Sequential:
    """A convolutional net on the pixels of one glimpse, wherever in it the digit lies: `(b, 1, p, p)` ->
    `(b, outputs)`."""
    a, b, c = channels
    return nn.Sequential(
        block(1, a), block(a, b, 3, 2), block(b, b), block(b, c, 3, 2), block(c, c),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(c, outputs),
    )  # fmt: skip


class GlimpseNet(nn.Module):
    """Looks at the view, reads the canvas in glimpses, and classifies what the glimpses hold, nothing else.

    The same classifier sees every glimpse; it says how likely each class is, and how sure it is that there is a digit.
    The answer is the mixture over glimpses, weighed by that and by the heat at which the locator found them.

    Args:
        canvas, view: sides, in pixels. glimpses, side, spacing: how many, of how many pixels a side, how far apart.
        classes: of the digits.
        scale: of the Gaussians around the pixels of a glimpse, in pixels: a number or a schedule of the step.
    """

    def __init__(
        self, canvas: int, view: int, glimpses: int, side: int, spacing: float, classes: int, scale: float | Anneal
    ):
        super().__init__()
        self.locator = ConvLocator((view, view), (canvas, canvas), glimpses, LOCATOR)
        wiring = glimpse_wiring(
            (canvas, canvas), glimpses, side, self.locator, spacing=spacing, scale=scale, scale_floor=0.01
        )
        self.glimpse = SparseLayer((canvas, canvas), (glimpses, side, side), bias=False, wiring=wiring)
        self.glimpse.check_input = False  # a pass over the whole canvas, which is to cost nothing
        self.classifier = glimpse_classifier(classes + 1)
        self.hinter = nn.Linear(LOCATOR[-1], classes)

    @property
    def wiring(self) -> HyperWiring:
        """What places the glimpses."""
        wiring = self.glimpse.wiring
        assert isinstance(wiring, HyperWiring)
        return wiring

    def forward(self, canvas: Tensor, view: Tensor) -> Tensor:
        pixels = self.glimpse(canvas, condition=view)
        told = self.classifier(pixels.flatten(0, 1).unsqueeze(1)).unflatten(0, pixels.shape[:2]).float()
        share = (told[..., 0] + self.locator.heat.scores).log_softmax(1)
        logits: Tensor = (told[..., 1:].log_softmax(-1) + share.unsqueeze(-1)).logsumexp(1)
        return logits

    def hint(self) -> Tensor:
        """What the view's features, weighed by the attention of the last pass, say of the class: `(b, classes)`.

        For a loss in training, which tells the locator what to look for; nothing else reads it.
        """
        features, attention = self.locator.features, self.locator.heat.attention
        assert features is not None and attention is not None
        logits: Tensor = self.hinter((features.float().flatten(2) * attention.unsqueeze(1)).sum(-1))
        return logits

    @torch.no_grad()
    def boxes(self, view: Tensor) -> Tensor:
        """Rows and columns that the glimpses of each view read: `(b, g, p · p, 2)`, rounded."""
        tuples = self.wiring.tuples(view)
        read = tuples.rounded(self.wiring.sizes)
        return read.unflatten(1, (self.locator.heat.glimpses, -1))


@torch.no_grad()
def flops(model: nn.Module, canvas: Tensor, view: Tensor) -> int:
    """Operations of one instance in evaluation: 2 for each multiply-add of convolutions, dense layers and glimpses.

    Norms, ReLUs, pooling, the softmax over the heat map, and the making of the view are left out, for all nets.
    """
    was = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(canvas[:1], view[:1])
    model.train(was)
    entries = model.wiring.k if isinstance(model, GlimpseNet) else 0
    return int(counter.get_total_flops()) + 2 * entries
