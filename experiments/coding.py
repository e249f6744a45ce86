"""A nest of dicts, lists, tensors and numbers as JSON and named tensors, and back."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`, which stands at `place`; its tensors go to `tensors`.

    Containers and odd numbers are tagged, so that ints as keys, tuples and NaN come back as they were. Raises
    `TypeError`, naming the place, for anything that could not be loaded without running code.
    """
    if isinstance(value, Tensor):
        name = f"{len(tensors)} {place}"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {"dict": [[_key(k, place), encode(v, f"{place}.{k}", tensors)] for k, v in value.items()]}
    if type(value) in (list, tuple):
        items = [encode(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise TypeError(f"{place} is of type {type(value).__name__}, which no checkpoint can hold")


def _key(key: object, place: str) -> object:
    if isinstance(key, str) or type(key) is int:
        return key
    raise TypeError(f"{place} has a key of type {type(key).__name__}; only strings and ints can be saved")


def decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What `encode` was given. Raises `ValueError`, `KeyError` or `TypeError` for a tree that it did not make."""
    if isinstance(tree, list):
        return [decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((tag, value),) = tree.items()
    if tag == "tensor":
        return tensors[value]
    if tag == "float":
        return float(value)
    if tag == "tuple":
        return tuple(decode(item, tensors) for item in value)
    if tag == "dict":
        return {key: decode(item, tensors) for key, item in value}
    raise ValueError(f"unknown tag {tag!r}")


def separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, none sharing memory with another (safetensors refuses that)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result
