"""What decides over the last bits: threads, MKL's code path, the order in which torch adds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiments import reproducible
from experiments.runs import Run, RunOptions

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def threads() -> Iterator[int]:
    """Two threads."""
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(1)


def test_a_run_says_what_it_was_computed_with(tmp_path: Path, threads: int) -> None:
    with Run("toy", RunOptions(out=tmp_path, device="cpu")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    told = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["machine"]
    assert told == {"threads": 2, "mkl": os.environ.get("MKL_CBWR"), "deterministic": True}


def test_one_thread_adds_in_one_order_anyway() -> None:
    with reproducible.deterministic(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()


def test_gradients_of_indexing_are_the_same_each_time(threads: int) -> None:
    x, where, g = torch.randn(100, 64, requires_grad=True), torch.randint(0, 100, (2000,)), torch.randn(2000, 64)
    with reproducible.deterministic(torch.device("cpu")):
        assert len({torch.autograd.grad(x[where], x, g)[0].numpy().tobytes() for _ in range(10)}) == 1


def test_other_threads_are_told_when_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run("toy", RunOptions(out=tmp_path)) as run:
        run.save(1, None)
    Run("toy", RunOptions(out=tmp_path, resume=True)).close()
    assert not capsys.readouterr().err
    torch.set_num_threads(3)
    try:
        Run("toy", RunOptions(out=tmp_path, resume=True)).close()
    finally:
        torch.set_num_threads(1)
    told = capsys.readouterr().err
    assert told.startswith("toy: the checkpoint was made with threads 1 (now 3)") and told.count("\n") == 1


@pytest.mark.parametrize(("given", "expected"), [(None, "AUTO"), ("COMPATIBLE", "COMPATIBLE")])
def test_the_runner_sets_the_mode_of_mkl_unless_it_is_given(given: str | None, expected: str) -> None:
    code = (
        "import os, sys; from experiments import __main__ as runner\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print(os.environ['MKL_CBWR']); sys.exit(0)\n"
        "sys.meta_path.insert(0, Stop()); runner.main(['identity'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    environment |= {} if given is None else {"MKL_CBWR": given}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout.strip() == expected
