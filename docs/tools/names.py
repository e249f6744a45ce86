"""An extension of griffe, which reads docstrings for the pages: broken lists of names, and tables without a frame."""

from __future__ import annotations

import re
from typing import Any

import griffe

BROKEN = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)*,)\n(?P=indent) +(?=[\w, ]+:)", flags=re.MULTILINE)
COLUMNS = re.compile(r"^  ", flags=re.MULTILINE)
FIRST_ITEM = re.compile(r"^(?!- |  )(.+)\n(?=- )", flags=re.MULTILINE)
TIMES = re.compile(r"(?<=\d)\*(?=\d)")


class Names(griffe.Extension):
    """Joins `one, two,` and the line after it, `three: what they are`, which griffe takes for no parameter at all.

    In a module's docstring lines that are indented by two are columns, which Markdown keeps as code; a list needs an
    empty line before it, and a product of numbers is no emphasis.
    """

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that has been read."""
        if obj.docstring is not None:
            text = BROKEN.sub(r"\g<indent>\g<names> ", obj.docstring.value)
            obj.docstring.value = _as_page(text) if obj.is_module else text


def _as_page(text: str) -> str:
    """A module's docstring in the Markdown of the pages."""
    text = FIRST_ITEM.sub(r"\1\n\n", COLUMNS.sub("    ", text))
    return TIMES.sub(r"\*", text)
