"""The networks of the graph VAE: encoder and decoder of sparse layers, a decoder that emits links as index tuples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ash import (
    Anneal,
    GaussianWiring,
    HyperWiring,
    LayerSize,
    Mask,
    MLPHypernetwork,
    Reconstruction,
    Sampling,
    SparseLayer,
    SparseLinear,
    StaticWiring,
    Wiring,
    allot,
)
from experiments.graph_vae_code import GraphCode

WiringName = Literal["gaussian", "static", "dense"]
DecoderName = Literal["layers", "slots"]

LEAST_LOG, MOST_LOG = -8.0, 4.0
"""Bounds of the log variances."""
SLOT_HIDDEN, UNLINKED = 64, -4.0


@dataclass(frozen=True)
class Shape:
    """What a network is made of.

    Attributes:
        latent: numbers of a code. hidden, depth: units of a hidden layer, and hidden layers on either side.
        wiring: of every layer. density: share of the weights of dense layers that exist, over the whole network;
            the narrower a layer, the denser it is (`ash.allot`, `"er"`).
        decoder: sparse layers to the end, or a last layer whose weight is the graph: index tuples over pairs of nodes.
        slots: tuples that such a layer emits for each graph.
        reconstruct: whether sparse layers keep a reconstruction term.
        scale: of the tuples at the start, in units of an index; it falls to 0.3 within `settle` steps.
    """

    latent: int = 32
    hidden: int = 256
    depth: int = 2
    wiring: WiringName = "gaussian"
    density: float = 0.1
    decoder: DecoderName = "layers"
    slots: int = 60
    reconstruct: bool = True
    scale: float = 0.7
    settle: int = 1000

    def sizes(self, places: int) -> dict[str, LayerSize]:
        """Every layer but that of the slots, by its place in the network; vectors have p places."""
        inner = [self.hidden] * self.depth
        encoder, decoder = [places, *inner, 2 * self.latent], [self.latent, *inner]
        if self.decoder == "layers":
            decoder.append(places)
        named = {"encoder": encoder, "decoder": decoder}
        return {
            f"{name}.{i}": LayerSize(after, before)
            for name, widths in named.items()
            for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False))
        }


class GraphVAE(nn.Module):
    """A variational autoencoder of graphs: an encoder to Gaussians, a decoder to distributions over graphs.

    Args:
        code: between graphs and vectors. shape: of the networks.
    """

    def __init__(self, code: GraphCode, shape: Shape):
        super().__init__()
        self.code, self.shape = code, shape
        sizes = shape.sizes(code.places)
        counts = allot(sizes, shape.density, "er")
        made = {name: _layer(size, counts[name], shape) for name, size in sizes.items()}
        self.encoder = _chain([layer for name, layer in made.items() if name.startswith("encoder")])
        self.decoder = _chain([layer for name, layer in made.items() if name.startswith("decoder")])
        if shape.decoder == "slots":
            self.decoder = nn.Sequential(*self.decoder, nn.ReLU(), Slots(code, shape))

    def encode(self, x: Float[Tensor, "b p"]) -> tuple[Float[Tensor, "b latent"], Float[Tensor, "b latent"]]:
        """Means and log variances of the codes of vectors."""
        mean, log = self.encoder(x).chunk(2, -1)
        return mean, (log - 1).clamp(LEAST_LOG, MOST_LOG)

    def decode(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b p"]:
        """Logits of distributions over graphs, see `GraphCode`."""
        logits: Tensor = self.decoder(z)
        return logits

    def freeze(self) -> None:
        """Round Gaussian tuples for good."""
        for module in self.modules():
            if isinstance(module, GaussianWiring):
                module.freeze()


class Slots(nn.Module):
    """A sparse layer whose weight tensor is the graph itself: index tuples (node, node), emitted from what it sees.

    A hypernetwork emits for every graph some tuples over the lower triangle of the adjacency matrix, each with a
    value; a pair's logit is the sum of the values that reach it, on top of a bias that all graphs share.

    Shapes: `(b, hidden)` -> `(b, p)`.
    """

    def __init__(self, code: GraphCode, shape: Shape):
        super().__init__()
        m = code.high
        self.rows, self.columns = code.rows, code.columns
        wiring = partial(
            HyperWiring,
            k=shape.slots,
            hypernetwork=partial(MLPHypernetwork, hidden=(SLOT_HIDDEN,), gain=0.5),
            condition_shape=shape.hidden,
            admissible=Mask(torch.ones(m, m).tril().unsqueeze(-1)),
            scales="scheduled",
            scale=Anneal(shape.scale, 0.3, shape.settle),
            sampling=Sampling(global_samples=0, local_samples=2),
        )
        self.layer = SparseLayer(1, (m, m), wiring=wiring)
        bias = self.layer.bias
        assert bias is not None
        nn.init.constant_(bias, UNLINKED)

    def forward(self, x: Float[Tensor, "b hidden"]) -> Float[Tensor, "b p"]:
        """The logits of all pairs and nodes."""
        logits = self.layer(x.new_ones(len(x), 1), condition=x)
        return logits[:, self.rows, self.columns]


def _chain(layers: list[nn.Module]) -> nn.Sequential:
    """The layers with ReLUs between them."""
    parts: list[nn.Module] = []
    for layer in layers:
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _layer(size: LayerSize, entries: int, shape: Shape) -> nn.Module:
    """A layer of so many entries, or a dense one."""
    if shape.wiring == "dense":
        return nn.Linear(size.inputs, size.out)
    layer = SparseLinear(size.inputs, size.out, wiring=_wiring(size, entries, shape))
    return Reconstruction(layer) if shape.reconstruct else layer


def _wiring(size: LayerSize, entries: int, shape: Shape) -> Wiring:
    if shape.wiring == "static":
        return StaticWiring(size.out, size.inputs, entries)
    return GaussianWiring(
        size.out,
        size.inputs,
        entries,
        kernel="gaussian",
        sampling=Sampling(global_samples=0, local_samples=0),
        scale=shape.scale,
        scale_floor=0.3,
        scale_ceiling=Anneal(shape.scale, 0.3, shape.settle),
    )


def rate(mean: Float[Tensor, "b latent"], log: Float[Tensor, "b latent"]) -> Float[Tensor, " b"]:
    """KL divergence of each code's Gaussian from the standard normal one, in nats."""
    return 0.5 * (mean.square() + log.exp() - 1 - log).sum(-1)


def sample(mean: Float[Tensor, "b latent"], log: Float[Tensor, "b latent"]) -> Float[Tensor, "b latent"]:
    """A code from each Gaussian, by torch's default generator."""
    return mean + torch.randn_like(mean) * (log / 2).exp()


def log_density(z: Tensor, mean: Tensor, log: Tensor) -> Float[Tensor, " b"]:
    """Log density of codes under their own Gaussians."""
    return -0.5 * ((z - mean).square() / log.exp() + log + math.log(2 * math.pi)).sum(-1)
