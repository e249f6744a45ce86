"""`LayerGraph`: layers of any kind, each fed by all earlier ones through connections that a wiring decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash.checks import check_finite, choose, require, shape
from ash.layers import merging
from ash.layers.dense import materialise
from ash.layers.graph_plan import LayerFactory, Plan, describe
from ash.layers.host import WiringFactory, make_wiring
from ash.layers.merging import Shape, Target
from ash.template import Mask
from ash.weight import SparseWeight
from ash.wirings.base import Wiring
from ash.wirings.gates import GateWiring

MERGES = {"concat": False, "sum": False, "max": False, "squeeze": True}
FLATTENS = {"flatten": False, "pool": True}


class LayerGraph(nn.Module):
    """Layers in an order; what feeds each of them is merged from the outputs of earlier layers and the input.

    The connections are a weight tensor W of targets × sources. Row t is `layers[t]`; column 0 is the input, column s
    the output of `layers[s - 1]`. The output of the graph is that of the last layer.

    Args:
        layers: modules, or functions that make one from the shape of what feeds it (one instance's, without b).
            What is no source of its own (a pooling, a dropout) belongs in an `nn.Sequential` with what precedes it.
        in_shape: shape of an input instance, `(c, *spatial)` or `(features,)`.
        wiring: a wiring of that shape, or a factory, which gets the admissible connections too; by default
            `GateWiring(values="ones")`.
        unique: a weight for each map of a source: W is targets × sources × maps (those of the largest source).
        merge: `"concat"`, `"sum"`, `"max"` (an absent connection is left out, not counted as zero), or `"squeeze"`,
            a learned 1 × 1 combination of the concatenation to `squeeze` maps, one number or one for each layer.
        resize: `"bilinear"`, `"nearest"`, `"bicubic"` or `"area"` bring maps to the smallest extent of all sources of a
            target, without anti-aliasing; `"pad"` surrounds them with zeros up to the largest.
        fill_maps: let `sum` and `max` merge different numbers of maps, taking those that a source lacks as absent.
        flatten: how maps feed a layer that takes vectors: `"flatten"`, or `"pool"`, the mean of each map. A vector
            that feeds maps is constant over each map.
        flat: the numbers of layers that take vectors; `nn.Linear`, `SparseLinear` and an `nn.Sequential` that begins
            with one are known.
        direct: (target, source) pairs of W that are always there with weight 1 and are no connection; by default the
            input feeds the first layer.
        steps: passes over the layers. Beyond 1 there are connections from later layers to earlier ones too, which
            carry the output of the pass before and are absent in the first one; their maps are brought to the size
            that the sources in order give. No layer is connected to itself.
        maps: numbers of maps of the layers' outputs, needed for `concat` and `squeeze` with more than one step only.

    Shapes: `(b, *in_shape)` -> `(b, …)`, the last layer's. A wiring with a weight per instance sees `condition`, or
    the input itself.

    Every connection that the wiring lets exist is computed in training, and those that do not where the wiring
    asks for their gradient; that of an absent connection of `max` is 0. Where no gradient of W is asked for,
    connections of weight zero cost nothing (but in `max`, where they count as zero); in evaluation neither do layers
    that no path connects to the output.

    Raises `UserError` for options that do not fit and, naming layers and shapes, for a merge that cannot work.

    Source: the blog post on 'Differentiable Architecture', which has sigmoid gates and concatenation, and proposes the
    other merges and connections back. Departures: any wiring.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module | LayerFactory],
        in_shape: int | Sequence[int],
        *,
        wiring: Wiring | WiringFactory | None = None,
        unique: bool = False,
        merge: str = "concat",
        resize: str = "bilinear",
        squeeze: int | Sequence[int] | None = None,
        fill_maps: bool = False,
        flatten: str = "flatten",
        flat: Sequence[int] = (),
        direct: Sequence[tuple[int, int]] = ((0, 0),),
        steps: int = 1,
        maps: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_shape, self.check_input = shape("in_shape", in_shape), True
        self.merge, self.resize_mode, self.unique, self.steps = merge, resize, unique, steps
        squeezed = choose("merge", merge, MERGES)
        require(
            squeezed == (squeeze is not None),
            f"merge={merge!r}, squeeze={squeeze}; expected squeeze, a number of maps, with merge='squeeze' alone.",
        )
        plan = Plan(
            number=len(layers),
            merge=merge,
            resize=resize,
            squeeze=squeeze,
            fill_maps=fill_maps,
            pooled=choose("way to flatten", flatten, FLATTENS),
            flat=tuple(flat),
            direct=tuple((int(t), int(s)) for t, s in direct),
            steps=steps,
            maps=None if maps is None else tuple(maps),
        )
        self.plan = plan
        made, self.targets, self.shapes = plan.trace(layers, self.in_shape, device, dtype)
        self.layers = nn.ModuleList(made)
        self.squeezes = nn.ModuleList(plan.squeezes(self.targets, device, dtype))
        self.wiring = self._wired(partial(GateWiring, values="ones") if wiring is None else wiring, device, dtype)

    def _wired(
        self, wiring: Wiring | WiringFactory, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Wiring:
        """The wiring, made for the connections that may exist, or one that knows no others."""
        possible = self._possible()
        sizes = tuple(possible.shape)
        if not isinstance(wiring, Wiring):
            admissible = Mask(possible)
            return make_wiring(wiring, sizes[:1], sizes[1:], admissible=admissible, device=device, dtype=dtype)
        made = make_wiring(wiring, sizes[:1], sizes[1:])
        require(
            not bool(made.admissible.contains((~possible).nonzero()).any()),
            "a wiring with connections that cannot be, such as from a layer to itself; give a factory, which gets the "
            "admissible ones.",
        )
        return made

    def _possible(self) -> Tensor:
        """Which entries of W may exist."""
        possible = torch.zeros(len(self.layers), self.plan.sources, dtype=torch.bool)
        for t, s in self.plan.connections():
            possible[t, s] = True
        if not self.unique:
            return possible
        maps = torch.tensor([each[0] for each in self.shapes[: self.plan.sources]])
        return possible.unsqueeze(-1) & (torch.arange(int(maps.max())) < maps.unsqueeze(-1))

    def connections(self) -> dict[tuple[int, int], str]:
        """The connections that may exist, (row, column) of W, with a name for each such as `'input → layers[1]'`."""
        return {(t, s): f"{describe(s)} → layers[{t}]" for t, s in self.plan.connections()}

    def forward(self, x: Float[Tensor, "b ..."], condition: Tensor | None = None) -> Float[Tensor, "b ..."]:
        """`(b, *in_shape)` -> `(b, …)`."""
        require(
            tuple(x.shape[1:]) == self.in_shape,
            f"an input of shape {tuple(x.shape)}; expected (b, {', '.join(map(str, self.in_shape))}).",
        )
        if self.check_input:
            check_finite(x, self)
        weight = self.wiring(x if condition is None else condition)
        draw = _Draw(self.plan, self.wiring, weight)
        states = _States(x, self.resize_mode, self.plan.pooled)
        order = range(len(self.layers)) if self.training else self._needed(draw)
        for _ in range(self.steps):
            for t in order:
                states.put(t + 1, self.layers[t](self._fed(t, states, draw)))
        return states.known[len(self.layers)]

    def _needed(self, draw: _Draw) -> list[int]:
        """The layers from which a path leads to the output, in order."""
        needed, open_ends = set(), [len(self.layers) - 1]
        while open_ends:
            t = open_ends.pop()
            if t not in needed:
                needed.add(t)
                open_ends += [s - 1 for s in self.targets[t].sources if s and draw.used(t, s)]
        return sorted(needed)

    def _fed(self, t: int, states: _States, draw: _Draw) -> Tensor:
        """What feeds layer t, `(b, *targets[t].shape)`."""
        target = self.targets[t]
        here = [s for s in target.sources if s in states.known and draw.used(t, s)]
        like = states.known[0]
        if not here:
            return like.new_zeros(like.shape[0], *target.shape)
        parts = [draw.weigh(t, s, states.fitted(s, target)) for s in here]
        if self.merge == "max":
            present = [_spread(draw.present(t, s, x), x, target) for s, x in zip(here, parts, strict=True)]
            return merging.largest([_flat(x, target) for x in parts], present, target.shape[0])
        parts = [_flat(x, target) for x in parts]
        if self.merge == "sum":
            return merging.total(parts, target.shape[0])
        return self._joined(t, dict(zip(here, parts, strict=True)))

    def _joined(self, t: int, parts: dict[int, Tensor]) -> Tensor:
        """The parts side by side, zeros for those that are missing; squeezed without them."""
        target, squeeze = self.targets[t], self.squeezes[t]
        if isinstance(squeeze, nn.Linear):
            columns = squeeze.weight.split(target.widths, 1)
            chosen = torch.cat([c for s, c in zip(target.sources, columns, strict=True) if s in parts], 1)
            x = torch.cat(list(parts.values()), 1)
            return torch.einsum("oc,bc...->bo...", chosen.to(x.dtype), x)
        like = next(iter(parts.values()))
        empty = like.new_zeros(()).expand(like.shape[0], *[1] * (like.dim() - 1))
        sized = [
            parts[s] if s in parts else empty.expand(-1, w, *like.shape[2:])
            for s, w in zip(target.sources, target.widths, strict=True)
        ]
        return sized[0] if len(sized) == 1 else torch.cat(sized, 1)

    def extra_repr(self) -> str:
        text = f"in_shape={self.in_shape}, merge={self.merge!r}, resize={self.resize_mode!r}, unique={self.unique}"
        return text if self.steps == 1 else f"{text}, steps={self.steps}"


def _flat(x: Tensor, target: Target) -> Tensor:
    return x.flatten(1) if target.flat and x.dim() > 2 else x


def _spread(where: Tensor | None, x: Tensor, target: Target) -> Tensor | None:
    return None if where is None else _flat(where.expand_as(x), target)


class _States:
    """The outputs known so far, by column of W, and what they are at the sizes that were asked for."""

    def __init__(self, x: Tensor, mode: str, pooled: bool):
        self.known: dict[int, Tensor] = {0: x}
        self.mode, self.pooled = mode, pooled
        self._fitted: dict[int, dict[tuple[Shape | None, bool], Tensor]] = {0: {}}

    def put(self, s: int, x: Tensor) -> None:
        self.known[s], self._fitted[s] = x, {}

    def fitted(self, s: int, target: Target) -> Tensor:
        key = (target.size, target.flat)
        if key not in self._fitted[s]:
            self._fitted[s][key] = merging.fit(self.known[s], target, self.mode, self.pooled)
        return self._fitted[s][key]


class _Draw:
    """The weights of the connections of one forward pass."""

    def __init__(self, plan: Plan, wiring: Wiring, weight: SparseWeight):
        self.dense = materialise(wiring, weight)
        self.lead = int(weight.per_instance)
        self.direct = set(plan.direct)
        self.exists = _places(weight)
        learns = torch.is_grad_enabled() and self.dense.requires_grad
        everything = learns and (wiring.wants_factors or weight.candidate is not None)
        used = self.exists if learns or plan.merge == "max" else self.exists & (self.dense.detach() != 0)
        found = torch.stack([_over(used, self.lead, torch.any), _over(self.exists, self.lead, torch.all)])
        some, self.whole = found.tolist()
        self.some = [[True] * len(row) for row in some] if everything else some

    def used(self, t: int, s: int) -> bool:
        """Whether the connection is to be computed."""
        return (t, s) in self.direct or self.some[t][s]

    def _at(self, tensor: Tensor, t: int, s: int, like: Tensor) -> Tensor:
        """The part of W, or of what exists, that belongs to a connection, so that it broadcasts with (b, c, …)."""
        part = tensor[:, t, s] if self.lead else tensor[t, s].unsqueeze(0)
        part = part[:, : like.shape[1]] if part.dim() == 2 else part.unsqueeze(1)
        return part.reshape(*part.shape, *[1] * (like.dim() - 2))

    def weigh(self, t: int, s: int, x: Tensor) -> Tensor:
        return x if (t, s) in self.direct else x * self._at(self.dense, t, s, x).to(x.dtype)

    def present(self, t: int, s: int, x: Tensor) -> Tensor | None:
        """Where the connection exists, as it broadcasts with x; None: everywhere."""
        return None if (t, s) in self.direct or self.whole[t][s] else self._at(self.exists, t, s, x)


def _places(weight: SparseWeight) -> Tensor:
    """True where the weight has an entry, of the shape of the dense tensor."""
    indices = weight.indices
    if weight.per_instance:
        b = indices.shape[0]
        which = torch.arange(b, device=indices.device).reshape(b, 1, 1).expand(*indices.shape[:2], 1)
        indices = torch.cat([which, indices], -1).flatten(0, 1)
    lead = weight.values.shape[:-1]
    places = torch.zeros(*lead, *weight.shape, dtype=torch.bool, device=indices.device)
    places[tuple(indices.unbind(-1))] = True
    return places


def _over(tensor: Tensor, lead: int, how: Callable[..., Tensor]) -> Tensor:
    """Reduced over instances and maps to (targets, sources)."""
    tensor = tensor.unsqueeze(0) if not lead else tensor
    return how(how(tensor, 0).flatten(2) if tensor.dim() > 3 else how(tensor, 0).unsqueeze(-1), -1)
