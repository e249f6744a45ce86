"""Cluttered MNIST: one digit at a random place of a large canvas, among patches cut from other digits.

Every canvas has one digit, upright and of its own size, and some patches (10) of 4 to 14 pixels a side cut from
anywhere in other digits, each enlarged by 1 to 2, one side of it then narrowed by 1 to 2, and turned by any
angle. Where they overlap the brighter pixel shows. Patches may reach over the border, digits may not.

Canvases are never stored: what is stored, and cached, is the place of the digit and the list of the pixels
(position and brightness) that the patches leave, about 0.7 kB a patch, whatever the size of the canvas. `compose`
makes dense canvases of some instances from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ash.checks import UserError, require
from experiments import checkpoint
from experiments.images import DataError, Images

FORMAT = "cluttered-1"
SMALLEST, LARGEST = 4, 14
"""Sides of the patches that are cut out."""
STRETCH = 2.0
"""The largest scale and the largest aspect."""
AT_A_TIME = 1000
"""Canvases whose patches are drawn together."""
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Cluttered:
    """n canvases as lists of what lies on them.

    Attributes:
        canvas: side of a canvas, in pixels.
        digits: `(n, height, width)` uint8. labels: `(n,)` int64.
        places: `(n, 2)` int64, row and column of the digit's upper left corner.
        offsets: `(n + 1,)` int64: the pixels of clutter j are those from offsets[j] to offsets[j + 1].
        positions: int32, row · canvas + column, each at most once for a clutter. brightness: uint8.
        clutter: `(n,)` int64, which clutter instance i has.
    """

    canvas: int
    digits: Tensor
    labels: Tensor
    places: Tensor
    offsets: Tensor
    positions: Tensor
    brightness: Tensor
    clutter: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def compose(self, which: Tensor) -> Tensor:
        """The canvases of the instances `which` `(b,)`, dense: `(b, canvas, canvas)` uint8."""
        b, area = len(which), self.canvas**2
        flat = torch.zeros(b * area, dtype=torch.uint8)
        lists = self.clutter[which]
        lengths = self.offsets[lists + 1] - self.offsets[lists]
        owner = torch.arange(b).repeat_interleave(lengths)
        entry = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner] + self.offsets[lists][owner]
        flat[owner * area + self.positions[entry].long()] = self.brightness[entry]
        ids = (torch.arange(b) * area)[:, None, None] + self._window(self.places[which])
        flat[ids] = torch.maximum(flat[ids], self.digits[which])
        return flat.reshape(b, self.canvas, self.canvas)

    def _window(self, places: Tensor) -> Tensor:
        """Flattened positions that a digit covers, `(b, height, width)`."""
        height, width = self.digits.shape[1:]
        rows = places[:, :1] + torch.arange(height)
        columns = places[:, 1:] + torch.arange(width)
        return rows[:, :, None] * self.canvas + columns[:, None, :]

    def redrawn(self, generator: torch.Generator) -> Cluttered:
        """The same digits, each at a new place and amid the clutter of another instance."""
        places = draw_places(len(self), self.digits.shape[1:], self.canvas, generator)
        return dataclasses.replace(self, places=places, clutter=torch.randperm(len(self), generator=generator))


def draw_places(n: int, digit: Any, canvas: int, generator: torch.Generator) -> Tensor:
    """Upper left corners, uniform over those that keep the digit inside, `(n, 2)`."""
    room = torch.tensor([canvas - digit[0] + 1, canvas - digit[1] + 1])
    return (torch.rand(n, 2, generator=generator, dtype=torch.float64) * room).long()


def check_canvas(canvas: int, pieces: int, digit: Any) -> None:
    """Raise `UserError` for a canvas that a digit does not fit in, and for less than no clutter."""
    least = max(digit)
    require(least <= canvas <= 10_000, f"--canvas {canvas}; expected {least}, the side of a digit, to 10000 pixels.")
    require(pieces >= 0, f"--pieces {pieces}; expected at least 0 patches of clutter.")


def generate(digits: Tensor, labels: Tensor, canvas: int, pieces: int, generator: torch.Generator) -> Cluttered:
    """New canvases, one for each of `digits` `(n, height, width)` uint8, by draws from `generator`."""
    check_canvas(canvas, pieces, digits.shape[1:])
    n = len(digits)
    places = draw_places(n, digits.shape[1:], canvas, generator)
    lists = [
        _lists(digits, torch.arange(start, min(start + AT_A_TIME, n)), canvas, pieces, generator)
        for start in range(0, n, AT_A_TIME)
    ]
    lengths, positions, brightness = (torch.cat(part) for part in zip(*lists, strict=True))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Cluttered(canvas, digits, labels, places, offsets, positions, brightness, torch.arange(n))


def _lists(
    digits: Tensor, own: Tensor, canvas: int, pieces: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Clutter of the canvases of the digits `own`: lengths of their lists, positions, brightness."""
    patches = draw_patches(len(digits), own, pieces, tuple(digits.shape[1:]), generator)
    centres = torch.rand(len(own) * pieces, 2, generator=generator) * canvas
    owners = torch.arange(len(own)).repeat_interleave(pieces)
    keys = []
    order = patches.reach().argsort()
    for some in order.tensor_split(max(1, min(8, len(order)))):  # patches of like size together: small boxes stay small
        if len(some):
            keys.append(_render(digits, patches.take(some), centres[some], owners[some], canvas))
    merged = torch.cat(keys) if keys else torch.zeros(0, dtype=torch.int64)
    merged = merged.sort().values  # by canvas, position, brightness: the last of a position is the brightest
    place = merged >> 8
    last = torch.ones(len(merged), dtype=torch.bool)
    last[:-1] = place[1:] != place[:-1]
    place, brightness = place[last], (merged[last] & 255).to(torch.uint8)
    lengths = torch.bincount(place // canvas**2, minlength=len(own))
    return lengths, (place % canvas**2).int(), brightness


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches to cut and how to transform them; every attribute has a row for each patch.

    Attributes:
        source: the digit to cut from. corner, side: `(n, 2)`, in pixels of that digit, row first.
        scales: `(n, 2)`, how far the sides are enlarged. angle: in radians.
    """

    source: Tensor
    corner: Tensor
    side: Tensor
    scales: Tensor
    angle: Tensor

    def reach(self) -> Tensor:
        """Diameters after the transformation, in pixels."""
        return (self.side * self.scales).norm(dim=1)

    def take(self, which: Tensor) -> Patches:
        """Some of the patches."""
        return Patches(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))


def draw_patches(n: int, own: Tensor, pieces: int, digit: tuple[int, ...], generator: torch.Generator) -> Patches:
    """`pieces` patches for each of the digits `own`, cut from others of the n digits where there are any."""
    count = len(own) * pieces

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    other = 1 + (uniform(count).double() * max(1, n - 1)).long().clamp(max=max(0, n - 2))
    source = (own.repeat_interleave(pieces) + other) % n
    size = torch.tensor(digit)
    sides = torch.minimum(SMALLEST + (uniform(count, 2) * (LARGEST - SMALLEST + 1)).long(), size)
    corner = (uniform(count, 2) * (size - sides + 1)).long()
    scales = (1 + (STRETCH - 1) * uniform(count))[:, None].repeat(1, 2)
    aspect = 1 + (STRETCH - 1) * uniform(count)
    narrow = (uniform(count) * 2).long()  # which of the two sides the aspect makes shorter
    scales[torch.arange(count), narrow] /= aspect
    return Patches(source, corner, sides, scales, 2 * torch.pi * uniform(count))


def _render(digits: Tensor, patches: Patches, centres: Tensor, owners: Tensor, canvas: int) -> Tensor:
    """Keys ((owner · canvas² + position) · 256 + brightness) of all pixels with ink that patches leave."""
    side = int(patches.reach().max().ceil()) + 1
    corner = (centres - side / 2).floor()
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1)
    pixel = corner[:, None, None] + grid  # (n, side, side, 2)
    offset = pixel + 0.5 - centres[:, None, None]
    cos, sin = (part[:, None, None] for part in (patches.angle.cos(), patches.angle.sin()))
    turned = torch.stack([cos * offset[..., 0] - sin * offset[..., 1], sin * offset[..., 0] + cos * offset[..., 1]], -1)
    inner = turned / patches.scales[:, None, None] + patches.side[:, None, None] / 2  # in pixels of the patch
    seen = ((inner >= 0) & (inner <= patches.side[:, None, None])).all(-1)
    seen &= ((pixel >= 0) & (pixel < canvas)).all(-1)
    where = (inner + patches.corner[:, None, None]) * 2 / torch.tensor(digits.shape[1:]) - 1
    ink = grid_sample(digits[patches.source][:, None].float(), where.flip(-1), align_corners=False)[:, 0]
    ink = (ink.round() * seen).long()
    i, row, column = ink.nonzero(as_tuple=True)
    place = (owners[i] * canvas + pixel[i, row, column, 0].long()) * canvas + pixel[i, row, column, 1].long()
    return place * 256 + ink[i, row, column]


def cluttered(
    images: Images, canvas: int, pieces: int, seed: int, folder: Path, regenerate: bool = False
) -> dict[str, Cluttered]:
    """The training, validation and test canvases of `images`, from the cache in `folder`, or made and cached.

    The patches of a part are cut from the digits of that part. A cache that was made from other options or data is
    replaced, and any with `regenerate`. Raises `DataError` where it is damaged.
    """
    parts = {name: (getattr(images, f"{name}_x"), getattr(images, f"{name}_y")) for name in PARTS}
    about: dict[str, Any] = {"format": FORMAT, "canvas": canvas, "pieces": pieces, "seed": seed}
    about |= {name: _digest(*part) for name, part in parts.items()}
    stored = None if regenerate else _read(folder, about)
    if stored is None:
        stored = {}
        for i, (name, (x, y)) in enumerate(parts.items()):
            generator = torch.Generator().manual_seed((seed * len(parts) + i) % 2**63)
            made = generate(x, y, canvas, pieces, generator)
            stored[name] = {key: getattr(made, key) for key in ("places", "offsets", "positions", "brightness")}
        checkpoint.clear(folder)
        checkpoint.write(folder, about, stored)
    return {
        name: Cluttered(canvas, x, y, **stored[name], clutter=torch.arange(len(x))) for name, (x, y) in parts.items()
    }


def _read(folder: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """What the cache in `folder` holds; None where there is none, or one of something else."""
    if not (folder / checkpoint.RECORD).exists():
        return None
    try:
        saved = checkpoint.read(folder)
    except UserError as problem:
        reason = str(problem).split(";")[0].replace("checkpoint", "cache")
        raise DataError(f"{reason}; expected cluttered canvases as they were written; "
                        "make them anew with --regenerate.") from None  # fmt: skip
    state: dict[str, Any] = saved.state
    return state if saved.meta == about else None


def _digest(x: Tensor, y: Tensor) -> str:
    """A checksum of images and labels."""
    digest = hashlib.sha256(str(tuple(x.shape)).encode())
    for part in (x, y):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()
