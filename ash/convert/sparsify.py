"""`sparsify`: the linear and convolutional layers of an existing model, replaced by sparse ones."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ash.checks import UserError, choose, require
from ash.count import aligned
from ash.distributions import Distribution, LayerSize, allot
from ash.layers.conv import SparseConv2d
from ash.layers.host import WiringFactory
from ash.layers.linear import SparseLinear
from ash.wirings.base import Wiring
from ash.wirings.dynamic import RigLWiring, SETWiring
from ash.wirings.exchanging import DSRWiring, SNFSWiring
from ash.wirings.gates import GateWiring
from ash.wirings.gaussian import GaussianWiring
from ash.wirings.static import StaticWiring
from ash.wirings.top_k import TopKWiring

WIRINGS: dict[str, WiringFactory] = {
    "static": StaticWiring,
    "gaussian": GaussianWiring,
    "top_k": TopKWiring,
    "set": SETWiring,
    "rigl": RigLWiring,
    "snfs": SNFSWiring,
    "dsr": DSRWiring,
    "gate": GateWiring,
}
"""Wirings that a name stands for, with the defaults of their classes."""

Layer = nn.Linear | nn.Conv2d
Skip = str | type[nn.Module] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Replaced:
    """What `sparsify` did with a layer: its name, what it was, its weights, the entries it has now.

    `note` says why a layer that holds a weight stayed as it is; entries are then all of its weights.
    """

    name: str
    kind: str
    weights: int
    entries: int
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """What `sparsify` did; `str` of it is a table."""

    layers: tuple[Replaced, ...]

    @property
    def replaced(self) -> tuple[Replaced, ...]:
        """The layers that are sparse now."""
        return tuple(layer for layer in self.layers if not layer.note)

    def __str__(self) -> str:
        rows = [_cells(each.name or "(model)", each.kind, each.weights, each.entries, each.note)
                for each in self.layers]  # fmt: skip
        weights, entries = sum(each.weights for each in self.replaced), sum(each.entries for each in self.replaced)
        head = ["layer", "was", "note", "weights", "entries", "density"]
        return aligned([head, *rows, _cells("made sparse", "", weights, entries, "")], text=3)


def _cells(name: str, kind: str, weights: int, entries: int, note: str) -> list[str]:
    return [name, kind, note, f"{weights:,}", f"{entries:,}", f"{entries / weights:.4g}"]


def sparsify(
    model: nn.Module,
    wiring: str | WiringFactory = "rigl",
    *,
    density: float | None = 0.1,
    distribution: str | Distribution = "erk",
    skip: Skip | Sequence[Skip] = (),
    report: Callable[[Summary], object] | None = None,
) -> nn.Module:
    """Replace the linear layers and 2-d convolutions of a model by sparse ones, in place.

    Args:
        model: any module. What is replaced is exactly `nn.Linear` and `nn.Conv2d`; of subclasses nobody knows what
            they do with their weight (that of `nn.MultiheadAttention`'s output is one), so they stay.
        wiring: a name (`"static"`, `"rigl"`, `"set"`, `"snfs"`, `"dsr"`, `"top_k"`, `"gaussian"`, `"gate"`), or a
            class or factory of wirings, which is called with `out_shape, in_shape, k=…`.
        density: entries as a share of the weights of all layers replaced. None: the factory decides for itself (say
            `functools.partial(TopKWiring, budget=TopKBudget(0.1))`).
        distribution: how entries are shared out: `"uniform"`, `"er"`, `"erk"`, or a function, see `allot`.
        skip: layers that stay, and do not count: a pattern of names (`"layer4.*"`), a class, a predicate of name and
            module, or several of these.
        report: called with the `Summary` of what was done, for instance `print`.

    Returns:
        The model; where it is such a layer itself, the layer that replaces it.

    Biases are kept, and so are the weights at the entries that the wiring has (`TopKWiring`: all of them, and the
    largest exist). Make the optimizer afterwards: it would hold the parameters of before. A layer that is frozen
    (`requires_grad` False) stays frozen. Layers with hooks of their own stay dense, for hooks would be lost.

    Raises `UserError`, and leaves the model as it was, for a density outside (0, 1], an unknown wiring or
    distribution, a pattern that fits no module, a model without matching layers or with lazy ones, and layers that
    share a parameter with each other or another module.
    """
    layers, left = _matching(model, (skip,) if isinstance(skip, str) or callable(skip) else tuple(skip))
    _check_shared(model, layers)
    factories = _factories(layers, wiring, density, distribution)
    sparse = {name: _convert(layer, factories[name]) for name, layer in layers.items()}
    rows = _rows(model, layers, sparse, left)
    for name, new in sparse.items():
        _put(model, name, new)
    if report is not None:
        report(Summary(rows))
    return sparse.get("", model)


# --- which layers ---------------------------------------------------------------------------------------


def _matching(model: nn.Module, skip: Sequence[Skip]) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers to replace, by name, and of others that look alike why they stay."""
    named = dict(model.named_modules())
    for each in skip:
        known = not isinstance(each, str) or fnmatch.filter(named, each)
        require(bool(known), f"skip={each!r} fits no module; expected a pattern of names such as {_some(named)}.")
    layers: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for name, module in named.items():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        lazy = isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
        reason = "skipped" if any(_fits(name, module, each) for each in skip) else _reason(module)
        require(not lazy or reason == "skipped", f"{name or 'the model'} has no shapes yet; run one batch first.")
        if reason:
            left[name] = reason
        else:
            layers[name] = module
    require(
        bool(layers),
        f"no layer of {type(model).__name__} to make sparse; expected an nn.Linear or nn.Conv2d that is not skipped."
        + (f" These stay: {', '.join(f'{name} ({why})' for name, why in left.items())}." if left else ""),
    )
    return layers, left


def _some(named: dict[str, nn.Module]) -> str:
    names = [name for name, module in named.items() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return ", ".join(map(repr, names[:3])) or "'fc1'"


def _fits(name: str, module: nn.Module, skip: Skip) -> bool:
    if isinstance(skip, str):
        return fnmatch.fnmatchcase(name, skip)
    return isinstance(module, skip) if isinstance(skip, type) else skip(name, module)


def _reason(module: Layer) -> str:
    """Why a layer cannot be replaced; empty where it can."""
    if type(module) not in (nn.Linear, nn.Conv2d):
        return "a subclass"
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "has hooks" if any(hooks) else ""


def _check_shared(model: nn.Module, layers: dict[str, Layer]) -> None:
    """Raise `UserError`, naming them, where layers to replace share a parameter."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(f"{name}.{key}".lstrip("."))
    for layer in layers.values():
        for parameter in layer.parameters():
            names = holders[id(parameter)]
            require(
                len(names) == 1,
                f"{' and '.join(names)} are one shared (tied) parameter; expected layers with weights of their own, "
                "for sparse ones would not share it any more. Leave them out with skip=, or untie them.",
            )


# --- what replaces them ---------------------------------------------------------------------------------


def _factories(
    layers: dict[str, Layer], wiring: str | WiringFactory, density: float | None, distribution: str | Distribution
) -> dict[str, WiringFactory]:
    """For each layer a factory of its wiring, with its number of entries."""
    if isinstance(wiring, Wiring) or not (isinstance(wiring, str) or callable(wiring)):
        raise UserError(
            f"wiring={type(wiring).__name__} object; expected a name, a class or a factory, such as 'rigl' or "
            "functools.partial(TopKWiring, update=False): every layer needs a wiring of its own."
        )
    make = choose("wiring", wiring, WIRINGS) if isinstance(wiring, str) else wiring
    if density is None:
        return dict.fromkeys(layers, make)
    counts = allot({name: _size(layer) for name, layer in layers.items()}, density, distribution)
    return {name: functools.partial(make, k=k) for name, k in counts.items()}


def _size(layer: Layer) -> LayerSize:
    out, inputs, *kernel = layer.weight.shape
    return LayerSize(out, inputs, tuple(kernel))


def _convert(layer: Layer, factory: WiringFactory) -> SparseLinear | SparseConv2d:
    if isinstance(layer, nn.Linear):
        sparse: SparseLinear | SparseConv2d = SparseLinear.from_linear(layer, factory)
    else:
        sparse = SparseConv2d.from_conv(layer, factory)
    if not layer.weight.requires_grad:
        sparse.wiring.requires_grad_(False)
    if layer.bias is not None and sparse.bias is not None:
        sparse.bias.requires_grad_(layer.bias.requires_grad)
    return sparse


def _put(model: nn.Module, name: str, new: nn.Module) -> None:
    """Set the module of that name; a transformer layer must then not read the weights of its parts itself."""
    if not name:
        return
    path, _, own = name.rpartition(".")
    parent = model.get_submodule(path)
    parent._modules[own] = new
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0  # its fused inference path takes dense weights; the plain one serves


def _rows(
    model: nn.Module, layers: dict[str, Layer], sparse: dict[str, SparseLinear | SparseConv2d], left: dict[str, str]
) -> tuple[Replaced, ...]:
    """A row for every module that holds a weight matrix, in the model's order."""
    rows = []
    for name, module in model.named_modules():
        weights = sum(p.numel() for p in _matrices(module))
        kind = type(module).__name__
        if name in layers:
            rows.append(Replaced(name, kind, weights, sparse[name].wiring.stored_entries()))
        elif weights:
            rows.append(Replaced(name, kind, weights, weights, left.get(name, "dense")))
    return tuple(rows)


def _matrices(module: nn.Module) -> Iterator[Tensor]:
    return (p for p in module.parameters(recurse=False) if p.dim() > 1)
