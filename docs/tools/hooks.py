"""What the documentation's build does besides: parts of the README in pages, and formulas as MathML.

mkdocs calls these functions (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hooks_text import readme_section

INCLUDE = re.compile(r"^<!-- README: (.+) -->$", flags=re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A line `<!-- README: title -->` becomes the text of the README's section of that title."""
    return INCLUDE.sub(lambda found: readme_section(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script."""
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    mathml: str = convert(html.unescape(found[3]).strip(), display=display)
    return f'<div class="formula">{mathml}</div>' if display == "block" else mathml
