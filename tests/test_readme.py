"""The README's code runs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.tools.code_blocks import code_blocks, run_blocks
from experiments.__main__ import COMMANDS, EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_blocks_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(code_blocks(ROOT / "README.md")) >= 2
    run_blocks(ROOT / "README.md")
    printed = capsys.readouterr().out
    assert "torch.Size([64, 300])" in printed and "torch.Size([5, 10])" in printed


def test_every_command_is_an_experiment_or_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"python -m experiments ([a-z_]+)", README):
        assert name in {**EXPERIMENTS, **COMMANDS}
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_every_picture_and_every_name_exists() -> None:
    import ash

    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()
    for name in re.findall(r"`ash\.(\w+)", README):
        assert hasattr(ash, name), name
