"""Chains of layers in a model: which layer alone feeds which, through nothing that mixes units or channels."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ash.layers.conv import SparseConv2d
from ash.layers.linear import SparseLinear

Layer = nn.Linear | nn.Conv2d | SparseLinear | SparseConv2d

_BY_UNIT: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanhshrink, nn.Threshold, nn.PReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout,
    nn.BatchNorm1d, nn.BatchNorm2d,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)
_FUNCTIONS = {
    torch.relu, torch.tanh, torch.sigmoid, F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu,
    F.mish, F.tanh, F.sigmoid, F.logsigmoid, F.hardtanh, F.hardsigmoid, F.hardswish, F.softplus, F.softsign,
}  # fmt: skip
_METHODS = {"relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_"}
_POOL_FUNCTIONS = {F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout}


@dataclass
class Link:
    """A layer, the layer that alone reads it, and what lies between.

    Attributes:
        source, target: names of the two layers. units: outputs of the first.
        steps: what happens to each unit (or channel) on the way, for itself, in evaluation.
        modules: the modules among these that hold numbers for each unit.
        flattened: whether channels are laid out as columns: then each has several.
    """

    source: str
    units: int
    target: str = ""
    steps: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    flattened: bool = False

    @torch.no_grad()
    def constants(self, values: Tensor) -> Tensor:
        """What the target sees of units `(units,)` of constant output, `(units,)`."""
        rest = 2 if any(isinstance(each, nn.BatchNorm2d) for each in self.modules) else 0
        x = values.reshape(1, -1, *[1] * rest)
        for step in self.steps:
            x = step(x)
        return x.flatten()


@dataclass
class Chains:
    """The layers of a model in the order of use, the links between them, and why others are not linked."""

    layers: dict[str, Layer]
    links: list[Link]
    notes: dict[str, str]


def find_chains(model: nn.Module) -> Chains:
    """Follow every linear layer and convolution of a model to the one that reads it.

    The model is the only part of a sequence, so that one that is a layer itself is seen from outside too. One whose
    course of computation cannot be traced, because it depends on its input, has no links.
    """
    graph, problem = _traced(model)
    if graph is None:
        found = {name: each for name, each in model.named_modules() if _is_layer(each)}
        return Chains(found, [], dict.fromkeys(found, problem))
    modules = dict(model.named_modules(remove_duplicate=False))
    nodes = {node.target: node for node in graph.nodes if node.op == "call_module" and _is_layer(modules[node.target])}
    shared = _shared(model, graph)
    chains = Chains({name: modules[name] for name in nodes}, [], {})
    for name, node in nodes.items():
        reason = _unfit(modules[name], name in shared)
        link = None if reason else Link(name, outputs(modules[name]))
        if link is not None:
            reason = _follow(node, link, modules, shared)
        if link is not None and link.target:
            chains.links.append(link)
        elif reason:
            chains.notes[name] = reason
    return chains


# --- the course of computation -------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Does not look into layers of torch and of this library, nor, if `opaque`, into any module but a sequence."""

    def __init__(self, opaque: bool):
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential):
            return False
        return self.opaque or type(m).__module__.startswith("ash.") or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> tuple[fx.Graph | None, str]:
    """The graph of a model, or None and why there is none."""
    problem = ""
    for opaque in (False, True):
        try:
            return _Tracer(opaque).trace(model), ""
        except Exception as error:  # a forward pass may do anything, and fail in any way on a stand-in of its input
            line = str(error).partition("\n")[0]
            problem = problem or f"not traced: {type(error).__name__}: {line}"
    return None, problem


def _shared(model: nn.Module, graph: fx.Graph) -> set[str]:
    """Names of modules that are used more than once, or whose parameters others use too."""
    names = list(model.named_modules(remove_duplicate=False))
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    objects = Counter(id(module) for _, module in names)
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    wirings = Counter(id(each.wiring) for each in model.modules() if isinstance(each, SparseLinear | SparseConv2d))
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    found = {name for name, module in names if calls[name] > 1 or objects[id(module)] > 1 or name in read}
    found |= {name for name, module in names if any(owners[id(p)] > 1 for p in module._parameters.values())}
    return found | {name for name, module in names if wirings[id(getattr(module, "wiring", None))] > 1}


def _is_layer(module: nn.Module) -> TypeGuard[Layer]:
    return isinstance(module, nn.Linear | nn.Conv2d | SparseLinear | SparseConv2d)


def _unfit(module: nn.Module, shared: bool) -> str:
    """Why a layer cannot lose units; empty where it can."""
    if shared:
        return "used more than once"
    if getattr(module, "groups", 1) != 1:
        return "has groups"
    if isinstance(module, SparseLinear | SparseConv2d) and module.wiring.rounded() is None:
        return "is adaptive"
    known = type(module).__module__.startswith(("torch.nn.modules.", "ash."))
    return "" if known and not getattr(module, "parametrizations", None) else "is of a kind of its own"


# --- from a layer to its reader ------------------------------------------------------------------------


def _follow(node: fx.Node, link: Link, modules: dict[str, nn.Module], shared: set[str]) -> str:
    """Fill the link up to the layer that reads it; why there is none, or "" at the end of the model."""
    spatial = not isinstance(modules[link.source], nn.Linear | SparseLinear)
    while True:
        users = list(node.users)
        if len(users) != 1:
            return f"its output is used {len(users)} times"
        node, before = users[0], node
        if node.op == "output":
            return "" if node.args[0] is before else "its output is one of several"
        if list(node.all_input_nodes) != [before] or node.args[0] is not before:
            return f"feeds {_name(node, modules)}, with others"
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if module is not None and _is_layer(module):
            return _reach(link, str(node.target), module, shared, spatial)
        if module is not None and str(node.target) in shared and any(True for _ in module.parameters()):
            return f"feeds {_name(node, modules)}, which is used more than once"
        if not _step(link, node, module, spatial):
            return f"feeds {_name(node, modules)}"


def _name(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return getattr(node.target, "__name__", str(node.target))


def _reach(link: Link, name: str, layer: Layer, shared: set[str], spatial: bool) -> str:
    """Make `layer` the link's target, if it fits."""
    reason, own = _unfit(layer, name in shared), name.partition(".")[2]
    if reason:
        return f"feeds {own}, which {reason}"
    linear, size = isinstance(layer, nn.Linear | SparseLinear), inputs(layer)
    fits = size % link.units == 0 if link.flattened else size == link.units
    if linear != (link.flattened or not spatial) or not fits:
        return f"feeds {own}, which reads another dimension"
    link.target = name
    return ""


def _step(link: Link, node: fx.Node, module: nn.Module | None, spatial: bool) -> bool:
    """Take one operation into the link; False where it is not known to keep units apart."""
    if _flattens(node, module):
        fits = spatial and not link.flattened
        link.flattened = True
        return fits
    if _pools(node, module):
        return spatial and not link.flattened
    if module is not None:
        return _take(link, module)
    others = node.args[1:]
    if node.op == "call_function" and node.target in _DROPOUTS:
        return True
    if node.op == "call_function" and node.target in _FUNCTIONS:
        call: Any = node.target
        given = {name: value for name, value in node.kwargs.items() if name != "inplace"}
        link.steps.append(lambda x: call(x, *others, **given))
        return True
    if node.op == "call_method" and node.target in _METHODS:
        method = str(node.target).rstrip("_")
        link.steps.append(lambda x: getattr(x, method)())
        return True
    return False


def _take(link: Link, module: nn.Module) -> bool:
    if type(module) not in _BY_UNIT:
        return False
    norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if norm and (module.running_mean is None or link.flattened or module.num_features != link.units):
        return False
    if isinstance(module, nn.PReLU) and module.num_parameters > 1 and link.flattened:
        return False
    still = copy.deepcopy(module).eval()
    if hasattr(still, "inplace"):
        still.inplace = False  # type: ignore[assignment]
    link.steps.append(still)
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        link.modules.append(module)
    return True


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether all dimensions but the first become one."""
    if module is not None:
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    rest = (*node.args[1:], *node.kwargs.values())
    return (node.target is torch.flatten or node.target == "flatten") and rest == (1,)


def _pools(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether neighbouring pixels of a channel are pooled, such that a constant channel stays constant."""
    if isinstance(module, nn.AvgPool2d):
        return module.padding in (0, (0, 0)) and module.divisor_override is None
    if isinstance(module, nn.MaxPool2d | nn.AdaptiveMaxPool2d):
        return not module.return_indices
    if module is not None:
        return isinstance(module, _POOLS)
    return node.op == "call_function" and node.target in _POOL_FUNCTIONS


def outputs(layer: Layer) -> int:
    """Units or channels that a layer gives."""
    return layer.out_features if isinstance(layer, nn.Linear | SparseLinear) else layer.out_channels


def inputs(layer: Layer) -> int:
    """Units or channels that a layer reads."""
    return layer.in_features if isinstance(layer, nn.Linear | SparseLinear) else layer.in_channels
