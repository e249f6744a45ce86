"""Checkpoints of a run: tensors in safetensors, everything else JSON, nothing unpickled.

A checkpoint is a record, which names a file with its tensors and holds a checksum of both. A folder has up to three:

| record | checkpoint |
|---|---|
| `state.json` | the last one |
| `previous.json` | the one before it |
| `best.json` | the one of the highest score |

Two records may be links to one file, and then name the same tensors. A new checkpoint writes its tensors to a file
that no record names, and becomes valid when `state.json` is renamed into place: a run that is killed at any moment
leaves either the former checkpoint or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ash.checks import UserError
from experiments.coding import decode, encode, separate
from experiments.files import alias, aside, replace_whole

Which = Literal["last", "previous", "best"]

FORMAT = "ash-checkpoint-2"
RECORDS: dict[Which, str] = {"last": "state.json", "previous": "previous.json", "best": "best.json"}
RECORD = RECORDS["last"]
KEYS = {"format", "number", "score", "meta", "tensors", "state", "digest"}
SLOTS = tuple(f"{letter}.safetensors" for letter in "abcd")
"""Files for tensors: three are in use at most, the fourth takes the next ones."""


class Checkpoint(NamedTuple):
    """What was saved: `meta` describes the run, `state` is what `write` was given."""

    meta: dict[str, Any]
    state: Any


class _Unfit(Exception):
    """Why a checkpoint cannot be read."""


def write(folder: Path, meta: dict[str, Any], state: Any, score: float | None = None) -> None:
    """Save `state`, nested dicts, lists and tuples of tensors, numbers, strings, bools and None, as the last one.

    The former last becomes the previous one. The best is that of the highest `score`, the first of equal ones.
    Tensors keep dtype and shape and are stored from the CPU. Dict keys are strings or ints. Raises `TypeError`,
    naming the place, for anything else: it could not be loaded without running code; `OSError` where the disk fails.
    """
    tensors: dict[str, Any] = {}
    tree = encode(state, "state", tensors)
    folder.mkdir(parents=True, exist_ok=True)
    known = _glance(folder)
    slot = _free(known)
    replace_whole(folder / slot, lambda new: _save(tensors, new))
    score = score if score is not None and math.isfinite(score) else None
    number = known["last"]["number"] + 1 if "last" in known else 1
    record = {"format": FORMAT, "number": number, "score": score, "meta": meta, "tensors": slot, "state": tree}
    record["digest"] = _digest(record, folder / slot)
    text = json.dumps(record, allow_nan=False, indent=1)

    def fill(new: Path) -> None:
        new.write_text(text, encoding="utf-8")
        if "last" in known:  # once the new one cannot fail for want of space
            alias(folder / RECORDS["previous"], folder / RECORD)

    replace_whole(folder / RECORD, fill)
    _tidy(folder)


def _save(tensors: dict[str, Any], path: Path) -> None:
    """Write tensors. A failure of the disk is an `OSError`; safetensors has it in its words alone."""
    try:
        save_file(separate(tensors), path)
    except SafetensorError as problem:
        number = re.search(r"os error (\d+)", str(problem))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def read(folder: Path, which: Which = "last", judges: bool = False) -> Checkpoint:
    """A checkpoint in `folder`, tensors on the CPU; `UserError` if it is missing, damaged, foreign or too new.

    The message names the others that are whole. `judges`: not to go on from, but to be judged.
    """
    name = "checkpoint" if which == "last" else f"{which} checkpoint"
    try:
        return _read(folder, which)
    except FileNotFoundError:
        fault, wanted = f"no {name} in {folder}", "one that an earlier run left"
    except _Unfit as problem:
        fault, wanted = f"the {name} in {folder} is damaged or foreign: {problem}", "the files as a run left them"
    whole = [f"--checkpoint {other}" for other in RECORDS if other != which and _is_whole(folder, other)]
    others, none = ("judge another one with", "give the folder of another run") if judges else (
        "go on from another one with --resume", "start anew without --resume")  # fmt: skip
    remedy = f"{others} {' or '.join(whole)}" if whole else none
    raise UserError(f"{fault}; expected {wanted}; {remedy}.")


def go_back(folder: Path, which: Which) -> None:
    """Make a whole checkpoint the last one, and remove those that were made after it."""
    if which != "last":
        alias(folder / RECORD, folder / RECORDS[which])
    known = _glance(folder)
    for other, name in RECORDS.items():
        if other not in known or known[other]["number"] > known["last"]["number"]:
            (folder / name).unlink(missing_ok=True)
    _tidy(folder)


def clear(folder: Path) -> None:
    """Remove all checkpoints; files that are not of a checkpoint stay, and so does their folder."""
    for name in (*RECORDS.values(), *SLOTS):
        (folder / name).unlink(missing_ok=True)
    _remove_halves(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _tidy(folder: Path) -> None:
    """Make the last one the best if it is, which a killed run may have left undone; remove what no record names."""
    known = _glance(folder)
    last, best = known["last"], known.get("best")
    if last["score"] is not None and (best is None or last["score"] > best["score"]):
        alias(folder / RECORDS["best"], folder / RECORD)
        known["best"] = last
    named = {record["tensors"] for record in known.values()}
    for name in {*SLOTS} - named:
        (folder / name).unlink(missing_ok=True)
    _remove_halves(folder)


def _remove_halves(folder: Path) -> None:
    """Remove what a killed run has left of files that were being written, by safetensors too."""
    for path in (*(aside(folder / name) for name in (*RECORDS.values(), *SLOTS)), *folder.glob(".tmp??????")):
        path.unlink(missing_ok=True)


def _glance(folder: Path) -> dict[Which, dict[str, Any]]:
    """The records that can be read, without a look at their checksums."""
    found = {}
    for which in RECORDS:
        with contextlib.suppress(FileNotFoundError, _Unfit):
            found[which] = _record(folder, which)
    return found


def _free(known: dict[Which, dict[str, Any]]) -> str:
    """A file for tensors that none of these records names."""
    named = {record["tensors"] for record in known.values()}
    return next(name for name in SLOTS if name not in named)


def _is_whole(folder: Path, which: Which) -> bool:
    try:
        _read(folder, which)
    except (FileNotFoundError, _Unfit):
        return False
    return True


def _read(folder: Path, which: Which) -> Checkpoint:
    record = _record(folder, which)
    tensors = folder / record["tensors"]
    if not tensors.is_file():
        raise _Unfit("the file with its tensors is missing")
    try:
        if record["digest"] != _digest(record, tensors):
            raise _Unfit("its content does not match its checksum")
        return Checkpoint(record["meta"], decode(record["state"], load_file(tensors)))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise _Unfit(str(problem)) from None


def _record(folder: Path, which: Which) -> dict[str, Any]:
    """A record of this format, as it stands there."""
    name = RECORDS[which]
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:
        raise _Unfit(f"{name} cannot be read ({problem})") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _Unfit(f"{name} is of {_kind(record)}; this version reads {FORMAT!r}")
    if set(record) != KEYS or record["tensors"] not in SLOTS or not isinstance(record["number"], int):
        raise _Unfit(f"{name} is not as it was written")
    return record


def _kind(record: Any) -> str:
    """The format that a record says it has, and the version of the package that wrote it, in words."""
    about = record if isinstance(record, dict) else {}
    meta = about.get("meta")
    version = meta.get("version") if isinstance(meta, dict) else None
    return f"the format {about.get('format')!r}" + (f", written by version {version}" if version else "")


def _digest(record: dict[str, Any], tensors: Path) -> str:
    """SHA-256 over the record without its digest and the tensor file."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    with tensors.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
