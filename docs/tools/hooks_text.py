"""Parts of the README, which pages take in, so that there is one text of each."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def readme_section(title: str) -> str:
    """The text below the heading `## title` of the README, links relative to docs/.

    Raises `LookupError` where there is no such section.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in re.split(r"^## ", readme, flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        if heading.strip() == title:
            return text.strip().replace("](docs/", "](")
    raise LookupError(f"README.md has no section {title!r}")
