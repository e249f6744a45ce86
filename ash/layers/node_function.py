"""What the nodes of a graph do with the sum of their inputs. Nodes are channels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ash.checks import choose, require, unknown

Nodes = slice | Tensor
"""Some of the nodes: a slice, or their numbers `(m,)`."""


class NodeFunction(nn.Module):
    """A node's function in two halves: Z = emit(receive(sum of inputs)). Override one or both.

    In discrete and continuous time a node holds its state between the two: z ← receive(W · emit(z)). Nodes are
    evaluated some at a time, so that both take `nodes`, the numbers of the channels that they are given.
    A node's function must not depend on what other nodes hold.
    """

    operations: int = 0
    """Multiplications with additions of one node at one position, which `ash.count` counts."""

    def receive(self, total: Tensor, nodes: Nodes) -> Tensor:
        """`(b, m, *space)`, sums of inputs, -> `(b, m, *space)`, states."""
        return total

    def emit(self, state: Tensor, nodes: Nodes) -> Tensor:
        """`(b, m, *space)`, states, -> `(b, m, *space)`, what the nodes send along their edges."""
        return state

    def check(self, space: tuple[int, ...]) -> None:
        """Raise `UserError` where the function cannot serve channels of this shape; default: it can."""
        return

    def forward(self, total: Tensor, nodes: Nodes) -> Tensor:
        """Both halves."""
        return self.emit(self.receive(total, nodes), nodes)

    def select(self, nodes: Tensor) -> NodeFunction:
        """The function of a graph that has only these nodes, for evaluation."""
        return _Selected(self, nodes)


class _Selected(NodeFunction):
    """A function of which some nodes are left: their numbers are translated."""

    def __init__(self, function: NodeFunction, nodes: Tensor):
        super().__init__()
        self.function, self.operations = copy.deepcopy(function), function.operations
        self.register_buffer("kept", nodes)

    kept: Tensor

    def receive(self, total: Tensor, nodes: Nodes) -> Tensor:
        return self.function.receive(total, self.kept[nodes])

    def emit(self, state: Tensor, nodes: Nodes) -> Tensor:
        return self.function.emit(state, self.kept[nodes])


class Elementwise(NodeFunction):
    """A module without parameters, such as `nn.ReLU()`, that is the same for every node; `emit` applies it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def emit(self, state: Tensor, nodes: Nodes) -> Tensor:
        result: Tensor = self.module(state)
        return result


class ChannelNorm(nn.Module):
    """Instance or batch normalisation of n channels, of which any may be given, each with a scale and a shift."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n: int, kind: str, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.n, self.kind, self.eps, self.momentum = n, kind, eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(n))
            self.register_buffer("running_var", torch.ones(n))

    def forward(self, x: Tensor, nodes: Nodes) -> Tensor:
        weight, bias = self.weight[nodes], self.bias[nodes]
        if self.kind == "instance":
            return F.instance_norm(x, weight=weight, bias=bias, eps=self.eps)
        mean, var = self.running_mean[nodes], self.running_var[nodes]
        y = F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)
        if self.training and isinstance(nodes, Tensor):  # a slice is a view, numbers make a copy
            self.running_mean[nodes], self.running_var[nodes] = mean, var
        return y

    def extra_repr(self) -> str:
        return f"{self.n}, {self.kind}"


class ChannelFunction(NodeFunction):
    """Normalisation, ReLU and a depthwise 3×3 convolution, or some of these, in the order of its name.

    The state that a node holds in time is what stands after the normalisation.

    Args:
        n: nodes. order: `"norm_relu_conv"`, `"conv_norm_relu"`, `"norm_relu"` or `"relu"`. norm: `"instance"`,
            which vectors cannot have, or `"batch"`.

    Source: arXiv 1906.00586, appendix (norm → ReLU → convolution); its blog post has conv → norm → ReLU.
    """

    def __init__(self, n: int, order: str = "norm_relu_conv", norm: str = "instance"):
        super().__init__()
        require(norm in ("instance", "batch"), f"norm={norm!r}; expected 'instance' or 'batch'.")
        self.n, self.order = n, order
        steps = choose("node function", order, ORDERS)
        middle = steps.index("norm") + 1 if "norm" in steps else 0
        self.receiving, self.emitting = steps[:middle], steps[middle:]
        self.norm = ChannelNorm(n, norm) if "norm" in steps else None
        self.weight: nn.Parameter | None = None
        if "conv" in steps:
            self.operations = 9
            self.weight = nn.Parameter(torch.empty(n, 1, 3, 3).uniform_(-1 / 3, 1 / 3))

    def receive(self, total: Tensor, nodes: Nodes) -> Tensor:
        return self._apply_steps(self.receiving, total, nodes)

    def emit(self, state: Tensor, nodes: Nodes) -> Tensor:
        return self._apply_steps(self.emitting, state, nodes)

    def _apply_steps(self, steps: tuple[str, ...], x: Tensor, nodes: Nodes) -> Tensor:
        for step in steps:
            if step == "conv" and self.weight is not None:
                x = F.conv2d(x, self.weight[nodes], padding=1, groups=x.shape[1])
            elif step == "norm" and self.norm is not None:
                x = self.norm(x, nodes)
            else:
                x = F.relu(x)
        return x

    def check(self, space: tuple[int, ...]) -> None:
        require(
            self.weight is None or len(space) == 2,
            f"channels of shape {space} for the node function {self.order!r}; expected (height, width). "
            "Vectors can have function='norm_relu' with norm='batch', or 'relu'.",
        )
        instance = self.norm is not None and self.norm.kind == "instance"
        require(
            not instance or torch.Size(space).numel() > 1,
            f"channels of shape {space} for norm='instance'; expected more than one position. Choose norm='batch'.",
        )

    def select(self, nodes: Tensor) -> ChannelFunction:
        state = {name: value[nodes] for name, value in self.state_dict().items()}
        small = ChannelFunction(len(nodes), self.order, "instance" if self.norm is None else self.norm.kind)
        for value in state.values():
            small.to(value)
        small.load_state_dict(state)
        return small

    def extra_repr(self) -> str:
        return f"{self.n}, {self.order}"


ORDERS = {
    "norm_relu_conv": ("norm", "relu", "conv"),
    "conv_norm_relu": ("conv", "norm", "relu"),
    "norm_relu": ("norm", "relu"),
    "relu": ("relu",),
}


def make_function(function: str | nn.Module | Callable[[int], NodeFunction], n: int, norm: str) -> NodeFunction:
    """The function of n nodes: by name, one that is given, a factory called with n, or a module without parameters."""
    if isinstance(function, str):
        return ChannelFunction(n, function, norm)
    if isinstance(function, NodeFunction):
        return function
    if isinstance(function, nn.Module):
        state = [*function.parameters(), *function.buffers()]
        require(
            not state,
            f"the node function {type(function).__name__} has parameters or buffers; expected a NodeFunction, "
            "which knows which nodes it is given. Derive from ash.NodeFunction.",
        )
        return Elementwise(function)
    made = function(n)
    if not isinstance(made, NodeFunction):
        raise unknown("node function", type(made).__name__, ORDERS)
    return made
