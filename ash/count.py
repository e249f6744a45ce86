"""`count`: what a model stores and computes, layer by layer; comparisons at equal size need it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from ash.checks import require
from ash.layers.node_graph import NodeGraph
from ash.operations import POOLS, node_operations, positions, read_shares
from ash.pattern import INT32_MAX
from ash.wirings.base import Wiring
from ash.wirings.hyper import HyperWiring


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is counted, of a layer or of a whole model.

    Attributes:
        values: stored values: of entries, and of every dense parameter that is not a bias.
        indices: stored index numbers: one for every entry of a sparse weight, its flattened position (in CSR
            the column; the rows are in the row pointers).
        index_bytes: bytes of CSR's columns: 4 each, or 8 where a dimension or the entries exceed int32.
        row_pointers: numbers of CSR's row pointers; not among the stored numbers.
        biases: numbers of biases; not among the stored numbers.
        flops: operations for one instance, 2 for each entry (a multiplication and an addition). Where a layer
            shares its weight over extra dimensions (pixels), for each of their positions if an example is given,
            and for one of them otherwise. Known for sparse layers, linear ones, convolutions, node graphs and, with
            an example, average pooling (2 for each number that it takes); 0 for other modules. An adaptive wiring's
            are those of one pass through each layer of its hypernetwork and of the entries that this emits. A node
            graph's are those of its edges and of the functions of the nodes that an edge reads, at every step of
            discrete time; the convolutions of its `entry` count for the input nodes that are read.
        training_numbers: what the `state_dict` of a wiring holds besides: means, anchors, scales, fixed
            columns, proposals, counts. The optimizer's state is not known here.
        dense_weights: numbers of the dense tensors of the same shapes.
    """

    values: int = 0
    indices: int = 0
    index_bytes: int = 0
    row_pointers: int = 0
    biases: int = 0
    flops: int = 0
    training_numbers: int = 0
    dense_weights: int = 0

    @property
    def stored_numbers(self) -> int:
        """All values and all index numbers of the inference form, row pointers and biases apart."""
        return self.values + self.indices

    @property
    def share(self) -> float:
        """Stored numbers for each weight of the dense tensors; NaN where there are none."""
        return self.stored_numbers / self.dense_weights if self.dense_weights else math.nan


NAMES = tuple(each.name for each in fields(Figures))


@dataclass(frozen=True, kw_only=True)
class LayerCount(Figures):
    """The figures of one layer; `name` is its path in the model, "" for the model itself."""

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Count(Figures):
    """The figures of a whole model, and of its layers; `str` of it is a table."""

    layers: tuple[LayerCount, ...]

    def __str__(self) -> str:
        head = ["layer", "", "stored numbers", "share", "index bytes", "row pointers", "biases", "FLOPs",
                "training numbers", "dense weights"]  # fmt: skip
        rows = [[each.name or "(model)", each.kind, *_cells(each)] for each in self.layers]
        return aligned([head, *rows, ["total", "", *_cells(self)]], text=2)


def count(model: nn.Module, example: Tensor | None = None) -> Count:
    """Count the stored numbers, index bytes and operations of a model, for each layer and in total.

    Args:
        model: any module.
        example: an input `(b, …)` of the model; one pass of it in evaluation tells at how many positions each layer
            is used, which its FLOPs are multiplied by.

    A sparse layer counts in its inference form, a value and one flattened index for every entry or rounded
    tuple, whether the value is learned or fixed, and whether or not two tuples round to the same entry. A
    module of any other kind counts with its parameters as they are and no index. Parameters and wirings that
    several layers share are stored once; their operations count in each.

    Raises `UserError` for a lazy module that has seen no input.
    """
    seen: set[int] = set()
    use = _Use(read_shares(model), {} if example is None else positions(model, example))
    layers = [_layer(name, module, seen, use) for name, module in _layers(model)]
    layers = [each for each in layers if any(getattr(each, name) for name in NAMES)]
    return Count(layers=tuple(layers), **_sum(layers))


@dataclass(frozen=True)
class _Use:
    """Which share of its channels a module computes, and at how many positions, by `id`; 1 where it is not known."""

    shares: dict[int, float]
    positions: dict[int, int]

    def of(self, module: nn.Module) -> int:
        """Times that each weight is used."""
        times = module.dynamics.times if isinstance(module, NodeGraph) else 1
        return times * self.positions.get(id(module), 1)

    def dense(self, module: nn.Module, flops: int) -> int:
        """Of a module's own weights, `flops` at one position."""
        if isinstance(module, POOLS):
            return 2 * self.positions.get(id(module), 0)
        return round(flops * self.shares.get(id(module), 1.0)) * self.of(module)


def aligned(rows: Sequence[Sequence[str]], text: int) -> str:
    """Rows of cells as a table, its first `text` columns left-aligned and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        left = [f"{cell:<{width}}" for cell, width in zip(row[:text], widths, strict=False)]
        right = [f"{cell:>{width}}" for cell, width in zip(row[text:], widths[text:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cells(figures: Figures) -> list[str]:
    f = figures
    numbers = (f.index_bytes, f.row_pointers, f.biases, f.flops, f.training_numbers, f.dense_weights)
    share = f"{100 * f.share:.3g} %" if f.dense_weights else "–"
    return [f"{f.stored_numbers:,}", share, *(f"{number:,}" for number in numbers)]


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module but the insides of wirings; a wiring itself only where it is the model."""
    inside = {id(part) for each in model.modules() if isinstance(each, Wiring) for part in each.modules()}
    for name, module in model.named_modules():
        if id(module) not in inside or module is model:
            yield name, module


def _layer(name: str, module: nn.Module, seen: set[int], use: _Use) -> LayerCount:
    """A module's own parameters and the wirings right below it; `seen` holds what is stored already."""
    if isinstance(module, Wiring):
        return LayerCount(name=name, kind=type(module).__name__, **_wiring(module, seen, 1))
    wirings = [each for each in module._modules.values() if isinstance(each, Wiring)]
    parts = [Figures(**_wiring(each, seen, use.of(module))) for each in wirings]
    kinds = "+".join(type(each).__name__ for each in wirings)
    kind = f"{type(module).__name__}({kinds})" if kinds else type(module).__name__
    own = _own(name, module, seen)
    own["flops"] = use.dense(module, own["flops"])
    return LayerCount(name=name, kind=kind, **_sum([Figures(**own), *parts]))


def _wiring(wiring: Wiring, seen: set[int], times: int) -> dict[str, int]:
    entries, rows, cols = wiring.stored_entries(), math.prod(wiring.out_shape), math.prod(wiring.in_shape)
    flops = 2 * entries * times
    if _again(wiring, seen):
        return {"flops": flops}
    if isinstance(wiring, HyperWiring):
        return _adaptive(wiring, flops)
    rest = sum(each.numel() for name, each in _held(wiring) if name not in wiring.inference_tensors)
    return {
        "values": entries,
        "indices": entries,
        "index_bytes": entries * (4 if max(rows, cols, entries) <= INT32_MAX else 8),
        "row_pointers": rows + 1,
        "flops": flops,
        "training_numbers": rest,
        "dense_weights": rows * cols,
    }


def _adaptive(wiring: HyperWiring, flops: int) -> dict[str, int]:
    """All that is learned is a stored value; index tuples are emitted and stored nowhere."""
    learned = sum(p.numel() for p in wiring.parameters())
    inside = [_own("", module, set()) for module in wiring.hypernetwork.modules()]
    return {
        "values": learned,
        "flops": flops + sum(each["flops"] for each in inside),
        "training_numbers": sum(each.numel() for _, each in _held(wiring)) - learned,
        "dense_weights": math.prod(wiring.shape),
    }


def _held(wiring: Wiring) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a wiring's `state_dict`, which is not taken itself: that would settle the wiring."""
    yield from wiring.named_parameters()
    for name, buffer in wiring.named_buffers():
        module, _, own = name.rpartition(".")
        if own not in wiring.get_submodule(module)._non_persistent_buffers_set:
            yield name, buffer


def _own(name: str, module: nn.Module, seen: set[int]) -> dict[str, int]:
    """Figures of the parameters that a module holds itself."""
    given = {key: p for key, p in module._parameters.items() if p is not None}
    kind = type(module).__name__
    lazy = any(isinstance(p, UninitializedParameter) for p in given.values())
    require(not lazy, f"{name or 'the model'}: a {kind} without shapes yet; run one batch first.")
    fresh = {key: p.numel() for key, p in given.items() if not _again(p, seen)}
    biases = sum(size for key, size in fresh.items() if "bias" in key)
    values = sum(fresh.values()) - biases
    product = isinstance(module, (nn.Linear, _ConvNd)) and "weight" in given
    flops = 2 * given["weight"].numel() if product else 0
    if isinstance(module, NodeGraph):
        flops = node_operations(module)
    return {"values": values, "biases": biases, "flops": flops, "dense_weights": values}


def _again(part: object, seen: set[int]) -> bool:
    """Whether `part` was here before; from now on it was."""
    before = id(part) in seen
    seen.add(id(part))
    return before


def _sum(parts: Sequence[Figures]) -> dict[str, int]:
    return {name: sum(getattr(each, name) for each in parts) for name in NAMES}
