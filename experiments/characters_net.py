"""A small transformer over characters, made of plain torch layers, and what it loses on text."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.characters_text import ALPHABET


class Attention(nn.Module):
    """Every character looks at itself and those before it.

    Shapes: `(b, t, width)` -> `(b, t, width)`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.look = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        query, key, value = self.look(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        y: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    """Attention and a perceptron, each added to what comes in.

    Shapes: `(b, t, width)` -> `(b, t, width)`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.between = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        x = x + self.attention(self.before(x))
        y: Tensor = x + self.perceptron(self.between(x))
        return y


class CharacterTransformer(nn.Module):
    """Characters -> logits of the next one at every place.

    Args:
        width: numbers of a character. heads: of each attention; they divide the width. layers: blocks.
        context: the most characters it sees.

    Shapes: `(b, t)` int64 -> `(b, t, characters)`, t at most `context`.
    """

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2, context: int = 96):
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET))
        for each in (self.embedding, self.places):
            nn.init.normal_(each.weight, std=0.02)

    def forward(self, ids: Int64[Tensor, "b t"]) -> Float[Tensor, "b t c"]:
        x = self.embedding(ids) + self.places.weight[: ids.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def bits(model: Callable[[Tensor], Tensor], ids: Int64[Tensor, "b t"], skip: int = 0) -> Float[Tensor, ""]:
    """Mean bits of a character given those before it, of all but the first 1 + `skip` of every row."""
    logits = model(ids[:, :-1])[:, skip:]
    nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1 + skip :].flatten())
    return nats / math.log(2)


@torch.no_grad()
def held_out_bits(model: nn.Module, text: Int64[Tensor, " n"], context: int, batch: int = 64) -> float:
    """Mean bits of a character of a text; each is predicted from between half a context and a whole one before it."""
    half = context // 2
    rows = text.unfold(0, context + 1, half)
    model.eval()
    found = [float(bits(model, part, context - half)) * len(part) for part in rows.split(batch)]
    model.train()
    return sum(found) / len(rows)


@torch.no_grad()
def continued(model: nn.Module, start: Int64[Tensor, " n"], length: int, context: int) -> Int64[Tensor, " m"]:
    """`start` and the `length` characters that the model finds most likely after it, one after the other."""
    model.eval()
    text = start
    for _ in range(length):
        text = torch.cat([text, model(text[None, -context:])[0, -1].argmax(-1, keepdim=True)])
    model.train()
    return text
