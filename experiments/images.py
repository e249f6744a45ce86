"""Labelled images, and the steps between reading and training on them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ash.checks import UserError, require


class DataError(UserError):
    """A file or folder of data that is missing, damaged or not what it should be."""


@dataclass(frozen=True, eq=False)
class Images:
    """A data set of grey images (n, height, width) or coloured ones (n, 3, height, width).

    As read, pixels are uint8; after `standardise` they are float32. Labels are int64 of shape (n,), from
    0 to `classes` - 1. The validation part is empty until `train_validation` splits it off.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    name: str
    classes: int = 10
    validation_x: Tensor = field(default_factory=lambda: torch.empty(0))
    validation_y: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def check_labels(source: str, x: Tensor, y: Tensor, classes: int) -> None:
    """Raise `DataError`, naming `source`, unless there is a label from 0 to classes - 1 for every image."""
    if len(x) == 0 or y.shape != (len(x),):
        raise DataError(
            f"{source}: {len(x)} images and {y.numel()} labels; expected as many labels as images, "
            "at least one; take both from the same download."
        )
    least, most = int(y.min()), int(y.max())
    if least < 0 or most >= classes:
        raise DataError(
            f"{source}: labels from {least} to {most}; expected 0 to {classes - 1}; "
            "take images and labels from the same download."
        )


def check_finite(images: Images) -> None:
    """Raise `DataError`, naming the first place, if a pixel is NaN or infinite; bytes cannot be."""
    parts = {"training": images.train_x, "validation": images.validation_x, "test": images.test_x}
    for name, x in parts.items():
        wrong = (~torch.isfinite(x)).nonzero() if x.is_floating_point() else x.new_empty(0)
        if len(wrong):
            first, *place = wrong[0].tolist()
            raise DataError(
                f"{images.name}: {name} image {first} has the pixel {float(x[tuple(wrong[0])])} at {tuple(place)}, "
                f"and {len(wrong) - 1} more are not finite; expected numbers; get the data again, or mend them."
            )


def train_validation(images: Images, fraction: float, seed: int) -> Images:
    """Move `fraction` of the training images, drawn at random by `seed`, to the validation part."""
    n = len(images.train_x)
    held = round(fraction * n)
    require(
        0 < held < n,
        f"a fraction of {fraction} is {held} of {n} training images; expected at least one image on both "
        "sides; choose a fraction between 0 and 1.",
    )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rest, aside = order[held:].sort().values, order[:held].sort().values
    return dataclasses.replace(
        images,
        train_x=images.train_x[rest],
        train_y=images.train_y[rest],
        validation_x=images.train_x[aside],
        validation_y=images.train_y[aside],
    )


def standardise(images: Images) -> Images:
    """All pixels as float32, shifted and scaled so that the training part has mean 0 and deviation 1.

    A colour channel at a time; test and validation parts take the shift and scale of the training part. Raises
    `DataError` for pixels that are no finite numbers.
    """
    check_finite(images)
    train = images.train_x.float()
    others = [dim for dim in range(train.dim()) if train.dim() < 4 or dim != 1]
    std, mean = torch.std_mean(train, dim=others, correction=0, keepdim=True)
    std = torch.where(std > 0, std, 1.0)[0]
    mean = mean[0]

    def apply(x: Tensor) -> Tensor:
        return x.float().sub_(mean).div_(std) if len(x) else x.float()

    return dataclasses.replace(
        images,
        train_x=train.sub_(mean).div_(std),
        test_x=apply(images.test_x),
        validation_x=apply(images.validation_x),
    )
