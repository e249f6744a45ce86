"""What feeds which layer of a `LayerGraph`, and in what shape: worked out once, by running the layers on zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ash.checks import UserError, choose, require
from ash.layers.linear import SparseLinear
from ash.layers.merging import RESIZES, Shape, Target, common_size, width

LayerFactory = Callable[[Shape], nn.Module]


def describe(s: int) -> str:
    """Column s of W in words."""
    return f"layers[{s - 1}]" if s else "input"


@dataclass(frozen=True)
class Plan:
    """The options of a `LayerGraph` that decide about shapes; `number` layers.

    Raises `UserError` for options that do not fit.
    """

    number: int
    merge: str
    resize: str
    squeeze: int | Sequence[int] | None
    fill_maps: bool
    pooled: bool
    flat: tuple[int, ...]
    direct: tuple[tuple[int, int], ...]
    steps: int
    maps: Shape | None

    def __post_init__(self) -> None:
        n = self.number
        choose("way to resize", self.resize, RESIZES)
        require(n >= 2, f"{n} layers; expected at least 2, so that there are connections between them.")
        require(self.steps >= 1, f"steps={self.steps}; expected at least 1 pass over the layers.")
        known = all(0 <= t < n and 0 <= s < self.sources and s != t + 1 for t, s in self.direct)
        ahead = all(s <= t for t, s in self.direct)
        require(
            known and ahead,
            f"direct={self.direct}; expected (target, source) pairs of {n} layers and {self.sources} sources, "
            "each source before its target.",
        )
        require(all(0 <= t < n for t in self.flat), f"flat={self.flat}; expected numbers of layers, 0 to {n - 1}.")
        numbers = self.squeeze if isinstance(self.squeeze, Sequence) else (self.squeeze,) * n
        for name, given in (("squeeze", numbers), ("maps", self.maps)):
            good = given is None or (len(given) == n and all(each is None or each >= 1 for each in given))
            require(good, f"{name}={given}; expected a number of maps for each of the {n} layers, at least 1.")
        asks = self.steps > 1 and self.merge in ("concat", "squeeze")
        require(
            not asks or self.maps is not None,
            f"merge={self.merge!r} with connections back and no maps; give the numbers of maps of the layers' outputs.",
        )

    @property
    def sources(self) -> int:
        """How many columns W has."""
        return self.number + (self.steps > 1)

    def connections(self) -> Iterator[tuple[int, int]]:
        """The (row, column) pairs of W that may exist."""
        for t in range(self.number):
            for s in range(self.sources if self.steps > 1 else t + 1):
                if s != t + 1 and (t, s) not in self.direct:
                    yield t, s

    def squeezed(self, t: int) -> int | None:
        """To how many maps the input of layer t is squeezed; a single direct source is not."""
        if self.squeeze is None or len(self._feeding(t)) == 1:
            return None
        return self.squeeze[t] if isinstance(self.squeeze, Sequence) else self.squeeze

    def _feeding(self, t: int) -> tuple[int, ...]:
        """Sources of layer t, in order."""
        return tuple(sorted({s for at, s in (*self.connections(), *self.direct) if at == t}))

    def squeezes(
        self, targets: Sequence[Target], device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Iterator[nn.Module]:
        """For each layer the module that squeezes its input, or nothing in its place."""
        for t, target in enumerate(targets):
            to = self.squeezed(t)
            wide = sum(target.widths)
            yield nn.Identity() if to is None else nn.Linear(wide, to, bias=False, device=device, dtype=dtype)

    # --- shapes ----------------------------------------------------------------------------------------

    def trace(
        self,
        layers: Sequence[nn.Module | LayerFactory],
        in_shape: Shape,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> tuple[list[nn.Module], list[Target], list[Shape]]:
        """The layers made, what feeds each, and the shapes of the input and of every output, without b."""
        made: list[nn.Module] = []
        shapes, targets = [in_shape], []
        for t, layer in enumerate(layers):
            target = self._target(t, layer, layers, shapes)
            if not isinstance(layer, nn.Module):
                layer = layer(target.shape)
                require(isinstance(layer, nn.Module), f"layers[{t}] makes a {type(layer).__name__}; expected a module.")
                layer = layer.to(device=device, dtype=dtype)
            output = self._try(t, layer, target, shapes, device, dtype)
            made.append(layer)
            targets.append(target)
            shapes.append(tuple(output.shape[1:]))
        for t, target in enumerate(targets):
            self._check_back(t, target, shapes)
        return made, targets, shapes

    def _target(self, t: int, layer: object, layers: Sequence[object], shapes: list[Shape]) -> Target:
        sources = self._feeding(t)
        ahead = [s for s in sources if s <= t]
        self._check_dimensions(t, ahead, shapes)
        flat = t in self.flat or takes_vectors(layer) or all(len(shapes[s]) == 1 for s in ahead)
        size = common_size([shapes[s][1:] for s in ahead if len(shapes[s]) > 1], self.resize)
        kept = None if flat and self.pooled else size
        here = {s: width(shapes[s], kept, flat, self.pooled) for s in ahead}
        back = {s: self._guess(s, layers[s - 1], kept, flat) for s in sources if s > t}
        widths = here | back
        merged = self._merged_width(t, widths, here, shapes)
        shape = (merged,) if flat or size is None else (merged, *size)
        return Target(sources, kept, flat or size is None, tuple(widths[s] for s in sources), shape)

    def _guess(self, s: int, layer: object, size: Shape | None, flat: bool) -> int:
        """Width of a source that has not been run yet; `_check_back` sees whether it is true."""
        if self.maps is None:
            return 0
        own = (self.maps[s - 1],) if takes_vectors(layer) else (self.maps[s - 1], *(size or (1,)))
        return width(own, size, flat, self.pooled)

    def _merged_width(self, t: int, widths: dict[int, int], here: dict[int, int], shapes: list[Shape]) -> int:
        if self.merge in ("concat", "squeeze"):
            return self.squeezed(t) or sum(widths.values())
        if not self.fill_maps and len(set(here.values())) > 1:
            raise UserError(
                f"{self._named(t)} is fed by {self._listed(here, shapes)}, which merge={self.merge!r} cannot merge: "
                f"{sorted(set(here.values()))} maps; expected equal numbers. Make them equal, give fill_maps=True, or "
                "take merge='squeeze'."
            )
        return max(widths.values() if self.fill_maps else here.values())

    def _check_dimensions(self, t: int, ahead: Sequence[int], shapes: list[Shape]) -> None:
        """Maps that are merged have equally many dimensions, and those that are interpolated have two."""
        sizes = {shapes[s][1:] for s in ahead if len(shapes[s]) > 1}
        fed = f"{self._named(t)} is fed by {self._listed(ahead, shapes)}"
        require(
            len({len(size) for size in sizes}) <= 1,
            f"{fed}: maps of different dimensions, which cannot be merged; expected equally many.",
        )
        planar = all(len(size) == 2 for size in sizes)
        require(
            len(sizes) <= 1 or planar or self.resize not in ("bilinear", "bicubic"),
            f"{fed}, which resize={self.resize!r} cannot bring to one size; expected maps with two dimensions; "
            "take 'nearest', 'area' or 'pad'.",
        )

    def _check_back(self, t: int, target: Target, shapes: list[Shape]) -> None:
        """Sources after layer t are as wide as was taken for granted, and can be brought to the size."""
        merged = target.shape[0] if self.merge in ("sum", "max") else None
        for s, assumed in zip(target.sources, target.widths, strict=True):
            if s <= t:
                continue
            found = width(shapes[s], target.size, target.flat, self.pooled)
            expected = assumed if merged is None else merged
            require(
                found == expected or (merged is not None and self.fill_maps and found <= merged),
                f"{self._named(t)} is fed back by {describe(s)} {shapes[s]}: {found} maps or features; expected "
                f"{expected}; give maps, the layers' true numbers of maps, or make them equal.",
            )
            require(
                self._fits(shapes[s][1:], target.size),
                f"{self._named(t)} is fed back by {describe(s)} {shapes[s]}, which resize={self.resize!r} cannot bring "
                f"to {target.size}; take another resize, or maps of as many dimensions.",
            )

    def _fits(self, found: Shape, size: Shape | None) -> bool:
        """Whether maps of a source, where it has any, can be brought to the size of a target."""
        if not found or size is None:
            return True
        return len(found) == len(size) and (RESIZES[self.resize] or all(map(int.__le__, found, size)))

    def _try(
        self,
        t: int,
        layer: nn.Module,
        target: Target,
        shapes: list[Shape],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """The output of a layer for one instance of zeros, in evaluation."""
        plain = torch.zeros((), device=device, dtype=dtype)
        like: Tensor = next((p for p in layer.parameters() if p.is_floating_point()), plain)
        try:
            output = evaluated(layer, like.new_zeros(1, *target.shape))
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            good = isinstance(output, Tensor) and output.dim() >= 2 and output.shape[0] == 1
            problem = "" if good else f"it gives {found}"
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            problem = str(error).strip().splitlines()[0].rstrip(".")
        if problem:
            raise UserError(
                f"layers[{t}] ({layer}) cannot take (b, {', '.join(map(str, target.shape))}), which "
                f"merge={self.merge!r}, resize={self.resize!r} make of {self._listed(target.sources, shapes)}: "
                f"{problem}. Expected a layer that gives (b, maps, …) or (b, features) for it; change it, the merge, "
                "or what feeds it."
            )
        return output

    def _named(self, t: int) -> str:
        return f"layers[{t}]"

    def _listed(self, sources: Sequence[int] | dict[int, int], shapes: list[Shape]) -> str:
        return ", ".join(f"{describe(s)} {shapes[s]}" if s < len(shapes) else describe(s) for s in sources)


def takes_vectors(layer: object) -> bool:
    """Whether a layer is known to take `(b, features)`."""
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[0]
    return isinstance(layer, (nn.Linear, SparseLinear, nn.BatchNorm1d))


@torch.no_grad()
def evaluated(layer: nn.Module, x: Tensor) -> Any:
    """What a layer gives for x in evaluation; afterwards all its parts are in the modes that they were in."""
    modes = [(module, module.training) for module in layer.modules()]
    layer.eval()
    try:
        return layer(x)
    finally:
        for module, mode in modes:
            module.training = mode
