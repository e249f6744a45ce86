"""`python -m docs.tools.notebooks` makes the notebooks from three tutorials, so that there is one text of each.

`--run` executes them instead, each in a kernel of its own (`pip install '.[docs]'`), and fails where a cell does.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("learn_a_matrix", "wire_per_input", "sparsify_a_model")
PARTS = re.compile(r"^```python\n(.*?)^```\n?", flags=re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"^!\[.*\]\(.*\)\n", flags=re.MULTILINE)
FIRST = "# Run from the folder of the repository, or after pip install '.[experiments]' there.\n%matplotlib inline"


def page_of(name: str) -> Path:
    """The tutorial that a notebook is made from."""
    return ROOT / "docs" / "tutorials" / f"{name}.md"


def notebook_of(name: str) -> Path:
    """Where a notebook lies."""
    return ROOT / "notebooks" / f"{name}.ipynb"


def notebook(page: Path) -> str:
    """A tutorial as a notebook without outputs: pictures are what its cells draw."""
    text = PICTURE.sub("", page.read_text(encoding="utf-8"))
    text = text.replace("](../", "](../docs/")
    cells = [_cell("code", FIRST, 0)]
    for number, part in enumerate(PARTS.split(text)):
        kind = "code" if number % 2 else "markdown"
        if part.strip():
            cells.append(_cell(kind, part.strip("\n"), len(cells)))
    cells[0], cells[1] = cells[1], cells[0]  # the title first
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, source: str, number: int) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell{number}", "metadata": {}, "source": source.splitlines(True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def execute(path: Path) -> None:
    """Run a notebook from the repository's folder; raises where a cell does."""
    import nbformat
    from nbclient import NotebookClient

    with path.open(encoding="utf-8") as file:
        book = nbformat.read(file, as_version=4)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()


def main(arguments: list[str]) -> int:
    """Make the notebooks, or with `--run` execute them."""
    for name in NAMES:
        path = notebook_of(name)
        if "--run" in arguments:
            execute(path)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(notebook(page_of(name)), encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
