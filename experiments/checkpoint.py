"""Checkpoints of a run: tensors in safetensors, everything else JSON, nothing unpickled.

A checkpoint folder holds `state.json` and the one tensor file that it names. A new checkpoint is
written to the other of two tensor files and becomes valid when `state.json` is renamed into place, so
a run that is killed at any moment leaves either the former checkpoint or the new one.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ash.checks import UserError
from experiments.files import aside, replace_whole

FORMAT = "ash-checkpoint-1"
RECORD = "state.json"
SLOTS = ("a.safetensors", "b.safetensors")


class Checkpoint(NamedTuple):
    """What was saved: `meta` describes the run, `state` is what `write` was given."""

    meta: dict[str, Any]
    state: Any


def write(folder: Path, meta: dict[str, Any], state: Any) -> None:
    """Save `state`, nested dicts, lists and tuples of tensors, numbers, strings, bools and None.

    Tensors keep dtype and shape and are stored from the CPU. Dict keys are strings or ints. Raises
    `TypeError`, naming the place, for anything else: it could not be loaded without running code.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "state", tensors)
    folder.mkdir(parents=True, exist_ok=True)
    slot = next(name for name in SLOTS if name != _slot_in_use(folder))
    replace_whole(folder / slot, lambda new: save_file(_separate(tensors), new))
    record = {"format": FORMAT, "meta": meta, "tensors": slot, "state": tree}
    record["digest"] = _digest(record, folder / slot)
    text = json.dumps(record, allow_nan=False, indent=1)
    replace_whole(folder / RECORD, lambda new: new.write_text(text, encoding="utf-8"))
    for name in SLOTS:
        if name != slot:
            (folder / name).unlink(missing_ok=True)


def read(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, tensors on the CPU; `UserError` if it is missing, damaged or foreign."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no checkpoint in {folder}; expected one that an earlier run left; start without --resume."
        ) from None
    except (OSError, ValueError) as problem:
        raise _damaged(folder, f"{RECORD} cannot be read ({problem})") from None
    _check_record(folder, record)
    try:
        tensors = load_file(folder / record["tensors"])
        return Checkpoint(record["meta"], _decode(record["state"], tensors))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise _damaged(folder, str(problem)) from None


def clear(folder: Path) -> None:
    """Remove a checkpoint; files that are not of a checkpoint stay, and so does their folder."""
    for name in (RECORD, *SLOTS):
        (folder / name).unlink(missing_ok=True)
        aside(folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; tensors go to `tensors`. Containers and odd numbers are tagged, so that ints as
    keys, tuples and NaN come back as they were."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)} {place}"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {"dict": [[_key(k, place), _encode(v, f"{place}.{k}", tensors)] for k, v in value.items()]}
    if type(value) in (list, tuple):
        items = [_encode(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise TypeError(f"{place} is of type {type(value).__name__}, which no checkpoint can hold")


def _key(key: object, place: str) -> object:
    if isinstance(key, str) or type(key) is int:
        return key
    raise TypeError(f"{place} has a key of type {type(key).__name__}; only strings and ints can be saved")


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((tag, value),) = tree.items()
    if tag == "tensor":
        return tensors[value]
    if tag == "float":
        return float(value)
    if tag == "tuple":
        return tuple(_decode(item, tensors) for item in value)
    if tag == "dict":
        return {key: _decode(item, tensors) for key, item in value}
    raise ValueError(f"unknown tag {tag!r}")


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, none sharing memory with another (safetensors refuses that)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result


def _slot_in_use(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(record: dict[str, Any], tensors: Path) -> str:
    """SHA-256 over the record without its digest and the tensor file."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    with tensors.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_record(folder: Path, record: Any) -> None:
    known = isinstance(record, dict) and record.get("format") == FORMAT
    if not known or set(record) != {"format", "meta", "tensors", "state", "digest"}:
        raise _damaged(folder, f"{RECORD} is not of the format {FORMAT!r}")
    if record["tensors"] not in SLOTS or not (folder / record["tensors"]).is_file():
        raise _damaged(folder, "the file with its tensors is missing")
    if record["digest"] != _digest(record, folder / record["tensors"]):
        raise _damaged(folder, "its content does not match its checksum")


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(
        f"the checkpoint in {folder} is damaged or foreign: {reason}; "
        "expected the files as a run left them; start anew without --resume."
    )
