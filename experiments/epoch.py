"""One pass over the training images, which a checkpoint may be in the middle of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Epoch:
    """How far a pass over the training images is, and the sums of its figures.

    Attributes:
        order: `(n, …)`, a row for each image, in the order in which they come. loss: sum of the losses of the images
            so far, a scalar. right: how many of them were told rightly. batches, images: how many there were.
    """

    order: Tensor
    loss: Tensor
    right: Tensor
    batches: int = 0
    images: int = 0

    @classmethod
    def begin(cls, order: Tensor, device: torch.device) -> Epoch:
        """A pass before its first batch; its sums are where losses are, whatever device the order is on."""
        return cls(order, torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device))

    def rest(self, batch: int) -> tuple[Tensor, ...]:
        """The order of the images to come, batch by batch."""
        return self.order.split(batch)[self.batches :]

    def add(self, loss: Tensor, right: Tensor | int, images: int) -> None:
        """One more batch: its mean loss, and how many of its images were told rightly."""
        self.loss += loss.detach() * images
        self.right += right
        self.batches += 1
        self.images += images

    def figures(self) -> dict[str, float]:
        """`loss` and `train_accuracy`, means over the images so far."""
        return {"loss": float(self.loss) / self.images, "train_accuracy": int(self.right) / self.images}


def state_of(epoch: Epoch | None) -> dict[str, Any] | None:
    """What a checkpoint holds of a pass that it is in the middle of; None for None."""
    return None if epoch is None else dict(vars(epoch))


def epoch_of(state: dict[str, Any] | None, device: torch.device) -> Epoch | None:
    """The pass of a `state_of`, on the device."""
    if state is None:
        return None
    on_device: dict[str, Any] = {name: each.to(device) for name, each in state.items() if isinstance(each, Tensor)}
    return Epoch(**state | on_device)
