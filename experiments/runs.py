"""The run folder of an experiment: its options, its figures, its checkpoint and its summary.

| file | content |
|---|---|
| `config.json` | every option as resolved, the experiment, the version, the git commit if any |
| `metrics.jsonl` | one object per logged step; nothing in it depends on the clock |
| `timing.jsonl` | what does: one object per timed step |
| `pictures.json` | the pictures that the run has made, so that a later run can remove these and no others |
| `checkpoint/` | the last checkpoint, the one before it, and the best on the validation set |
| `tensorboard/` | the figures of `metrics.jsonl` for TensorBoard, with `--tensorboard` |
| `index.html` | the page: the slider through what `show` was given, curves, summary and pictures |
| `.lock` | names the process as long as it lives |
| `summary.json` | the final figures; written last, so that a folder with it is a finished run |
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from tqdm import tqdm

from ash.checks import UserError, require
from ash.plot.page_tracks import Track
from experiments import board, checkpoint, files, folder, lock, machine, pages, reproducible, sources
from experiments.descent import Diverged
from experiments.folder import BOARD, CHECKPOINT, CONFIG, METRICS, PICTURES, SUMMARY, TIMING
from experiments.options import RunOptions, check_same_run, fixed, resolve
from experiments.processes import rank
from experiments.records import read_lines
from experiments.state import restore, training_state
from experiments.stopping import Stopped, Stopping

__all__ = ["Run", "RunOptions", "Stopped", "restore", "table", "training_state"]


class Run:
    """One run of the experiment `name` in its folder; a context manager.

    Opening it checks everything that can be checked (a folder that cannot be written or that another run
    writes into, a checkpoint that does not fit: `UserError`) before it touches anything. A new run then removes
    the files that an earlier run left; other files in the folder stay. Leaving the context by an exception
    leaves no `summary.json`. While it is open, signals stop the run where it can go on: see `Stopping`.
    `options` are the resolved ones, `device` is a `torch.device`.
    """

    def __init__(self, name: str, options: RunOptions) -> None:
        self.name = name
        self.options = resolve(name, options)
        self.device = torch.device(self.options.device)
        self.folder = self.options.out or Path("runs") / name
        self.step = 0
        self._begun, self._seconds, self._peak = time.perf_counter(), 0.0, 0
        self._pictures: list[str] = []
        self._tracks: dict[str, Track] = {}
        self._bars: list[Any] = []
        self._saved: checkpoint.Checkpoint | None = None
        self._data: dict[str, str] = {}
        self._board: board.Board | None = None
        try:
            with contextlib.ExitStack() as closing:
                self._open(closing)
                self._closing = closing.pop_all()
        except OSError as problem:
            raise UserError(
                f"--out {self.folder}: {problem.strerror or problem}; "
                "expected a folder that can be written; choose another with --out."
            ) from None

    def _open(self, closing: contextlib.ExitStack) -> None:
        """Check, then begin; `closing` closes what is opened, the last first."""
        sources.forget()
        closing.enter_context(reproducible.deterministic(self.device))
        if self.options.resume and not self.folder.is_dir():
            checkpoint.read(self.folder / CHECKPOINT)
        folder.check(self.folder)
        closing.enter_context(lock.held(self.folder))
        self._saved = self._read_checkpoint() if self.options.resume else None
        (self.folder / SUMMARY).unlink(missing_ok=True)
        if self._saved is None:
            folder.clear(self.folder)
        else:
            self._go_on(self._saved.meta)
        files.write_json(self.folder / CONFIG, self._config())
        self._metrics = closing.enter_context((self.folder / METRICS).open("a", encoding="utf-8", buffering=1))
        self._timing = closing.enter_context((self.folder / TIMING).open("a", encoding="utf-8", buffering=1))
        if self.options.tensorboard:
            purge_from = None if self._saved is None else self.step + 1
            self._board = closing.enter_context(board.opened(self.folder / BOARD, purge_from))
        self.stopping = closing.enter_context(Stopping(self.options.time_limit))

    def _config(self) -> dict[str, Any]:
        about: dict[str, Any] = {"experiment": self.name, "version": machine.version(), "commit": machine.commit()}
        about |= {"machine": reproducible.settings()}
        return about | dataclasses.asdict(self.options)

    def _read_checkpoint(self) -> checkpoint.Checkpoint:
        saved = checkpoint.read(self.folder / CHECKPOINT, self.options.checkpoint)
        check_same_run(saved.meta, self.name, self.options)
        for name in (METRICS, TIMING):
            path = self.folder / name
            size, least = path.stat().st_size if path.is_file() else 0, saved.meta["bytes"][name]
            require(
                size >= least,
                f"{path} has {size} bytes; expected at least the {least} of its checkpoint; "
                "start anew without --resume.",
            )
        return saved

    def _go_on(self, meta: dict[str, Any]) -> None:
        """Take up the counts of the checkpoint, and cut off what was logged and saved after it."""
        self.step, self._seconds, self._peak = meta["step"], meta["seconds"], meta["peak_memory_bytes"]
        self._pictures, self._data = folder.pictures(self.folder), meta["data"]
        checkpoint.go_back(self.folder / CHECKPOINT, self.options.checkpoint)
        for name in (METRICS, TIMING):
            os.truncate(self.folder / name, meta["bytes"][name])
        differences = reproducible.differences(meta["machine"])
        if differences:
            print(f"{self.name}: the checkpoint was made with {differences}; the run goes on, but not bit for bit as "
                  "without a stop.", file=sys.stderr)  # fmt: skip

    def log(self, step: int, **figures: object) -> None:
        """Add a line to `metrics.jsonl`: `step` and the figures, NaN as null; the bar and TensorBoard show them too."""
        self.step = max(self.step, step)
        line = files.plain({"step": step, **figures})
        self._metrics.write(files.dumps(line) + "\n")
        if self._board is not None:
            self._board.add(line)
        if self._bars:
            shown = {k: f"{float(line[k]):.4g}" for k in figures if _is_number(line[k])}
            self._bars[-1].set_postfix(shown, refresh=False)

    def time(self, step: int, **figures: object) -> None:
        """Add a line to `timing.jsonl`: `step`, the seconds so far, and figures that depend on the clock."""
        line = {"step": step, "seconds": self.seconds, **figures}
        self._timing.write(files.dumps(line) + "\n")

    @property
    def seconds(self) -> float:
        """Seconds since the run began; of a resumed run those up to its checkpoint and those since."""
        return self._seconds + time.perf_counter() - self._begun

    @property
    def peak_memory_bytes(self) -> int:
        """Largest resident set of the process, and of the one that this run goes on from."""
        return max(self._peak, machine.peak_memory_bytes())

    def progress(self, total: int, desc: str, start: int = 0) -> Any:
        """A tqdm bar on stderr; `update(n)` moves it. Not on a terminal it writes every two seconds."""
        interval = 0.1 if sys.stderr.isatty() else 2.0
        options = {"mininterval": interval, "miniters": 1, "file": sys.stderr, "disable": rank() > 0}
        bar = tqdm(total=total, desc=desc, initial=start, **options)
        self._bars = [old for old in self._bars if not old.disable] + [bar]
        return bar

    def path(self, name: str) -> Path:
        """Where to write the picture `name` (which may lie in a subfolder); a later run removes it."""
        path = self.folder / name
        inside = folder.inside(self.folder, name)
        require(inside, f"picture {name!r}; expected a relative name inside the run folder.")
        if name not in self._pictures:
            self._pictures.append(name)
            files.write_json(self.folder / PICTURES, self._pictures)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def show(self, title: str, track: Track) -> None:
        """Have the slider of the run's page move `track` (see `ash.plot`), under that title."""
        self._tracks[title] = track

    def keep(self, step: int, state: Callable[[], Any], due: bool = True, score: float | None = None) -> None:
        """A point after `step` from which the run could go on: `state()` is saved where that is `due`.

        It is also where the run stops if it was told to (SIGINT, SIGTERM, `--time-limit`): it saves, and raises
        `Stopped`. Call it as often as is possible; where there is nothing to do it takes microseconds. Raises
        what `save` and `state` raise; of a `Diverged` it tells the step.
        """
        self.stopping.meet()
        status = self.stopping.status
        if due or status:
            try:
                now = state()
            except Diverged as problem:
                raise Diverged(f"after step {step} {problem}") from None
            self.save(step, now, score)
        if status:
            raise Stopped(status, step)

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Make `state` after `step` the last checkpoint; log what belongs to `step` before.

        The one with the highest `score` is kept beside it, as the best on the validation set. See
        `checkpoint.write` for what a state may hold, `training_state` for that of a training. Raises `UserError`
        where the disk fails; the former checkpoint is then as it was.
        """
        self.step = max(self.step, step)
        try:
            sizes = {name: _synced(log) for name, log in ((METRICS, self._metrics), (TIMING, self._timing))}
            if self._board is not None:
                self._board.flush()
            checkpoint.write(self.folder / CHECKPOINT, self._about(step, sizes), state, score)
        except OSError as problem:
            known = (self.folder / CHECKPOINT / checkpoint.RECORD).exists()
            remedy = "go on from the former one, which is whole, with --resume" if known else "there is no former one"
            raise UserError(
                f"no checkpoint after step {step} in {self.folder}: {problem.strerror or problem}; "
                f"expected a folder with space that can be written; {remedy}."
            ) from None

    def _about(self, step: int, sizes: dict[str, int]) -> dict[str, Any]:
        """What a checkpoint says of the run."""
        about: dict[str, Any] = {"experiment": self.name, "version": machine.version()}
        about |= {"options": fixed(self.options)}
        about |= {"step": step, "bytes": sizes, "data": self._data | sources.noted()}
        about |= {"machine": reproducible.settings()}
        return about | {"seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes}

    def load(self) -> tuple[int, Any] | None:
        """(step, state) of the checkpoint to go on from; None if the run starts from the beginning.

        Call it after the data were read. Raises `UserError` if they are not those of the checkpoint.
        """
        saved, self._saved = self._saved, None
        sources.check(self._data)
        return None if saved is None else (saved.meta["step"], saved.state)

    def finish(self, summary: dict[str, object]) -> dict[str, object]:
        """Write `summary.json`, the standard keys before those given, and print it; returns all of it.

        `steps` is the last step logged or saved, unless the summary says otherwise.
        """
        steps = summary.get("steps", self.step)
        standard = {"experiment": self.name, "seed": self.options.seed, "steps": steps}
        standard |= {"seconds": round(self.seconds, 3), "peak_memory_bytes": self.peak_memory_bytes}
        whole = files.plain(standard | {k: v for k, v in summary.items() if k not in standard})
        for bar in self._bars:
            bar.close()
        self._write_page(whole)
        files.write_json(self.folder / SUMMARY, whole)
        print(table(whole))
        return whole

    def _write_page(self, summary: dict[str, Any]) -> None:
        made = [self.folder / name for name in self._pictures if name != pages.INDEX]
        shown = [path for path in made if path.is_file()]
        lines = read_lines(self.folder / METRICS)
        pages.write(self.path(pages.INDEX), self._config(), summary, lines, self._tracks, shown)

    def close(self) -> None:
        """Close bars and files, and give the folder and the signals free; what was logged stays."""
        for bar in self._bars:
            bar.close()
        self._closing.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                (self.folder / SUMMARY).unlink(missing_ok=True)
        finally:
            self.close()


def _synced(log: TextIO) -> int:
    """Bytes of a log, once all of them are on the disk."""
    log.flush()
    os.fsync(log.fileno())
    return os.fstat(log.fileno()).st_size


def table(summary: dict[str, Any]) -> str:
    """`summary` as two aligned columns."""
    width = max(map(len, summary))
    return "\n".join(f"{key:<{width}}  {_cell(value)}" for key, value in summary.items())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else files.dumps(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
