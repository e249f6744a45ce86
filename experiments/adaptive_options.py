"""Options of the adaptive classifiers, beside those that all classifiers of images share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ash.checks import positive, require

ADAPTIVE = ("hyper", "fixed", "trunk", "convnet")
"""Names of `--model` that are built here."""


@dataclass(kw_only=True)
class AdaptiveOptions:
    """Options that `--model hyper` and the nets beside it have on their own."""

    data: Literal["mnist", "cifar10"] = "mnist"
    """What lies in --data-dir: IDX files such as MNIST's, or CIFAR-10 in the layout cifar-10-batches-py."""
    view: int = 4
    """Down-sampling factor of what the hypernetworks (and trunk) see: 4 is 7 x 7 of MNIST's 28 x 28, 2 is 14 x 14."""
    codebook: int = 0
    """Scalars among which every emitted value is chosen; 0: values are emitted as numbers."""
    reconstruction: float = 0.0
    """Weight in the loss of each adaptive layer's reconstruction of its input; the blog takes 0.01."""
    pretrain: float = 0.0
    """The first epochs of the run, in which each layer in turn learns to reconstruct its input and nothing else."""
    scales: Literal["scheduled", "emitted"] = "scheduled"
    """Take all scales from start to end on a schedule, or emit them, with the end as floor."""
    scale_penalty: float = 0.0
    """Weight in the loss of emitted scales that fall below half the starting one during the schedule."""
    augment: int = 2
    """Training images are shifted at random by up to so many pixels (and mirrored: CIFAR-10); 0: never."""
    plain_image: bool = False
    """Convolutions of 1 x 1: adaptive layers read single pixels, and more of them."""
    train_images: int = 0
    """Train on so many of the training images only; 0: all of them."""


def own_defaults(options: Any) -> dict[str, Any]:
    """What `--model hyper` and the nets beside it take where nothing is given."""
    digits = not (options.data_dir or options.download)
    defaults: dict[str, Any] = {"density": 0.0, "epochs": 60 if digits else 6, "batch": 64 if digits else 128}
    defaults |= {"kernel": "gaussian", "local_samples": 0, "scale": 0.7, "scale_end": 0.05}
    return {name: value for name, value in defaults.items() if getattr(options, name) is None}


def check_adaptive(options: Any) -> None:
    """Raise `UserError` for options that no run can do with."""
    for name in ("reconstruction", "pretrain", "scale_penalty", "augment"):
        positive(f"--{name.replace('_', '-')}", getattr(options, name), zero=True)
    require(options.codebook >= 0, f"--codebook {options.codebook}; expected a number of scalars, or 0 for none.")
    require(options.train_images >= 0, f"--train-images {options.train_images}; expected a number, or 0 for all.")
    require(options.view >= 1, f"--view {options.view}; expected a factor of at least 1.")
    adaptive = options.model in ADAPTIVE
    given = [
        f"--{field.name.replace('_', '-')} {getattr(options, field.name)}"
        for field in dataclasses.fields(AdaptiveOptions)
        if getattr(options, field.name) != field.default
    ]
    require(
        adaptive or not given,
        f"{', '.join(given)} with --model {options.model}, which does not know it; "
        f"expected --model {', '.join(ADAPTIVE)}.",
    )
    require(
        options.scale_penalty == 0 or options.scales == "emitted",
        "--scale-penalty with scales on a schedule, which nothing can move; add --scales emitted.",
    )
