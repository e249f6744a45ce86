"""Refusal of what would not fit into memory, before any of it is allocated: with the estimate, and what would fit.

A system that promises more memory than it has (Linux does) ends a process when the promise is called in, long after
the mistake. So constructors and conversions whose size a number decides say here what they are about to need.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ash.checks import UserError

enabled = True
"""False refuses nothing."""

LEAST = 1 << 28
"""Bytes up to which nothing is looked up: 256 MB."""

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of groups of processes, such as containers."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def need(what: str, size: float, device: torch.device | str | None, instead: Callable[[int], str]) -> None:
    """Raise `UserError` where fewer bytes are free than something needs.

    Args:
        what: it, in words.
        size: its estimate, in bytes: what it needs at least.
        device: where it is to be; None: torch's default device.
        instead: (bytes that are free) -> what would fit.

    Where the system does not tell what is free, nothing is refused.
    """
    if size <= LEAST or not enabled or torch.compiler.is_compiling():
        return
    where = torch.get_default_device() if device is None else torch.device(device)
    free = available(where)
    if free is not None and size > free:
        raise UserError(
            f"{what} needs about {readable(size)}, and {readable(free)} are free on {where.type}; {instead(free)}. "
            "(ash.memory.enabled = False refuses nothing.)"
        )


def numbers(dtype: torch.dtype | None) -> int:
    """Bytes of a number of that type; None: torch's default type."""
    return (torch.get_default_dtype() if dtype is None else dtype).itemsize


def readable(size: float) -> str:
    """Bytes in words, with three digits."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def at_most(count: float) -> str:
    """A number of things rounded down to two digits, as what would fit."""
    whole = max(0, int(count))
    digit = 10 ** max(0, len(str(whole)) - 2)
    return f"{whole // digit * digit:,}"


def available(device: torch.device) -> int | None:
    """Bytes that are free on a device; on the CPU within the limits of the process's groups. None: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    known = [free for free in (_machine(), *_groups()) if free is not None]
    return min(known, default=None)


def _machine() -> int | None:
    """What the system could hand out without swapping; None elsewhere than on Linux."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _groups() -> list[int]:
    """What is left of the limit of every group that the process is in, of both versions of control groups."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, kinds, path = line.split(":", 2)
        if number == "0" or "memory" in kinds.split(","):
            root = GROUPS if number == "0" else GROUPS / "memory"
            names = ("memory.max", "memory.current") if number == "0" else (
                "memory.limit_in_bytes", "memory.usage_in_bytes")  # fmt: skip
            own = root / path.lstrip("/")
            found += [_left(group, *names) for group in (own, *own.parents) if group.is_relative_to(root)]
    return [each for each in found if each is not None]


def _left(group: Path, limit: str, used: str) -> int | None:
    """A group's limit less what it uses, files that the system may forget apart; None without a limit."""
    most, now = _read(group / limit).strip(), _read(group / used).strip()
    if not (most.isdigit() and now.isdigit()):
        return None
    lines = (line.split() for line in _read(group / "memory.stat").splitlines())
    forgotten = sum(int(value) for name, value in lines if name == "inactive_file")
    return max(0, int(most) - max(0, int(now) - forgotten))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
