"""The identity of many rows on a GPU, for the benchmark: the experiment itself, stopped in time."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path
from typing import Any

import torch

from experiments.benchmark_case import Case
from experiments.measure import spread

LIMIT = 500
"""Seconds of an identity: a figure has to fit in a call of nine minutes."""


class OutOfTime(BaseException):
    """An identity has taken as long as it may."""


def _stop(*_: object) -> None:
    raise OutOfTime


def identity(case: Case) -> dict[str, Any]:
    """`seconds` or `bytes` of an identity that became exact; as a `ratio`, the share of its entries that were found."""
    from experiments.__main__ import main

    signal.signal(signal.SIGALRM, _stop)
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        signal.alarm(LIMIT)
        given = {"size": case.size, "context": case.context, "batch": case.batch, "steps": case.most, "device": "cuda"}
        try:
            options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
            status = main(["identity", "--out", folder, *options])
        except OutOfTime:
            status = None
        finally:
            signal.alarm(0)
        return _judged(case, Path(folder), status)


def _judged(case: Case, folder: Path, status: int | None) -> dict[str, Any]:
    """The figure of an identity from what its run has written; raises unless it became exact, where it has to."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    share = json.loads(lines[-1])["recovered"] / case.size
    if case.figure == "ratio":
        return spread([share])
    if status != 0:
        raise ArithmeticError(f"identity of {case.size}: {share:.2%} after {LIMIT} seconds")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if not summary["exact"]:
        raise ArithmeticError(f"identity of {case.size}: {share:.2%} after {summary['steps']} batches")
    return spread([summary["seconds_to_exact"] if case.figure == "seconds" else torch.cuda.max_memory_allocated()])
