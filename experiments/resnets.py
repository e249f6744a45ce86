"""Residual networks, our own definition: a small one, ResNet-18 and ResNet-50, for CIFAR's images or ImageNet's.

Source: He et al. 2016, arXiv 1512.03385; in the bottleneck the 3 × 3 convolution has the stride, as the seed
document on discovered wirings asks for.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Plan(NamedTuple):
    """Blocks of each stage, whether they are bottlenecks, and the usual channels of the first stage."""

    blocks: tuple[int, ...]
    bottleneck: bool
    width: int


PLANS = {
    "small": Plan((1, 1, 1), False, 16),
    "resnet18": Plan((2, 2, 2, 2), False, 64),
    "resnet50": Plan((3, 4, 6, 3), True, 64),
}


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, and batch norm."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """ReLU(f(x) + x), f two 3 × 3 convolutions, or 1 × 1, 3 × 3, 1 × 1 in a bottleneck of a quarter of the outputs.

    Where the sizes of both differ, a 1 × 1 convolution takes x along.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool):
        super().__init__()
        inner = outputs // 4 if bottleneck else outputs
        if bottleneck:
            steps = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        else:
            steps = [(inputs, inner, 3, stride), (inner, outputs, 3, 1)]
        parts: list[nn.Module] = []
        for step in steps:
            parts += [convolution(*step), nn.ReLU()]
        self.inner = nn.Sequential(*parts[:-1])
        same = inputs == outputs and stride == 1
        self.outer = nn.Identity() if same else convolution(inputs, outputs, 1, stride)
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.inner(x) + self.outer(x))
        return y


def resnet(kind: str, inputs: int, classes: int, size: int, width: int | None = None) -> nn.Sequential:
    """A residual network.

    Args:
        kind: a name in `PLANS`.
        inputs, size: channels and height of the images. Above 64 pixels it starts as for ImageNet, with a 7 × 7
            convolution of stride 2 and a pooling; else with a 3 × 3 one. `small` has stride 2 and a pooling from 32
            pixels on, so that a step on CIFAR's images is cheap.
        width: channels of the first stage (of its bottleneck); each later stage has twice as many.

    Shapes: `(b, inputs, size, size)` -> `(b, classes)`. The first layer is `model[0][0]`.
    """
    plan = PLANS[kind]
    channels = plan.width if width is None else width
    shrinks = size > 64 or (kind == "small" and size >= 32)
    parts: list[nn.Module] = [convolution(inputs, channels, 7 if size > 64 else 3, 1 + shrinks), nn.ReLU()]
    if shrinks:
        parts.append(nn.MaxPool2d(3, 2, 1))
    before = channels
    for stage, blocks in enumerate(plan.blocks):
        after = channels * 2**stage * (4 if plan.bottleneck else 1)
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            parts.append(Block(before, after, stride, plan.bottleneck))
            before = after
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

