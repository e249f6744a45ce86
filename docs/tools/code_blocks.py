"""The Python code of a page in Markdown: what is tested and what is shown are one text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def code_blocks(page: Path) -> list[str]:
    """The blocks that are marked as Python, in order."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def run_blocks(page: Path) -> dict[str, Any]:
    """Run a page's blocks one after the other, as a reader would; the names that they leave."""
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(code_blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names
