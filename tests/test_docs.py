"""The documentation: its code runs, what it names exists, notebooks are the tutorials, nothing public is left out."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import ash
import ash.plot
from docs.tools.code_blocks import code_blocks, run_blocks
from docs.tools.hooks_text import readme_section
from docs.tools.notebooks import NAMES, notebook, notebook_of, page_of
from experiments.__main__ import COMMANDS, EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
TOLD = {
    "learn_a_matrix": "0.0 True",
    "wire_per_input": "of the windows are exact",
    "sparsify_a_model": "made sparse",
    "your_wiring": "True\n",
    "your_host": "True True",
    "several_gpus": "rank 0 of 1",
}
"""What each tutorial must have printed."""


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorials_code_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_blocks(page)
    assert TOLD[page.stem] in capsys.readouterr().out


def test_code_stands_in_tutorials_alone_where_it_is_run() -> None:
    assert {page.stem for page in TUTORIALS} == set(TOLD)
    assert [page for page in PAGES if page not in TUTORIALS and code_blocks(page)] == []


def test_every_public_name_is_in_the_api_once() -> None:
    found = [name for page in PAGES for name in re.findall(r"^::: ash\.(\w+)$", page.read_text(), flags=re.MULTILINE)]
    assert sorted(found) == sorted([*ash.__all__, "plot"])


def test_every_experiment_speaks_for_itself() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    assert set(EXPERIMENTS) <= set(re.findall(r"^::: experiments\.(\w+)$", text, flags=re.MULTILINE))


def test_every_command_and_every_name_exists() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"python -m experiments ([a-z_]+)", text):
            assert name in {**EXPERIMENTS, **COMMANDS}, (page, name)
        for name in re.findall(r"`ash\.([A-Za-z_]+)[`(]", text):
            assert hasattr(ash, name), (page, name)
        for name in re.findall(r"`ash\.plot\.(\w+)`", text):
            assert hasattr(ash.plot, name), (page, name)
        for title in re.findall(r"^<!-- README: (.+) -->$", text, flags=re.MULTILINE):
            assert len(readme_section(title)) > 100


def test_the_mathematics_names_code_that_exists() -> None:
    lines = [line for line in (ROOT / "docs" / "mathematics.md").read_text().splitlines() if line.startswith("Code: ")]
    assert len(lines) > 10
    for line in lines:
        for path, names in re.findall(r"`(ash/[\w/]+\.py)`((?: `\w+`,?)*)", line):
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            known = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
            assert set(re.findall(r"\w+", names)) <= known, line


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_tutorial_without_outputs(name: str) -> None:
    text = notebook_of(name).read_text(encoding="utf-8")
    assert text == notebook(page_of(name)), "run: python -m docs.tools.notebooks"
    cells = json.loads(text)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code[1:] == [block.strip("\n") for block in code_blocks(page_of(name))]
    assert not any(cell.get("outputs") for cell in cells)


def test_pictures_are_small_and_all_used() -> None:
    used = {(page.parent / path).resolve() for page in PAGES
            for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())}  # fmt: skip
    assert all(path.is_file() for path in used)
    made = set((ROOT / "docs" / "pictures").glob("*.png"))
    assert made <= used and all(path.stat().st_size < 150_000 for path in made)


def test_the_citation_has_the_version() -> None:
    assert f"version: {ash.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
