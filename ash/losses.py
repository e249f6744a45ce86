"""Terms that are added to a loss: a layer's reconstruction of its input, and penalties on scales and on open gates.

Source: `Sparse, Adaptive Hypernetworks` (2017), which adds a reconstruction term of 0.01 for every layer, because
initialisation is hard, and warns of scales that vanish too fast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash.checks import UserError, positive, require
from ash.contract import contract
from ash.layers.linear import SparseLayer
from ash.tuples import IndexTuples
from ash.weight import SparseWeight
from ash.wirings.gates import GateWiring


class Reconstruction(nn.Module):
    """A sparse layer that is also judged by how well its own weight, transposed, gives back what it was given.

    In training, `forward` keeps the mean of (Wᵀ · decode(y) + bias − x)² as `loss`, with the W of the same draw:
    one contraction more, and no further weights but the bias. `reconstruction_loss(model)` adds up the terms.

    Args:
        layer: the layer, which works as before; a weight per instance is transposed per instance.
        decode: what y passes through on its way back, such as the activation that follows the layer; by default
            nothing.
        bias: learn one number for every input position, `(*in_shape,)`.

    Attributes:
        loss: the term of the last forward pass in training, a scalar with gradients; None before, and after a
            forward pass in evaluation. It holds the graph of that pass.

    Shapes: `(b, *in_shape, *extra)` -> `(b, *out_shape, *extra)`, as the layer.
    """

    loss: Tensor | None

    def __init__(self, layer: nn.Module, decode: Callable[[Tensor], Tensor] | None = None, bias: bool = True):
        super().__init__()
        if not isinstance(layer, SparseLayer):
            raise UserError(f"a layer of type {type(layer).__name__}; expected a SparseLayer, or a SparseLinear.")
        self.layer, self.decode, self.loss = layer, decode, None
        self.bias: nn.Parameter | None
        like = next((p for p in layer.parameters() if p.is_floating_point()), torch.zeros(()))
        start = torch.zeros(layer.in_shape, device=like.device, dtype=like.dtype)
        self.register_parameter("bias", nn.Parameter(start) if bias else None)

    def forward(self, x: Float[Tensor, "..."], condition: Tensor | None = None) -> Float[Tensor, "..."]:
        """What the layer gives; in training, `loss` is the term of this batch."""
        self.loss = None
        if not self.training:
            return self.layer(x, condition)
        drawn: list[SparseWeight] = []
        with self.layer.wiring.register_forward_hook(partial(_keep, drawn)):
            y: Tensor = self.layer(x, condition)
        back = contract(drawn[0].transpose(), y if self.decode is None else self.decode(y), self.layer.backend)
        if self.bias is not None:
            extra = x.dim() - 1 - len(self.layer.in_shape)
            back = back + self.bias.reshape(*self.layer.in_shape, *[1] * extra)
        self.loss = (back - x).square().mean()
        return y


def _keep(drawn: list[SparseWeight], module: nn.Module, inputs: object, output: SparseWeight) -> None:
    drawn.append(output)


def reconstruction_loss(model: nn.Module) -> Float[Tensor, ""]:
    """The sum of the terms of all `Reconstruction` layers of a model, of its last forward pass in training.

    Add it with a small weight: `loss + 0.01 * reconstruction_loss(model)`. Raises `UserError` where there is no
    such layer, or one has not been through a forward pass in training.
    """
    layers = [module for module in model.modules() if isinstance(module, Reconstruction)]
    require(bool(layers), f"no Reconstruction in {type(model).__name__}; expected one; wrap its sparse layers.")
    terms = [layer.loss for layer in layers if layer.loss is not None]
    if len(terms) < len(layers):
        raise UserError(
            f"{len(layers) - len(terms)} of {len(layers)} Reconstruction layers without a loss; expected one each; "
            "call model.train() and the model before."
        )
    return torch.stack(terms).sum()


def scale_penalty(tuples: IndexTuples, *, least: float | None = None, most: float | None = None) -> Float[Tensor, ""]:
    """Mean squared excess of the log scales below `least` and above `most`, both in units of an index.

    `least` keeps scales from vanishing before a tuple has found its entry; `most` narrows those that stay wide and
    would lose by rounding. In log space, so that the pull on a scale that vanishes grows and does not vanish too.

    Args:
        tuples: `wiring.tuples()` of a `GaussianWiring`, `wiring.tuples(x)` of a `HyperWiring`; gradients reach
            their scales.

    Raises `UserError` unless one of the bounds is given, above 0, and `least` is at most `most`.
    """
    require(least is not None or most is not None, "a scale penalty without bounds; give least, most or both.")
    for name, bound in (("least", least), ("most", most)):
        if bound is not None:
            positive(name, bound)
    if least is not None and most is not None:
        require(least <= most, f"least={least} above most={most}; expected least <= most.")
    logs = tuples.scales.log()
    total = logs.new_zeros(logs.shape)
    if least is not None:
        total = total + (_log(least, logs) - logs).relu().square()
    if most is not None:
        total = total + (logs - _log(most, logs)).relu().square()
    return total.sum() / max(1, total.numel())


def gate_penalty(model: nn.Module) -> Float[Tensor, ""]:
    """How open the gates of all `GateWiring`s of a model are, as a mean over the gates that are alive.

    Of sigmoid gates the mean gate, of linear ones the mean |gate|, of hard-concrete ones the mean probability that a
    gate is not 0 (the expected L0 norm over the number of gates). Add it times a weight: the larger, the fewer
    connections stay. 0 where no gate is alive. Raises `UserError` where there is no `GateWiring`.
    """
    wirings = [module for module in model.modules() if isinstance(module, GateWiring)]
    require(bool(wirings), f"no GateWiring in {type(model).__name__}; expected one; build a host with it.")
    costs = torch.cat([wiring.costs() for wiring in wirings])
    return costs.sum() / max(1, len(costs))


def _log(bound: float, like: Tensor) -> Tensor:
    return like.new_tensor(bound).log()
