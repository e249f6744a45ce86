"""`strip_dead_units`: a smaller model that computes the same, without the units that nothing reaches or reads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ash.convert.chains import Layer, Link, find_chains, inputs, outputs
from ash.count import aligned
from ash.layers.conv import SparseConv2d
from ash.layers.linear import SparseLinear
from ash.weight import SparseWeight
from ash.wirings.frozen import FrozenWiring
from ash.wirings.static import StaticWiring


@dataclass(frozen=True)
class StrippedLayer:
    """What became of a layer: units (or channels) before and after, and why none could go, if so."""

    name: str
    kind: str
    before: int
    after: int
    note: str = ""


@dataclass(frozen=True)
class Stripped:
    """What `strip_dead_units` did; `str` of it is a table.

    Attributes:
        layers: in the order of use.
        unread: for each layer that reads the model's input, or what was left alone, the inputs that it does not read.
    """

    layers: tuple[StrippedLayer, ...]
    unread: dict[str, tuple[int, ...]]

    @property
    def shape(self) -> str:
        """Units of each layer, such as "7-4-1"."""
        return "-".join(str(layer.after) for layer in self.layers)

    @property
    def removed(self) -> int:
        """How many units are gone."""
        return sum(layer.before - layer.after for layer in self.layers)

    def __str__(self) -> str:
        rows = []
        for each in self.layers:
            unread = len(self.unread.get(each.name, ()))
            note = "; ".join(filter(None, [each.note, f"{unread} inputs are not read" if unread else ""]))
            rows.append([each.name or "(model)", each.kind, note, f"{each.before:,}", f"{each.after:,}"])
        return aligned([["layer", "", "note", "units", "left"], *rows], text=3)


def strip_dead_units(model: nn.Module, *, report: Callable[[Stripped], object] | None = None) -> nn.Module:
    """A copy of a model without its dead units; in evaluation its outputs are the same.

    A unit (a neuron, or a channel of a convolution) is dead where all its weights are absent or zero: it has no
    inputs, and gives a constant, which is added to the biases of the layer that reads it; or where nothing reads it.
    What goes may leave others dead, so it is done again until nothing changes; a second call removes nothing.

    A layer loses units if one other layer alone reads it, with only activations, dropout, batch norm (its running
    statistics count) and, for channels, pooling or a flattening between. Everything else – residual and branching
    connections, layers that are used twice or share weights, groups, adaptive wirings – is left alone, as the
    report says. So are the model's inputs, which the report lists where nobody reads them, its outputs, and channels
    whose constant would meet a margin of zeros. Where all units of a layer are dead, one stays, without connections.

    Args:
        model: any module; it is not changed. Its forward pass is traced (`torch.fx`); batch norm behind a linear layer
            is taken to see `(b, units)`.
        report: called with what was done (`Stripped`), for instance `print`.

    Returns:
        The copy, in the mode of the model. Layers that lose something keep their entries as they are in evaluation, in
        a `StaticWiring` (a frozen one stays frozen), whose values can be trained on; the others stay as they are.
    """
    whole = nn.Sequential(copy.deepcopy(model))  # so that a model that is a layer itself is traced as one
    chains = find_chains(whole)
    states = {name: _State(layer) for name, layer in chains.layers.items()}
    while any(_settle(link, states) for link in chains.links):
        pass
    kept = {name: _stays(state.live_out) for name, state in states.items()}
    read = {link.target: _spread(kept[link.source], states[link.target]) for link in chains.links}
    for name, layer in chains.layers.items():
        _rebuild(layer, states[name], kept[name], read.get(name, torch.ones_like(states[name].live_in)))
    for link in chains.links:
        for module in link.modules:
            _slice(module, kept[link.source])
    if report is not None:
        report(_report(chains.layers, states, kept, set(read), chains.notes))
    small: nn.Module = whole[0]
    return small


class _State:
    """A layer's entries that are not zero, its bias, and which of its units and inputs are still alive."""

    def __init__(self, layer: Layer):
        self.layer = layer
        self.before = outputs(layer)
        device = next(iter([*layer.parameters(), *layer.buffers()])).device
        self.live_out = torch.ones(self.before, dtype=torch.bool, device=device)
        self.live_in = torch.ones(inputs(layer) // getattr(layer, "groups", 1), dtype=torch.bool, device=device)
        self.bias = torch.zeros(self.before, dtype=torch.float64, device=device)
        if layer.bias is not None:
            self.bias += layer.bias.detach()
        self.folded = False
        self.known = self._read()

    @torch.no_grad()
    def _read(self) -> bool:
        """Take the entries; False for an adaptive layer, which has none of its own."""
        layer = self.layer
        weight = layer.wiring.rounded() if isinstance(layer, SparseLinear | SparseConv2d) else None
        if weight is not None:
            weight = weight.coalesce()
        elif not isinstance(layer, SparseLinear | SparseConv2d):
            weight = SparseWeight.from_dense(layer.weight, 1)
        if weight is None:
            return False
        keep = weight.values != 0
        self.indices, self.values = weight.indices[keep], weight.values.detach()[keep]
        return True

    def alive(self) -> Bool[Tensor, " n"]:
        """Which entries join a live input to a live unit."""
        return self.live_out[self.indices[:, 0]] & self.live_in[self.indices[:, 1]]

    def pads_with_zeros(self) -> bool:
        """Whether there is a margin in which a constant channel is not constant."""
        layer = self.layer
        if isinstance(layer, nn.Linear | SparseLinear) or layer.padding_mode != "zeros":
            return False
        return any(layer.pads if isinstance(layer, SparseConv2d) else layer._reversed_padding_repeated_twice)


@torch.no_grad()
def _settle(link: Link, states: dict[str, _State]) -> bool:
    """Take away what is dead in one layer as things stand; whether anything was."""
    source, target = states[link.source], states[link.target]
    count, each = source.before, len(target.live_in) // source.before
    entries = target.alive()
    units = target.indices[entries, 1].div(each, rounding_mode="floor")
    fed = torch.bincount(source.indices[source.alive(), 0], minlength=count) > 0
    read = torch.bincount(units, minlength=count) > 0
    like = source.layer.bias if source.layer.bias is not None else source.values
    constants = link.constants(source.bias.to(like.dtype)).double()
    constant = source.live_out & ~fed & read
    if target.pads_with_zeros():
        constant &= constants == 0
    share = target.values[entries].double() * torch.where(constant, constants, 0.0)[units]
    target.bias.index_add_(0, target.indices[entries, 0], share)
    target.folded |= bool((share != 0).any())
    dead = source.live_out & (constant | ~read)
    source.live_out &= ~dead
    target.live_in &= source.live_out.repeat_interleave(each)
    return bool(dead.any())


def _stays(live: Tensor) -> Bool[Tensor, " units"]:
    """Units that stay: the live ones, and the first where there is none."""
    if bool(live.any()):
        return live
    return torch.arange(len(live), device=live.device) == 0


def _spread(kept: Tensor, target: _State) -> Bool[Tensor, " inputs"]:
    return kept.repeat_interleave(len(target.live_in) // len(kept))


# --- the smaller layers --------------------------------------------------------------------------------


@torch.no_grad()
def _rebuild(layer: Layer, state: _State, out: Tensor, into: Tensor) -> None:
    """Give a layer the units and inputs that stay, the entries that are alive, and the biases with what was folded."""
    whole = bool(state.live_out.all()) and bool(state.live_in.all())
    if not state.known or (whole and not state.folded):
        return
    if layer.bias is not None or state.folded:
        learns = layer.bias is None or layer.bias.requires_grad
        like = layer.bias if layer.bias is not None else state.values
        layer.bias = nn.Parameter(state.bias[out].to(like.dtype), requires_grad=learns)
    if whole:
        return
    if isinstance(layer, SparseLinear | SparseConv2d):
        _rewire(layer, state, out, into)
    else:
        dead = ~(state.live_out[:, None] & state.live_in)
        weight = layer.weight.masked_fill(dead.reshape(*dead.shape, *[1] * (layer.weight.dim() - 2)), 0.0)
        layer.weight = nn.Parameter(weight[out][:, into].clone(), requires_grad=layer.weight.requires_grad)
    _resize(layer, int(out.sum()), int(into.sum()))


def _rewire(layer: SparseLinear | SparseConv2d, state: _State, out: Tensor, into: Tensor) -> None:
    wiring, alive = layer.wiring, state.alive()
    indices = state.indices[alive].clone()
    for column, stays in ((0, out), (1, into)):
        indices[:, column] = (stays.cumsum(0) - 1)[indices[:, column]]
    out_shape, in_shape = (int(out.sum()),), (int(into.sum()), *wiring.in_shape[1:])
    values = state.values[alive]
    if isinstance(wiring, FrozenWiring):
        layer.wiring = FrozenWiring(SparseWeight(indices, values, out_shape, in_shape))
        return
    new = StaticWiring(out_shape, in_shape, indices=indices, device=values.device, dtype=values.dtype)
    new.values.copy_(values)
    new.values.requires_grad_(any(p.requires_grad for p in wiring.parameters()))
    layer.wiring = new.train(wiring.training)


def _resize(layer: Layer, out: int, into: int) -> None:
    if isinstance(layer, SparseLinear):
        layer.in_shape, layer.out_shape = (into,), (out,)
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = into, out
    else:
        layer.in_channels, layer.out_channels = into, out


def _slice(module: nn.Module, kept: Tensor) -> None:
    """Keep a batch norm's or activation's numbers of the units that stay."""
    for name, each in [*module._parameters.items(), *module._buffers.items()]:
        if each is not None and each.dim() == 1 and len(each) == len(kept) and len(kept) > 1:
            new = each.detach()[kept]
            setattr(module, name, nn.Parameter(new, each.requires_grad) if isinstance(each, nn.Parameter) else new)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        module.num_features = int(kept.sum())
    if isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


# --- the report ----------------------------------------------------------------------------------------


def _report(
    layers: dict[str, Layer],
    states: dict[str, _State],
    kept: dict[str, Tensor],
    linked: set[str],
    notes: dict[str, str],
) -> Stripped:
    rows, unread = [], {}
    for name, layer in layers.items():
        state, own = states[name], name.partition(".")[2]
        rows.append(StrippedLayer(own, type(layer).__name__, state.before, int(kept[name].sum()), notes.get(name, "")))
        if name not in linked and state.known:
            used = torch.zeros_like(state.live_in)
            used[state.indices[state.alive(), 1]] = True
            unread[own] = tuple((~used).nonzero().flatten().tolist())
    return Stripped(tuple(rows), {name: each for name, each in unread.items() if each})
