"""An extension of griffe, which reads docstrings for the pages: broken lists of names, and tables without a frame."""

from __future__ import annotations

import re
from typing import Any

import griffe

BROKEN = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)*,)\n(?P=indent) +(?=[\w, ]+:)", flags=re.MULTILINE)
COLUMNS = re.compile(r"^  (?=\S)", flags=re.MULTILINE)


class Names(griffe.Extension):
    """Joins `one, two,` and the line after it, `three: what they are`, which griffe takes for no parameter at all.

    Lines that a module's docstring indents by two are columns; Markdown keeps them so as code.
    """

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that has been read."""
        if obj.docstring is not None:
            text = BROKEN.sub(r"\g<indent>\g<names> ", obj.docstring.value)
            obj.docstring.value = COLUMNS.sub("    ", text) if obj.is_module else text
