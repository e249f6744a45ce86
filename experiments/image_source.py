"""Batches of labelled images for a convolutional network: from memory, or from a folder of pictures as ImageNet's."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ash.checks import optional
from experiments.images import DataError, Images

Batch = tuple[Tensor, Tensor]
EVALUATION_BATCH = 500
SEEDS = 1 << 62


class Source(ABC):
    """Where the batches come from: images `(b, channels, size, size)` float32, channels last, and labels `(b,)`."""

    name: str
    channels: int
    size: int
    classes: int
    train_images: int

    @abstractmethod
    def order(self) -> Tensor:
        """Required. An order of the training images `(n, …)`, a row for each, drawn by torch's default generator."""

    @abstractmethod
    def train(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """Required. A batch for each part of an order."""

    @abstractmethod
    def test(self) -> Iterator[Batch]:
        """Required. The test images once."""

    def steps(self, batch: int) -> int:
        """Batches of an epoch."""
        return math.ceil(self.train_images / batch)


class InMemory(Source):
    """Images held in memory, standardised; training ones flipped, and shifted by up to an eighth of their side.

    Args:
        images: standardised. augment: whether training images are flipped and shifted.
    """

    def __init__(self, images: Images, augment: bool, device: torch.device):
        self.name, self.classes, self.augment = images.name, images.classes, augment
        self.train_x, self.test_x = (_channels(x).to(device) for x in (images.train_x, images.test_x))
        self.train_y, self.test_y = images.train_y.to(device), images.test_y.to(device)
        self.train_images, self.channels, self.size = len(self.train_y), self.train_x.shape[1], self.train_x.shape[2]

    def order(self) -> Tensor:
        return torch.randperm(self.train_images).to(self.train_y.device)

    def train(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        for part in parts:
            x = self.train_x[part]
            x = shifted(x, self.size // 8) if self.augment else x
            yield x.contiguous(memory_format=torch.channels_last), self.train_y[part]

    def test(self) -> Iterator[Batch]:
        for x, y in zip(self.test_x.split(EVALUATION_BATCH), self.test_y.split(EVALUATION_BATCH), strict=True):
            yield x.contiguous(memory_format=torch.channels_last), y


def _channels(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else x.unsqueeze(1)


def shifted(x: Tensor, most: int) -> Tensor:
    """Each image `(b, c, h, w)` shifted by up to `most` pixels each way, zeros coming in, and half of them flipped."""
    b, _, h, w = x.shape
    down, right = (torch.randint(0, 2 * most + 1, (b, 1)) for _ in range(2))
    flip = torch.rand(b, 1) < 0.5
    rows, cols = torch.arange(h) + down, torch.arange(w).expand(b, w)
    cols = torch.where(flip, w - 1 - cols, cols) + right
    padded = torch.nn.functional.pad(x, (most,) * 4)
    place = (torch.arange(b)[:, None, None], slice(None), rows[:, :, None], cols[:, None, :])
    moved: Tensor = padded[tuple(each.to(x.device) if isinstance(each, Tensor) else each for each in place)]
    return moved.permute(0, 3, 1, 2)


class PictureFolder(Source):
    """Pictures in folders `train/CLASS/…` and `val/CLASS/…`, as ImageNet is laid out.

    Training pictures are cropped at random (8 to 100 % of the area, sides 3:4 to 4:3) and flipped; test pictures
    are scaled so that the short side is 256/224 of `size`, and cropped at the centre.

    Raises `DataError` for a folder that is missing, has no classes, or other ones in val than in train.
    """

    def __init__(self, folder: Path, device: torch.device, size: int = 224, workers: int | None = None):
        self.name, self.channels, self.size, self.device = folder.name, 3, size, device
        classes = _classes(folder / "train")
        if _classes(folder / "val") != classes:
            raise DataError(f"{folder}: train/ and val/ hold other classes; expected the same folders in both.")
        self.classes = len(classes)
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
        self._train = _Pictures(folder / "train", classes, size, crop=True)
        self._test = _Pictures(folder / "val", classes, size, crop=False)
        self.train_images = len(self._train)

    def order(self) -> Tensor:
        """The pictures' numbers, and for each the seed of its crop: whoever loads it, it is cropped alike."""
        return torch.stack([torch.randperm(self.train_images), torch.randint(SEEDS, (self.train_images,))], 1)

    def train(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        return self._batches(self._train, parts)

    def test(self) -> Iterator[Batch]:
        every = torch.arange(len(self._test))
        return self._batches(self._test, torch.stack([every, every], 1).split(EVALUATION_BATCH))

    def _batches(self, pictures: _Pictures, parts: Iterable[Tensor]) -> Iterator[Batch]:
        keys = ([(index, seed) for index, seed in part.tolist()] for part in parts)
        own = torch.Generator()  # the loader draws from it what nobody uses
        for x, y in DataLoader(pictures, batch_sampler=keys, num_workers=self.workers, generator=own):
            yield x.to(self.device).contiguous(memory_format=torch.channels_last), y.to(self.device)


def is_picture_folder(folder: Path) -> bool:
    """Whether pictures lie there by class, and not CIFAR-10."""
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def _classes(folder: Path) -> list[str]:
    names = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    if len(names) < 2:
        raise DataError(f"{folder} holds {len(names)} folders; expected one for each of at least 2 classes.")
    return names


class _Pictures(Dataset[tuple[Tensor, int]]):
    """The pictures below a folder, `(3, size, size)` and standardised by ImageNet's colours, by number and seed."""

    MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    SUFFIXES = (".jpeg", ".jpg", ".png")

    def __init__(self, folder: Path, classes: list[str], size: int, crop: bool):
        self.size, self.crop = size, crop
        self.image = optional("PIL.Image", "pip install pillow")
        self.files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in self.SUFFIXES
        ]
        if not self.files:
            raise DataError(f"{folder} holds no pictures; expected files {', '.join(self.SUFFIXES)} in its folders.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key
        path, label = self.files[index]
        generator = torch.Generator().manual_seed(seed)
        with self.image.open(path) as file:
            picture = file.convert("RGB")
        box = self._random_box(generator, *picture.size) if self.crop else self._centre_box(*picture.size)
        small = picture.resize((self.size, self.size), self.image.Resampling.BILINEAR, box=box)
        x = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
        x = x.flip(2) if self.crop and torch.rand((), generator=generator) < 0.5 else x
        return (x - self.MEAN) / self.STD, label

    def _random_box(self, generator: torch.Generator, width: int, height: int) -> tuple[float, float, float, float]:
        share, place = torch.rand(2, 2, generator=generator)
        area = width * height * (0.08 + 0.92 * float(share[0]))
        ratio = math.exp((2 * float(share[1]) - 1) * math.log(4 / 3))
        w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
        left, top = float(place[0]) * (width - w), float(place[1]) * (height - h)
        return left, top, left + w, top + h

    def _centre_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        side = min(width, height) * 224 / 256
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
