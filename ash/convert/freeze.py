"""`freeze`: the inference form of a model, each sparse layer as CSR, condensed or dense, whichever is fastest."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ash.checks import check_finite, choose, require
from ash.layers.conv import SparseConv2d, crossover
from ash.layers.frozen import CONVOLUTION, PRODUCTS, FrozenConv2d, FrozenLayer, FrozenLinear
from ash.layers.linear import SparseLayer, SparseLinear
from ash.wirings.base import Wiring
from ash.wirings.frozen import FrozenWiring

Host = SparseLayer | SparseConv2d

_DENSE_ABOVE = 0.1
"""Density above which a linear layer is dense where nothing is measured: see `by_density`."""
_LARGEST_DENSE = 1 << 28
"""Numbers of a weight above which its dense form is not tried."""
_FEW = 16
"""Instances from which on the condensed form is not tried: it reads x in any order, and CSR was ahead at each size."""
_PADDED = 4
"""The condensed form is not tried where its tables would be longer than so many times the entries."""
_REPEATS = 5


class DenseLinear(nn.Linear):
    """`nn.Linear` in the place of a frozen `SparseLinear`: it ignores a condition and checks its input."""

    check_input = True

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`(*, in_features)` -> `(*, out_features)`."""
        if self.check_input:
            check_finite(x, self)
        return super().forward(x)


class DenseConv2d(nn.Conv2d):
    """`nn.Conv2d` in the place of a frozen `SparseConv2d`: it ignores a condition and checks its input."""

    check_input = True

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`(b, c, h, w)` -> `(b, o, oh, ow)`, or both without b."""
        if self.check_input:
            check_finite(x, self)
        return super().forward(x)


def freeze(model: nn.Module, example: Any = None, *, forms: Mapping[str, str] | None = None) -> nn.Module:
    """A copy of a model in its inference form: in evaluation mode, without anything that only training needs.

    Stochastic wirings are rounded; candidates, means and scales are dropped; every entry is stored once, as a value
    and a position, in buffers. No parameter asks for a gradient; those by the input flow. A module that has a method
    `frozen()`, such as `NodeGraph`, says itself what its inference form is. Adaptive wirings stay as they are, since
    their weight is known only when the input is.

    Args:
        model: any module; it is not changed.
        example: an input of the model, or a tuple of its arguments, of the batch size that is to be fast. Each layer
            is timed on what it sees of it, as CSR, condensed (for few instances) and dense, and takes what is fastest.
            Without an example, the density decides between CSR and dense (`by_density`).
        forms: `"csr"`, `"condensed"` (not of convolutions) or `"dense"` by a layer's name, to be taken without
            measuring. Condensed is a table of inputs and one of values, as many for each output, filled up with zeros:
            at batch 1, 2.2 to 5 times as fast as CSR on one core of an AVX-512 server, with numba.

    `torch.export` and `torch.compile` see frozen layers as plain operators, at any batch size, but not a `NodeGraph` or
    a `LayerGraph`, whose plan depends on their numbers. Dense and condensed layers are made of operators that ONNX has
    too (`torch.onnx.export(model, …, dynamo=True)`); CSR products are not. Export a model after its last change.

    Returns:
        The frozen model. Its attribute `forms` holds the form of each layer by name: `freeze(other, forms=m.forms)`
        makes a model of the same kind that loads its `state_dict`, whatever the numbers of entries.

    Raises `UserError` for forms that do not exist, or of layers that do not.
    """
    frozen = _replace(copy.deepcopy(model).eval().requires_grad_(False), {})
    hosts = {name: each for name, each in frozen.named_modules() if _is_host(each)}
    given = dict(forms or {})
    unknown = sorted(set(given) - set(hosts))
    known = ", ".join(map(repr, hosts)) or "none"
    require(not unknown, f"forms for {', '.join(map(repr, unknown))}; expected names of sparse layers: {known}.")
    seen = {} if example is None else _inputs(frozen, hosts, example)
    chosen = {name: given.get(name) or _choose(host, seen.get(name)) for name, host in hosts.items()}
    new = {id(host): _formed(host, chosen[name]) for name, host in hosts.items()}
    frozen = _swap(frozen, new)
    frozen.forms = chosen  # type: ignore[assignment]
    return frozen


def _is_host(module: nn.Module) -> bool:
    return isinstance(module, Host) and isinstance(module.wiring, FrozenWiring)


# --- from training to inference ------------------------------------------------------------------------


def _replace(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module with its wirings rounded, and with `frozen()` in the place of every module that has it.

    `done` holds the modules themselves: the id of one that is gone may be that of another soon.
    """
    if module in done:
        return done[module]
    done[module] = module  # a module that holds itself
    new = _rounded(module) if isinstance(module, Wiring) else _own_form(module)
    done[module] = done[new] = new
    if not isinstance(new, Wiring):
        for name, child in list(new._modules.items()):
            new._modules[name] = None if child is None else _replace(child, done)
    return new


def _rounded(wiring: Wiring) -> Wiring:
    weight = wiring.rounded()
    return wiring if weight is None or isinstance(wiring, FrozenWiring) else FrozenWiring(weight)


def _own_form(module: nn.Module) -> nn.Module:
    """What `module.frozen()` gives; the module itself where there is no such method or its wiring is adaptive."""
    own = getattr(module, "frozen", None)
    if not callable(own) or any(each.rounded() is None for each in module.modules() if isinstance(each, Wiring)):
        return module
    new: nn.Module = own()
    return new.eval().requires_grad_(False)


# --- CSR, condensed or dense --------------------------------------------------------------------------------------


def by_density(host: Host) -> str:
    """The form that is expected to be faster: dense above a tenth, and for a convolution above its `crossover`.

    Measured for matrices on one core of an AVX-512 server, float32, evaluation: 1,000 × 1,000, batch 64: CSR
    ahead at 0.1 (0.70 ms against 1.03), dense at 0.3 (1.46 against 1.01); batch 1: alike at 0.05; 4,000 × 4,000:
    alike at 0.1 (batch 1) and 0.2 (batch 64).
    """
    density = host.wiring.stored_entries() / math.prod(host.wiring.shape)
    if isinstance(host, SparseConv2d):
        limit = crossover(host.out_channels, math.prod(host.kernel_size)) if host.groups == 1 else 0.0
    else:
        limit = _DENSE_ABOVE
    return "dense" if density > limit and math.prod(host.wiring.shape) <= _LARGEST_DENSE else "csr"


def _choose(host: Host, arguments: tuple[Any, ...] | None) -> str:
    """The faster form for these arguments; by density where there are none."""
    large = math.prod(host.wiring.shape) > _LARGEST_DENSE
    grouped = isinstance(host, SparseConv2d) and host.groups > 1
    if arguments is None or large or grouped:
        return by_density(host)
    made = {form: _formed(host, form) for form in ("csr", "dense", *(["condensed"] if _few(host, arguments) else []))}
    times = {form: _seconds(lambda each=each: each(*arguments)) for form, each in made.items()}  # type: ignore[misc]
    return min(times, key=times.__getitem__)


def _few(host: Host, arguments: tuple[Any, ...]) -> bool:
    """Whether the condensed form is worth trying: for few instances, and outputs of which none has far more entries."""
    if isinstance(host, SparseConv2d):
        return False
    pattern = host.wiring().pattern
    longest = int(pattern.crow.diff().max())
    instances = arguments[0].numel() // math.prod(host.in_shape)
    return instances < _FEW and longest * pattern.shape[0] <= _PADDED * pattern.nnz


def _formed(host: Host, form: str) -> nn.Module:
    """The layer in a form; both share bias and entries."""
    choose("form", form, PRODUCTS)
    if isinstance(host, SparseConv2d):
        require(form != "condensed", "form 'condensed' of a convolution; expected 'csr' or 'dense'.")
        return _convolution(host, form)
    if not isinstance(host, SparseLinear):
        return FrozenLayer(host, form)
    if form != "dense":
        return FrozenLinear(host, form)
    return _dense(host, DenseLinear(host.in_features, host.out_features, host.bias is not None, device="meta"))


def _convolution(host: SparseConv2d, form: str) -> nn.Module:
    if form == "dense":
        options: dict[str, Any] = {name: getattr(host, name) for name in CONVOLUTION}
        return _dense(host, DenseConv2d(**options, bias=host.bias is not None, device="meta"))
    if host.groups == 1:
        return FrozenConv2d(host)
    host.backend = "auto"  # no product serves groups
    return host


def _dense(host: Host, new: DenseLinear | DenseConv2d) -> nn.Module:
    """`new` with the weight and the bias of a layer."""
    new.weight = nn.Parameter(host.wiring().to_dense().clone(), requires_grad=False)
    new.bias, new.check_input = host.bias, host.check_input
    return new.eval()


def _swap(model: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """The model with new modules in the place of those with these ids, wherever they occur."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            module._modules[name] = child if child is None else new.get(id(child), child)
    return new.get(id(model), model)


# --- measuring -----------------------------------------------------------------------------------------


def _inputs(model: nn.Module, hosts: Mapping[str, nn.Module], example: Any) -> dict[str, tuple[Any, ...]]:
    """What each host sees first when the model runs on the example."""
    seen: dict[str, tuple[Any, ...]] = {}

    def watch(name: str) -> Any:
        return lambda _, arguments: seen.setdefault(name, arguments) and None

    hooks = [host.register_forward_pre_hook(watch(name)) for name, host in hosts.items()]
    with torch.no_grad():
        model(*example) if isinstance(example, tuple) else model(example)
    for hook in hooks:
        hook.remove()
    return seen


def _seconds(call: Callable[[], Any]) -> float:
    """The shortest of some runs, after one that prepares."""
    times = []
    with torch.no_grad():
        for _ in range(1 + _REPEATS):
            begin = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    return min(times[1:])
