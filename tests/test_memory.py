"""What would not fit into memory is refused before it is allocated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ash import (
    Factors,
    GateWiring,
    GaussianWiring,
    MLPHypernetwork,
    RigLWiring,
    SNFSWiring,
    SparseLinear,
    SparseWeight,
    StaticWiring,
    TopKWiring,
    UserError,
    memory,
)

FREE = 1 << 20
HUGE = 10**7


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """One megabyte is free, and everything above 64 kB is looked up."""
    monkeypatch.setattr(memory, "available", lambda device: FREE)
    monkeypatch.setattr(memory, "LEAST", 1 << 16)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: GaussianWiring(HUGE, HUGE, 100_000), r"k=100,000 needs about \d+\.\d MB, and 1\.05 MB are free on cpu"),
    (lambda: StaticWiring(HUGE, HUGE, 10**6), r"StaticWiring .* with 1,000,000 entries needs about 60 MB"),
    (lambda: RigLWiring(HUGE, HUGE, 10**5), "RigLWiring .* at most k=17,000 would fit"),
    (lambda: SNFSWiring(HUGE, HUGE, 10_000), "SNFSWiring .* with 40,000 entries"),  # room for four times as many
    (lambda: GateWiring(HUGE, HUGE), r"GateWiring .* with 100,000,000,000,000 gates"),
    (lambda: TopKWiring(1000, 1000, 10), "a weight of 200,000 positions would fit, or .* RigLWiring"),
    (lambda: SparseLinear(1, HUGE, wiring=StaticWiring(HUGE, 1, 9)), r"a bias .* leave it out: bias=False"),
    (lambda: StaticWiring(1000, 1000, 9)().to_dense(), "a dense form needs about 4 MB"),
    (lambda: SparseWeight(torch.zeros(500, 1, 2).long(), torch.ones(500, 1), (32,), (32,)).to_dense(), "about 2.05 MB"),
    (lambda: Factors(torch.ones(2, 1000), torch.ones(2, 1000)).dense(), r"dense gradient .* the factors fit"),
    (lambda: MLPHypernetwork((4,), 10_000, 5), "emits 10,000 tuples needs .* chunk=…"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_does_not_fit(little: None, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.usefixtures("little")
def test_what_fits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GaussianWiring(HUGE, HUGE, 5000).k == 5000
    assert RigLWiring(HUGE, HUGE, 17_000).stored_entries() == 17_000  # as many as the refusal offers
    with pytest.raises(UserError):
        TopKWiring(600, 600, 10)
    monkeypatch.setattr(memory, "enabled", False)
    assert TopKWiring(600, 600, 10).stored_entries() == 10


def test_small_things_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(memory, "available", lambda device: asked.append(device.type))
    memory.need("a small tensor", memory.LEAST, "cpu", str)
    assert asked == []
    memory.need("a large one, where nothing is known", memory.LEAST + 1, "cpu", str)
    memory.need("another", 1e18, "meta", str)
    assert asked == ["cpu", "meta"]


def test_a_weight_without_memory_of_its_own_is_not_refused() -> None:
    assert memory.available(torch.device("meta")) is None
    assert StaticWiring(10, 10, 5, device="cpu").stored_entries() == 5


def write(folder: Path, **numbers: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in numbers.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_limits_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tightest of the process's group, the groups above it and the machine; files may be forgotten."""
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  1000 kB\n",
        "/proc/self/cgroup": "4:cpu:/x\n3:memory,other:/a/b\n0::/c\n",
    }
    read = memory._read
    monkeypatch.setattr(memory, "_read", lambda path: files.get(str(path)) or read(path))
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    here = torch.device("cpu")
    assert memory.available(here) == 1_024_000
    write(tmp_path / "memory/a", memory__limit_in_bytes="900000", memory__usage_in_bytes="500000",
          memory__stat="cache 7\ninactive_file 100000\n")  # fmt: skip
    write(tmp_path / "memory/a/b", memory__limit_in_bytes="999999999", memory__usage_in_bytes="1")
    assert memory.available(here) == 500_000
    write(tmp_path / "c", memory__max="400000\n", memory__current="100000\n")
    assert memory.available(here) == 300_000
    write(tmp_path / "c", memory__max="max\n")
    assert memory.available(here) == 500_000


def test_nothing_is_known_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_read", lambda path: "")
    assert memory.available(torch.device("cpu")) is None
    memory.need("too much", 1e18, "cpu", str)


@pytest.mark.parametrize(("size", "text"), [(999, "999 bytes"), (1.32e14, "132 TB"), (2.5e9, "2.5 GB")])
def test_bytes_in_words(size: float, text: str) -> None:
    assert memory.readable(size) == text


@pytest.mark.parametrize(("count", "text"), [(149_876_543, "140,000,000"), (7.9, "7"), (0.2, "0"), (99, "99")])
def test_what_fits_is_rounded_down(count: float, text: str) -> None:
    assert memory.at_most(count) == text
