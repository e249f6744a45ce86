"""Files are whole or absent, and their JSON is strict."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments import files


@dataclasses.dataclass
class Point:
    x: int
    y: float


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (-math.inf, None),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor([1.0, math.nan]), [1.0, None]),
        (np.float32(math.inf), None),
        (np.int64(7), 7),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (Path("a") / "b", str(Path("a") / "b")),
        ((1, {2: True, "three": None}), [1, {"2": True, "three": None}]),
        (Point(1, math.nan), {"x": 1, "y": None}),
    ],
)
def test_plain(value: object, expected: object) -> None:
    assert files.plain(value) == expected


def test_plain_refuses_what_json_cannot_say() -> None:
    with pytest.raises(TypeError, match="set"):
        files.plain({"a": {1, 2}})


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


numbers = st.floats() | st.integers() | st.booleans() | st.none() | st.text()


@given(st.dictionaries(st.text(), st.lists(numbers, max_size=3), max_size=3))
def test_json_is_strict_for_any_numbers(value: dict[str, list[object]]) -> None:
    back = json.loads(files.dumps(value), parse_constant=refuse)
    assert list(back) == list(value)
    for key, items in value.items():
        finite = [i if not isinstance(i, float) or math.isfinite(i) else None for i in items]
        assert back[key] == finite


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def fail(new: Path) -> None:
        new.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_whole(path, fail)
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
