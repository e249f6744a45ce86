"""Hypernetworks: x → raw numbers `(b, k, width)` of every tuple, which a `HyperWiring` turns into index tuples.

Any module of that output shape serves. Those here are made by a wiring as `f(in_shape, k, width)`, so that options
are given by `functools.partial`. What they emit starts small (`gain`) beside the wiring's free offset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ash.checks import positive, require, shape
from ash.memory import at_most, need, numbers

Activation = Callable[[], nn.Module]


class SmallLinear(nn.Linear):
    """A linear layer whose outputs start with a deviation of about `gain`, for inputs of unit size, and no bias."""

    def __init__(self, inputs: int, outputs: int, gain: float):
        positive("gain", gain)
        self.gain = gain
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.gain / math.sqrt(self.in_features))
        nn.init.zeros_(self.bias)


class View(nn.Module):
    """What a hypernetwork sees of a picture: averages over `factor` × `factor` pixels.

    Args:
        in_shape: `(h, w)` or `(c, h, w)`.
        factor: 1 leaves the picture as it is; must divide h and w.

    Shapes: `(b, *in_shape)` -> `(b, c, h / factor, w / factor)`.
    """

    def __init__(self, in_shape: Sequence[int], factor: int = 1):
        super().__init__()
        self.in_shape = shape("in_shape", in_shape)
        rank = len(self.in_shape)
        require(rank in (2, 3), f"a view of inputs of shape {self.in_shape}; expected pictures (h, w) or (c, h, w).")
        h, w = self.in_shape[-2:]
        fits = factor >= 1 and h % factor == 0 and w % factor == 0
        require(fits, f"view={factor} of pictures of {h} x {w}; expected a factor that divides both sides.")
        self.factor = factor
        self.shape = (1 if rank == 2 else self.in_shape[0], h // factor, w // factor)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b c v w"]:
        picture = x.reshape(x.shape[0], -1, *self.in_shape[-2:])
        return picture if self.factor == 1 else nn.functional.avg_pool2d(picture, self.factor)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.shape}"


def _check_memory(hidden: int, k: int, width: int) -> None:
    """A perceptron's last layer, which emits `width` numbers for each of k tuples."""
    each = numbers(None) * hidden * width
    what = f"the last layer of a perceptron that emits {k:,} tuples"
    need(what, k * each, None, lambda free: (
        f"at most {at_most(free / each)} at a time would fit: give it chunk=…, or take a SetHypernetwork"))  # fmt: skip


class MLPHypernetwork(nn.Module):
    """A multilayer perceptron over the flattened input, or over a down-sampled view of a picture.

    Args:
        in_shape: of what it sees. k, width: tuples, and numbers of each.
        hidden: sizes of the hidden layers. activation: a factory of modules.
        view: down-sampling factor of a picture; None for inputs of any shape, as they are.
        chunk: emit so many tuples at a time by one shared head, which is told by a learned vector (one for each
            chunk) which part of the weight it is at. Its size then does not grow with k but for that vector.
        gain: standard deviation of what is emitted at first, about.

    Shapes: `(b, *in_shape)` -> `(b, k, width)`.

    Source of the chunks: chunked hypernetworks, arXiv 1906.00695.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        k: int,
        width: int,
        *,
        hidden: Sequence[int] = (128,),
        activation: Activation = nn.ReLU,
        view: int | None = None,
        chunk: int | None = None,
        gain: float = 0.1,
    ):
        super().__init__()
        require(len(hidden) > 0 and min(hidden) >= 1, f"hidden={tuple(hidden)}; expected sizes of at least 1.")
        require(chunk is None or chunk >= 1, f"chunk={chunk}; expected at least 1 tuple at a time.")
        self.k, self.width, self.chunk = k, width, None if chunk is None else min(chunk, k)
        self.view = None if view is None else View(in_shape, view)
        inputs = math.prod(shape("in_shape", in_shape) if self.view is None else self.view.shape)
        sizes = [inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(before, after), activation()]
        self.trunk = nn.Sequential(*layers)
        _check_memory(sizes[-1] + 1, self.chunk or k, width)
        self.head = SmallLinear(sizes[-1], (self.chunk or k) * width, gain)
        self.place: nn.Parameter | None = None
        if self.chunk is not None:
            self.place = nn.Parameter(torch.empty(math.ceil(k / self.chunk), sizes[-1]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New vectors for the chunks; the layers have their own."""
        if self.place is not None:
            nn.init.normal_(self.place)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k width"]:
        seen = x if self.view is None else self.view(x)
        features = self.trunk(seen.flatten(1))
        if self.place is not None:
            features = torch.relu(features.unsqueeze(1) + self.place)
        raw: Tensor = self.head(features)
        return raw.reshape(x.shape[0], -1, self.width)[:, : self.k]


class ConvHypernetwork(nn.Module):
    """Convolutions over a down-sampled view of a picture, then a series of deconvolutions that emits the tuples.

    Args:
        in_shape: `(h, w)` or `(c, h, w)`. k, width: tuples, and numbers of each.
        view: down-sampling factor of the picture; must divide its sides.
        channels: of the convolutions, 3 × 3, each but the first followed by a halving of the picture.
        hidden: size of the layer between the picture and the list of tuples.
        deconvolutions: how often the list is doubled. depth: its channels.
        gain: standard deviation of what is emitted at first, about.

    Shapes: `(b, *in_shape)` -> `(b, k, width)`.

    Source: `Sparse, Adaptive Hypernetworks` (2017): 'through a series of deconvolutions'.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        k: int,
        width: int,
        *,
        view: int = 1,
        channels: Sequence[int] = (16, 32),
        hidden: int = 128,
        deconvolutions: int = 3,
        depth: int = 32,
        gain: float = 0.1,
    ):
        super().__init__()
        good = len(channels) > 0 and deconvolutions >= 0 and min(hidden, depth, *channels) >= 1
        require(good, f"channels={tuple(channels)}, hidden={hidden}, depth={depth}, deconvolutions={deconvolutions}; "
                      "expected at least one convolution, and sizes of at least 1.")  # fmt: skip
        self.k, self.depth = k, depth
        self.view = View(in_shape, view)
        c, h, w = self.view.shape
        layers: list[nn.Module] = []
        for place, after in enumerate(channels):
            stride = 1 if place == 0 else 2
            layers += [nn.Conv2d(c, after, 3, stride, padding=1), nn.ReLU()]
            c, h, w = after, -(-h // stride), -(-w // stride)
        length = -(-k // 2**deconvolutions)
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(c * h * w, hidden), nn.ReLU())
        self.seed = nn.Linear(hidden, depth * length)
        doublings: list[nn.Module] = []
        for _ in range(deconvolutions):
            doublings += [nn.ReLU(), nn.ConvTranspose1d(depth, depth, 4, 2, padding=1)]
        self.decoder = nn.Sequential(*doublings, nn.ReLU())
        self.head = SmallLinear(depth, width, gain)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k width"]:
        features = self.seed(self.encoder(self.view(x))).unflatten(1, (self.depth, -1))
        raw: Tensor = self.head(self.decoder(features)[..., : self.k].transpose(1, 2))
        return raw


class SetBlock(nn.Module):
    """Self-attention among the elements of a set, then a small network for each; both on top of what was there.

    Shapes: `(b, n, dim)` -> `(b, n, dim)`. Source: arXiv 1706.03762, with the norm first; arXiv 1810.00825.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.each = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        parts = self.mix(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(*parts.unbind(0))
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        y: Tensor = x + self.each(self.between(x))
        return y


def set_sizes(in_shape: Sequence[int], k: int) -> tuple[int, int]:
    """(n, f), elements and features of a set of shape `(n,)` or `(n, f)` for which k tuples are emitted.

    Raises `UserError` for other shapes, and where k is no multiple of n.
    """
    sizes = shape("in_shape", in_shape)
    require(len(sizes) <= 2, f"a set of shape {sizes}; expected (n,) numbers, or (n, f): n elements of f features.")
    require(k % sizes[0] == 0, f"k={k} tuples for {sizes[0]} elements; expected a multiple.")
    return sizes[0], sizes[1] if len(sizes) == 2 else 1


class SetHypernetwork(nn.Module):
    """A small set transformer: permutation-equivariant, with one group of tuples for each element.

    The tuples of an element follow each other; a wiring shares its offset between the groups, so that exchanging
    two elements exchanges their tuples and changes nothing else.

    Args:
        in_shape: `(n,)`, n numbers, or `(n, f)`, n elements with f features each. k: a multiple of n.
        dim, heads, layers: of the transformer; heads must divide dim.
        gain: standard deviation of what is emitted at first, about.

    Attributes: groups: n.

    Shapes: `(b, *in_shape)` -> `(b, k, width)`.

    Source: set transformer, arXiv 1810.00825.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        k: int,
        width: int,
        *,
        dim: int = 64,
        heads: int = 4,
        layers: int = 2,
        gain: float = 0.1,
    ):
        super().__init__()
        self.groups, self.features = set_sizes(in_shape, k)
        require(dim % heads == 0, f"dim={dim} for {heads} heads; expected a multiple.")
        self.k, self.width = k, width
        self.embed = nn.Linear(self.features, dim)
        self.blocks = nn.Sequential(*(SetBlock(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = SmallLinear(dim, k // self.groups * width, gain)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k width"]:
        elements = self.embed(x.reshape(x.shape[0], self.groups, self.features))
        raw: Tensor = self.head(self.norm(self.blocks(elements)))
        return raw.reshape(x.shape[0], self.k, self.width)
