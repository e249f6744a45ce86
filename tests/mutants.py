"""100 mutants of four files, one at a time: how many of them do the tests of these files notice?

    make mutants

The mutations are those of cosmic-ray. Of the places of a file that can be mutated some are drawn, and of each of these
one mutation, always the same as long as the file is. What changes annotations alone, or cannot be parsed, does not
count. All runs in a copy of the tree. What survives is printed; of some it is known why (`EQUIVALENT`). Fewer than 85
that are noticed fail.
"""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import hypothesis  # noqa: F401 – what takes long to load is loaded once, for all runs
import pytest
import scipy.stats  # noqa: F401
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

HERE = Path(__file__).resolve().parents[1]
TESTS = {
    "sampling": ["sampling", "contexts", "drawn"],
    "shares": ["shares", "contexts"],
    "contract": ["contract", "candidate", "join"],
    "growth": ["growth", "drop_grow"],
}
"""Files of ash, and the tests that are to notice their mutants: tests/test_….py, the nearest first."""
COUNTS = {"sampling": 32, "shares": 28, "contract": 9, "growth": 31}
"""How many mutants of each file, about in proportion to its places: 100 in all."""
LEAST = 85
SLOWER = 5
"""A run that takes so many times as long as without a mutant is stopped: the mutant made a loop endless."""

EQUIVALENT = {
    ("sampling", "default=1", "default= 0"): "a plan without columns draws nothing near",
    ("sampling", "0, 2**62", "0, 2** 61"): "of 2^61 random starts as of 2^62",
    ("sampling", "unsqueeze(-1) - low", "unsqueeze(+1) - low"): "of a list both are the same",
    ("shares", "anchors.shape[1] == 1", "anchors.shape[1] <= 1"): "without tuples there is nothing to compute",
    ("shares", "if c_step > 1", "if c_step > 2"): "the same table in other blocks",
    ("shares", "inverse.shape[0] == 1", "inverse.shape[0] <= 1"): "every tuple has a scale",
    ("shares", "factor[..., :0]", "factor[..., : -1]"): "the dimension is of size 1",
    ("growth", "self._parts[0][2]", "self._parts[ -1][2]"): "there is one part where this is asked",
    ("growth", "min(1.0, count", "min( 2.0, count"): "more lines than there are, each once, are all lines",
    ("growth", "total // n", "total - n"): "another number of entries to guess from, which decides nothing",
}
"""A file, a piece of a line and what the mutation makes of it: changes that nothing could notice, and why. They count
as survivors."""


@dataclass(frozen=True)
class Mutant:
    """A file of ash with one mutation, and the lines that changed."""

    name: str
    code: str
    before: str
    after: str
    line: int

    def __str__(self) -> str:
        return f"ash/{self.name}.py:{self.line}: {self.before.strip()}  →  {self.after.strip()}"


def known(mutant: Mutant) -> str:
    """Why nothing could notice it, if that is known."""
    for (name, before, after), why in EQUIVALENT.items():
        if name == mutant.name and before in mutant.before and after in mutant.after:
            return f"\n    equivalent: {why}"
    return ""


class Meaning(ast.NodeTransformer):
    """What a program does: annotations and overloads left out."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        node.returns = None
        overloads = any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)
        return None if overloads else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def meaning(code: str) -> str | None:
    """None of what cannot be parsed."""
    try:
        return ast.dump(Meaning().visit(ast.parse(code)))
    except SyntaxError:
        return None


def places_of(name: str) -> dict[tuple[object, ...], list[tuple[str, int]]]:
    """Every place in a file of ash that can be mutated: the operators that can, each with the occurrence."""
    tree = get_ast(source_of(name))
    found: dict[tuple[object, ...], list[tuple[str, int]]] = {}
    for kind in sorted(operator_names()):
        if not get_operator(kind).arguments():
            operator = get_operator(kind)()
            places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
            for occurrence, (start, end) in enumerate(places):
                found.setdefault((name, start, end), []).append((kind, occurrence))
    return found


def source_of(name: str) -> str:
    return (HERE / "ash" / f"{name}.py").read_text(encoding="utf-8")


def mutant_of(name: str, kind: str, occurrence: int) -> Mutant:
    source = source_of(name)
    code = mutate_code(source, get_operator(kind)(), occurrence)
    lines = source.splitlines(), code.splitlines()
    number = next((i for i, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), min(map(len, lines)) - 1)
    return Mutant(name, code, lines[0][number], lines[1][number], number + 1)


def sample() -> list[Mutant]:
    """The 100, in any order."""
    found = [mutant for name, count in COUNTS.items() for mutant in drawn(name, count)]
    random.Random(0).shuffle(found)
    return found


def drawn(name: str, count: int) -> list[Mutant]:
    draw, plain = random.Random(name), meaning(source_of(name))
    found: list[Mutant] = []
    places = [own for _, own in sorted(places_of(name).items())]
    for own in draw.sample(places, len(places)):
        mutant = mutant_of(name, *draw.choice(own))
        if meaning(mutant.code) not in (None, plain):
            found.append(mutant)
        if len(found) == count:
            break
    return found


# --- running -------------------------------------------------------------------------------------------------------


def copy_tree(target: Path) -> None:
    for part in ("ash", "tests", "experiments"):
        shutil.copytree(HERE / part, target / part, ignore=shutil.ignore_patterns("__pycache__", "fuzz"))
    shutil.copy(HERE / "pyproject.toml", target)


def run(tree: Path, name: str, limit: float | None = None) -> bool | None:
    """Whether the tests of a file pass in a tree; None where they take too long."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(tree, name))
    process.start()
    process.join(limit)
    if process.exitcode is not None:
        return process.exitcode == 0
    process.kill()
    process.join()
    return None


def _run(tree: Path, name: str) -> None:
    """The tests of a file, in a process of their own, which ends with pytest's status."""
    os.chdir(tree)
    os.environ |= {"CI": "1", "ASH_FUZZ": "0"}  # no checks of annotated shapes: they take time, and notice too much
    sys.path[:] = [each for each in sys.path if not each.startswith(str(HERE / "tests"))]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        status = pytest.main([*options, *(f"tests/test_{each}.py" for each in TESTS[name])])
    os._exit(int(status))


def limits(tree: Path) -> dict[str, float]:
    """Seconds that the tests of every file may take. They must pass without a mutant, and fail without the file."""
    found = {}
    for name in TESTS:
        begin = time.monotonic()
        if not run(tree, name):
            raise SystemExit(f"the tests of ash/{name}.py fail without a mutant")
        found[name] = SLOWER * (time.monotonic() - begin)
        if notices(tree, Mutant(name, "raise SystemError\n", "", "", 1), found[name]) != "noticed":
            raise SystemExit(f"the tests do not run ash/{name}.py of the copy, but of another place")
    return found


def notices(tree: Path, mutant: Mutant, limit: float) -> str:
    file = tree / "ash" / f"{mutant.name}.py"
    plain = file.read_text(encoding="utf-8")
    file.write_text(mutant.code, encoding="utf-8")
    passed = run(tree, mutant.name, limit)
    file.write_text(plain, encoding="utf-8")
    return {True: "survived", False: "noticed", None: "endless"}[passed]


def main() -> int:
    torch.set_num_threads(1)
    mutants = sample()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        allowed, counts = limits(tree), {"noticed": 0, "endless": 0, "survived": 0}
        for number, mutant in enumerate(mutants, 1):
            outcome = notices(tree, mutant, allowed[mutant.name])
            counts[outcome] += 1
            if outcome != "noticed":
                print(f"{number:3} {outcome}: {mutant}{known(mutant)}", flush=True)
    good = counts["noticed"] + counts["endless"]
    print(f"{good} of {len(mutants)} mutants noticed, {counts['endless']} by loops without end; expected {LEAST}")
    return int(good < LEAST)


if __name__ == "__main__":
    sys.exit(main())
