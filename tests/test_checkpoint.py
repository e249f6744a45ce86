"""Checkpoints come back as they were saved, never by unpickling, and a damaged one is refused."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ash.checks import UserError
from experiments import checkpoint
from experiments.state import restore, training_state

leaves = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text(max_size=5)
keys = st.text(max_size=5) | st.integers(-5, 5)
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=40,
    deadline=None,
)
@given(states)
def test_any_nest_comes_back(tmp_path: Path, state: Any) -> None:
    checkpoint.write(tmp_path, {"step": 1}, state)
    meta, back = checkpoint.read(tmp_path)
    assert meta == {"step": 1}
    # repr tells tuples from lists, ints from bools and floats, 0.0 from -0.0, and takes NaN for NaN.
    assert repr(back) == repr(state)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.1, -0.0, math.inf, math.nan]),
        torch.tensor(3, dtype=torch.int64),
        torch.tensor([[True, False]]),
        torch.empty(0, 3),
        torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
        torch.arange(10, dtype=torch.uint8)[2:5],
        torch.tensor([1.5], dtype=torch.bfloat16),
        torch.ones(2, 3, requires_grad=True),
    ],
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, tensor: torch.Tensor) -> None:
    checkpoint.write(tmp_path, {}, [tensor])
    (back,) = checkpoint.read(tmp_path).state
    assert back.dtype == tensor.dtype
    assert not back.requires_grad
    torch.testing.assert_close(back, tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    a = torch.arange(4.0)
    checkpoint.write(tmp_path, {}, {"a": a, "again": a, "part": a[2:]})
    state = checkpoint.read(tmp_path).state
    assert state["a"].tolist() == state["again"].tolist() == [0, 1, 2, 3]
    assert state["part"].tolist() == [2, 3]


@pytest.mark.parametrize("state", [{"a": {1, 2}}, {"a": [print]}, {(1, 2): 3}, {True: 1}])
def test_what_needs_code_to_load_cannot_be_saved(tmp_path: Path, state: object) -> None:
    checkpoint.write(tmp_path, {}, "former")
    with pytest.raises(TypeError, match="state"):
        checkpoint.write(tmp_path, {}, state)
    assert checkpoint.read(tmp_path).state == "former"


def test_the_former_checkpoint_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        checkpoint.write(tmp_path, {"step": number}, torch.tensor([number]))
    for stop in ("save_file", "_digest"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, stop, interrupt)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.write(tmp_path, {"step": 3}, torch.tensor([3]))
        meta, state = checkpoint.read(tmp_path)
        assert (meta["step"], state.tolist()) == (2, [2])
    checkpoint.write(tmp_path, {"step": 3}, torch.tensor([3]))
    assert checkpoint.read(tmp_path).state.tolist() == [3]
    assert checkpoint.read(tmp_path, "previous").state.tolist() == [2]
    assert len(list(tmp_path.iterdir())) == 4


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_loaded_state_outlives_later_checkpoints(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, {}, torch.arange(1000))
    loaded = checkpoint.read(tmp_path).state
    for number in range(3):
        checkpoint.write(tmp_path, {}, torch.full((1000,), number))
    assert loaded.tolist() == list(range(1000))


def score_all(folder: Path, *scores: float | None) -> None:
    for number, score in enumerate(scores):
        checkpoint.write(folder, {"step": number}, torch.tensor([number]), score)


def steps(folder: Path) -> dict[str, int | None]:
    """The step of each checkpoint in the folder, None where there is none; what is damaged raises."""
    found = {}
    for which, name in checkpoint.RECORDS.items():
        saved = checkpoint.read(folder, which) if (folder / name).exists() else None
        found[which] = None if saved is None else saved.meta["step"]
        assert saved is None or saved.state.tolist() == [saved.meta["step"]]
    return found


@pytest.mark.parametrize(
    ("scores", "expected", "files"),
    [
        ([None], (0, None, None), 1),
        ([None, None], (1, 0, None), 2),
        ([0.5], (0, None, 0), 1),
        ([0.5, 0.4, 0.3], (2, 1, 0), 3),
        ([0.5, 0.4, 0.3, 0.2], (3, 2, 0), 3),
        ([0.5, 0.5, 0.3], (2, 1, 0), 3),
        ([0.5, 0.6, 0.3], (2, 1, 1), 2),
        ([-0.5, math.nan, math.inf, None], (3, 2, 0), 3),
    ],
)
def test_the_last_the_previous_and_the_best_are_kept(
    tmp_path: Path, scores: list[float | None], expected: tuple[int | None, ...], files: int
) -> None:
    score_all(tmp_path, *scores)
    assert tuple(steps(tmp_path).values()) == expected
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("scores", "which", "expected"),
    [
        ([0.3, 0.4, 0.2, 0.1], "last", (3, 2, 1)),
        ([0.3, 0.4, 0.2, 0.1], "previous", (2, 2, 1)),
        ([0.3, 0.4, 0.2, 0.1], "best", (1, None, 1)),
        ([0.3, 0.4], "previous", (0, 0, 0)),
    ],
)
def test_going_back_removes_what_came_after(
    tmp_path: Path, scores: list[float], which: checkpoint.Which, expected: tuple[int | None, ...]
) -> None:
    score_all(tmp_path, *scores)
    checkpoint.go_back(tmp_path, which)
    assert tuple(steps(tmp_path).values()) == expected
    checkpoint.write(tmp_path, {"step": 9}, torch.tensor([9]), 0.35)
    assert tuple(steps(tmp_path).values()) == (9, expected[0], 1 if expected[2] == 1 else 9)


class Killed(BaseException):
    """A process that ends between two calls to the system."""


def kill_at(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End at the `count`-th change that is made to the folder, and clean nothing up."""
    made = [0]

    def counted(name: str) -> None:
        call = getattr(os, name)

        def until(*arguments: Any, **options: Any) -> Any:
            made[0] += 1
            if made[0] >= count:
                raise Killed
            return call(*arguments, **options)

        monkeypatch.setattr(os, name, until)

    for name in ("replace", "link", "unlink", "fsync"):
        counted(name)


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, seen = 0, set()
    while True:
        count += 1
        folder = tmp_path / str(count)
        score_all(folder, 0.3, 0.4, 0.1)
        with monkeypatch.context() as patch:
            kill_at(count, patch)
            try:
                checkpoint.write(folder, {"step": 3}, torch.tensor([3]), 0.5)
            except Killed:
                pass
            else:
                break
        seen.add(tuple(steps(folder).values()))
        checkpoint.go_back(folder, "last")
        known = steps(folder)
        assert known["best"] == (3 if known["last"] == 3 else 1)
        assert len(list(folder.glob("*.safetensors"))) <= 3 and not list(folder.glob(".*"))
    assert seen >= {(2, 1, 1), (2, 2, 1), (3, 2, 1), (3, 2, 3)}


def test_without_links_records_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    score_all(tmp_path, 0.5, 0.4)
    assert tuple(steps(tmp_path).values()) == (1, 0, 0)


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def tensor_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


DAMAGES = {
    "a bit of a tensor": lambda folder: flip(tensor_file(folder), -1),
    "a short tensor file": lambda folder: tensor_file(folder).write_bytes(b"1234"),
    "no tensor file": lambda folder: tensor_file(folder).unlink(),
    "no JSON": lambda folder: (folder / "state.json").write_text("{", encoding="utf-8"),
    "not UTF-8": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe"),
    "a number changed": lambda folder: edit(folder, meta={"step": 2}),
    "another format": lambda folder: edit(folder, format="other"),
    "a path outside": lambda folder: edit(folder, tensors="../a.safetensors"),
    "a list": lambda folder: (folder / "state.json").write_text("[]", encoding="utf-8"),
}


def edit(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    (folder / "state.json").write_text(json.dumps(record | changes), encoding="utf-8")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(tmp_path: Path, damage: str) -> None:
    checkpoint.write(tmp_path, {"step": 1}, torch.arange(5.0))
    DAMAGES[damage](tmp_path)
    with pytest.raises(UserError, match="damaged or foreign.*without --resume"):
        checkpoint.read(tmp_path)


def test_damage_tells_of_the_checkpoints_that_are_whole(tmp_path: Path) -> None:
    score_all(tmp_path, 0.5, 0.4, 0.3)
    last = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))["tensors"]
    flip(tmp_path / last, -1)
    with pytest.raises(UserError, match="the checkpoint in .* checksum.*--checkpoint previous or --checkpoint best"):
        checkpoint.read(tmp_path)
    previous = json.loads((tmp_path / "previous.json").read_text(encoding="utf-8"))["tensors"]
    (tmp_path / previous).write_bytes(b"short")
    with pytest.raises(UserError, match="the previous checkpoint in .*with --resume --checkpoint best"):
        checkpoint.read(tmp_path, "previous")
    (tmp_path / "state.json").unlink()
    with pytest.raises(UserError, match="no checkpoint in .*with --resume --checkpoint best"):
        checkpoint.read(tmp_path)
    checkpoint.go_back(tmp_path, "best")
    assert tuple(steps(tmp_path).values()) == (0, None, 0)


def test_a_checkpoint_of_another_version_says_so(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, {"version": "9.0"}, torch.arange(5.0))
    edit(tmp_path, format="ash-checkpoint-9")
    expected = "is of the format 'ash-checkpoint-9', written by version 9.0; this version reads 'ash-checkpoint-2'"
    with pytest.raises(UserError, match=expected):
        checkpoint.read(tmp_path)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_the_place_of_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, trace = tmp_path / "checkpoint", tmp_path / "executed"
    checkpoint.write(folder, {"step": 1}, torch.arange(5.0))
    for content in (pickle.dumps(Payload(trace)), _saved_by_torch(Payload(trace))):
        tensor_file(folder).write_bytes(content)
        record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        edit(folder, digest=checkpoint._digest(record, tensor_file(folder)))
        with pytest.raises(UserError, match="damaged or foreign.*header"):
            checkpoint.read(folder)
        assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()


def _saved_by_torch(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_a_missing_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint in .*expected one.*without --resume"):
        checkpoint.read(tmp_path / "checkpoint")


def test_clear_leaves_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    checkpoint.write(folder, {}, torch.ones(1))
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    checkpoint.clear(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    checkpoint.write(folder, {}, torch.ones(1))
    checkpoint.clear(folder)
    assert not folder.exists()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, steps: int
) -> list[float]:
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 5, generator=generator)
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parts(kind: type[torch.optim.Optimizer], width: int = 7) -> tuple[Any, Any, torch.Generator]:
    model = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 5))
    options: dict[str, Any] = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters(), "lr": 0.05},
        {"params": model[3].parameters()},
    ]
    optimizer = kind(groups, **options)
    return model, optimizer, torch.Generator().manual_seed(3)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_training_goes_on_bit_exactly(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    model, optimizer, generator = parts(kind)
    train(model, optimizer, generator, 4)
    checkpoint.write(tmp_path, {}, training_state(model, optimizer, data=generator))
    expected = train(model, optimizer, generator, 4)

    torch.manual_seed(99)
    again, other, draws = parts(kind)
    train(again, other, draws, 1)
    restore(checkpoint.read(tmp_path).state, again, other, data=draws)
    assert train(again, other, draws, 4) == expected
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_state_that_does_not_fit_is_refused_with_the_reason() -> None:
    model, optimizer, generator = parts(torch.optim.Adam)
    state = training_state(model, optimizer, data=generator)
    wider = parts(torch.optim.Adam, width=8)
    with pytest.raises(UserError, match=r"0\.weight is float32\[7, 5\].*expected float32\[8, 5\]"):
        restore(state, wider[0], wider[1], data=generator)
    with pytest.raises(UserError, match="float32.*expected float64"):
        restore(state, model.double(), optimizer, data=generator)
    with pytest.raises(UserError, match="another one"):
        restore(state, model[0], optimizer, data=generator)
    model.float()
    with pytest.raises(UserError, match="optimizer"):
        restore(state, model, torch.optim.Adam(model.parameters()), data=generator)
    with pytest.raises(UserError, match="optimizer"):
        restore(state, model, data=generator)
    with pytest.raises(UserError, match="generators"):
        restore(state, model, optimizer, other=generator)
    with pytest.raises(UserError, match="lacks"):
        restore({"model": {}}, model, optimizer)
