"""Text from a small grammar, and the exact number of bits that its writer has chosen: no model can do with fewer.

A line is one of three kinds, each as likely as the others:

| kind | example | what has to be learned |
|---|---|---|
| sum | `47+38=85` | to add two numbers from 0 to 99 |
| mirror | `bdach|hcadb` | to write 3 to 7 letters backwards |
| sentence | `the old dog that hears two cats runs.` | words, and the verb that agrees with the first noun |

Every line can be derived in one way only, so the probability of a text is the product of the writer's choices.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor

T = TypeVar("T")

ALPHABET = "\n +.0123456789=abcdefghijklmnopqrstuvwxyz|"
MIRRORED = "abcdefgh"
NOUNS = ("dog", "cat", "bird", "horse", "child", "king", "robot", "witch")
ADJECTIVES = ("old", "small", "red", "happy", "quiet", "blue")
VERBS = ("runs", "sings", "sleeps", "waits", "laughs")
SEES = ("hears", "likes", "meets", "finds")
PLURALS = {"child": "children", "witch": "witches"}


class Writer:
    """Writes lines, and adds up the bits of what it chooses."""

    def __init__(self, seed: int):
        self._random, self.bits = random.Random(seed), 0.0

    def pick(self, n: int) -> int:
        """One of n numbers, 0 … n − 1: log2 n bits."""
        self.bits += math.log2(n)
        return int(self._random.random() * n)

    def choose(self, options: Sequence[T]) -> T:
        """One of some options, all as likely."""
        return options[self.pick(len(options))]

    def line(self) -> str:
        """One line of any kind."""
        return self.choose((self._sum, self._mirror, self._sentence))() + "\n"

    def _sum(self) -> str:
        one, other = self.pick(100), self.pick(100)
        return f"{one}+{other}={one + other}"

    def _mirror(self) -> str:
        letters = "".join(self.choose(MIRRORED) for _ in range(self.choose(range(3, 8))))
        return f"{letters}|{letters[::-1]}"

    def _sentence(self) -> str:
        subject, plural = self._noun()
        clause = ""
        if self.pick(2):
            verb = self.choose(SEES)
            clause = f" that {_agreeing(verb, plural)} {self._noun()[0]}"
        return f"{subject}{clause} {_agreeing(self.choose(VERBS), plural)}."

    def _noun(self) -> tuple[str, bool]:
        """A noun with its article, maybe an adjective; and whether it is plural."""
        plural = bool(self.pick(2))
        adjective = self.choose(ADJECTIVES) + " " if self.pick(2) else ""
        noun = self.choose(NOUNS)
        if plural:
            noun = PLURALS.get(noun, noun + "s")
        return f"{'two' if plural else 'the'} {adjective}{noun}", plural


def _agreeing(verb: str, plural: bool) -> str:
    return verb.removesuffix("s") if plural else verb


@dataclass(frozen=True)
class Text:
    """Whole lines of text, and the mean bits of a character that their writer has chosen."""

    text: str
    bits_per_character: float

    @cached_property
    def ids(self) -> Int64[Tensor, " n"]:
        """The place of every character in `ALPHABET`."""
        place = {character: i for i, character in enumerate(ALPHABET)}
        return torch.tensor([place[character] for character in self.text])


def write(characters: int, seed: int) -> Text:
    """Lines of at least so many characters together; the same ones for the same seed, on every machine."""
    writer, lines, length = Writer(seed), [], 0
    while length < characters:
        lines.append(writer.line())
        length += len(lines[-1])
    return Text("".join(lines), writer.bits / length)


def read(ids: Int64[Tensor, " n"]) -> str:
    """The characters at these places."""
    return "".join(ALPHABET[i] for i in ids.tolist())
