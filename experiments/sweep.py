"""Several runs of one experiment: every combination of some values of its options, a process for each.

    python -m experiments sweep identity --grid size=16,32 seed=0..9 --jobs 2 -- --quick

`--grid` takes OPTION=VALUES: values parted by commas, whole numbers from..to (both are in), true and false for
switches. What follows `--` goes to every run. At most as many run at once as there are cores, or GPUs.

In the folder --out: a run's folder for every combination, with what it has said in `log.txt`; `sweep.md`, means and
standard deviations over the seeds; `sweep.csv`, a line for each run; `sweep.json`, both; `sweep.png`, and `index.html`
with the curves. The same command goes on where a sweep was interrupted: finished runs stay, begun ones are resumed.
Exit status: 0, 1 if a run has failed (its last line is listed), 2 for an error of use.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import tyro

from ash.checks import UserError, choose, require
from experiments import checkpoint
from experiments.command import parse
from experiments.files import plain
from experiments.folder import CHECKPOINT, CONFIG
from experiments.options import RunOptions, resolve
from experiments.records import read_record
from experiments.sweep_jobs import Job, last_words, perform, places, shared_out
from experiments.sweep_report import Result, report

OWN = ("out", "resume")
"""Options of a run that the sweep gives itself."""
NOT_COMPARED = (*OWN, "checkpoint", "time_limit", "tensorboard", "device", "data_dir", "download", "preset")
"""Options that may be others when a sweep goes on."""


@dataclass
class Options:
    """Options of a sweep; those of its runs come after `--`."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """The experiment."""
    grid: tuple[str, ...]
    """OPTION=VALUES, such as size=16,32 seed=0..9"""
    out: Path | None = None
    """Folder of the sweep; runs/sweep_NAME if not given."""
    jobs: int | None = None
    """Runs at a time; as many as there are cores, or GPUs."""
    figures: tuple[str, ...] = ()
    """Keys of the summary to be told and drawn; by default all numbers that differ."""


@dataclass(frozen=True)
class Cell:
    """One combination: the values by option, as they were given, and the run's options as resolved."""

    values: Mapping[str, str]
    folder: Path
    arguments: tuple[str, ...]
    options: RunOptions

    @property
    def name(self) -> str:
        """The combination in words, which is the name of its folder."""
        return self.folder.name


def main(arguments: Sequence[str], experiments: Mapping[str, str]) -> int:
    """Run the sweep of the command line; `experiments` are modules by name. The exit status is told above."""
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    options = tyro.cli(Options, prog="python -m experiments sweep", description=__doc__, args=given[:end])
    try:
        module = importlib.import_module(choose("experiment", options.name, experiments))
        return sweep(options, module, given[end + 1 :])
    except UserError as problem:
        print(f"sweep: {problem}", file=sys.stderr)
        return 2


def sweep(options: Options, module: ModuleType, common: Sequence[str]) -> int:
    """Run what is not finished, and report on all; 1 if a run has failed, else 0. Raises `UserError`."""
    out = options.out or Path("runs") / f"sweep_{options.name}"
    require(not (out / CONFIG).exists(), f"--out {out} is the folder of a run; choose another with --out.")
    cells = cells_of(options.name, module, options.grid, common, out)
    jobs = [job for cell in cells if (job := job_of(options.name, cell)) is not None]
    free = places(cells[0].options.device)
    most = len(free) if options.jobs is None else options.jobs
    require(1 <= most <= len(free), f"--jobs {most}; expected 1 to {len(free)}, which is what this machine has.")
    said(f"{len(cells)} runs, {len(cells) - len(jobs)} of them finished before, {most} at a time")
    failed: dict[str, str] = {}

    def done(job: Job, status: int) -> None:
        if status:
            failed[job.name] = f"exit status {status}: {last_words(job.folder)}"
        said(f"{job.name}: {failed.get(job.name, 'finished')}")

    perform(jobs, shared_out(free, most), done)
    print(report(options.name, out, [result_of(cell, failed) for cell in cells], options.figures), end="")
    return int(bool(failed))


def said(text: str) -> None:
    """A line of progress."""
    print(f"sweep: {text}", file=sys.stderr, flush=True)


# --- combinations ----------------------------------------------------------------------------------------


def axis(text: str) -> tuple[str, list[str]]:
    """An option and its values from `OPTION=VALUES`. Raises `UserError` for any other text."""
    found = re.fullmatch(r"(?:--)?([A-Za-z][\w-]*)=(.+)", text)
    if found is None:
        raise UserError(f"--grid {text}; expected OPTION=VALUES, such as size=16,32 or seed=0..9.")
    values: list[str] = []
    for part in found[2].split(","):
        whole = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", part)
        values += [str(i) for i in range(int(whole[1]), int(whole[2]) + 1)] if whole else [part]
    sound = "" not in values and len(set(values)) == len(values) > 0
    require(sound, f"--grid {text}; expected different values, and ranges that rise.")
    return found[1].replace("-", "_"), values


def cells_of(name: str, module: ModuleType, grid: Sequence[str], common: Sequence[str], out: Path) -> list[Cell]:
    """Every combination, each checked as its run would check it. Raises `UserError` before anything has run."""
    axes = [axis(text) for text in grid]
    keys = [key for key, _ in axes]
    require(len(keys) > 0, "--grid without an option; expected OPTION=VALUES, such as seed=0..9.")
    require(len(set(keys)) == len(keys), f"--grid has options twice: {', '.join(keys)}; expected each once.")
    found = []
    for values in itertools.product(*(each for _, each in axes)):
        chosen = dict(zip(keys, values, strict=True))
        flags = [*common, *itertools.chain(*(flag(key, value) for key, value in chosen.items()))]
        options = parse(name, module, flags)
        taken = [key for key in OWN if getattr(options, key)]
        require(not taken, f"--{', --'.join(taken)} for a run of a sweep, which gives it itself; leave it out.")
        folder = out / re.sub(r"[^\w.,=+-]", "_", ",".join(f"{key}={value}" for key, value in chosen.items()))
        options = resolve(name, dataclasses.replace(options, out=folder))
        found.append(Cell(chosen, folder, (*flags, "--out", str(folder)), options))
    require(len({cell.folder for cell in found}) == len(found), "--grid has values that no folders' names tell apart.")
    return found


def flag(key: str, value: str) -> list[str]:
    """The arguments that give an option this value."""
    option = key.replace("_", "-")
    return {"true": [f"--{option}"], "false": [f"--no-{option}"]}.get(value, [f"--{option}", value])


def job_of(name: str, cell: Cell) -> Job | None:
    """What is left to do of a run: nothing if it is finished with these options, to go on, or all of it.

    Raises `UserError` where its folder holds a run with others.
    """
    job = Job(cell.name, (name, *cell.arguments), cell.folder)
    if not (cell.folder / CONFIG).exists():
        return job
    record, wanted = read_record(cell.folder), plain(dataclasses.asdict(cell.options))
    differing = [key for key in wanted if key not in NOT_COMPARED and record.config.get(key) != wanted[key]]
    foreign = [key for key in differing if key not in cell.options.may_change]
    shown = ", ".join(f"--{key.replace('_', '-')} {record.config.get(key)} (now {wanted[key]})" for key in foreign)
    require(not foreign and record.experiment == name,
            f"{cell.folder} holds a run of {record.experiment} {shown}; expected one of this sweep; choose another "
            "--out.")  # fmt: skip
    if record.summary is not None and not differing:
        return None
    begun = (cell.folder / CHECKPOINT / checkpoint.RECORD).exists()
    return dataclasses.replace(job, arguments=(*job.arguments, "--resume")) if begun else job


def result_of(cell: Cell, failed: Mapping[str, str]) -> Result:
    """What a run has come to."""
    if cell.name in failed:
        return Result(cell.values, cell.folder, None, [], failed[cell.name])
    record = read_record(cell.folder)
    return Result(cell.values, cell.folder, record.summary, record.lines, "")
