"""One run at a time in a folder: a lock that the system takes back when its process dies."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ash.checks import UserError

try:
    import fcntl
except ImportError:  # a system without it does not keep runs apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, no other run can hold `folder`. Raises `UserError`, which names the process, where one does."""
    path = folder / LOCK
    file = _taken(path)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _taken(path: Path) -> TextIO:
    """The lock's file, open and locked. The file that was locked may be one that its holder has just removed."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if not _lock(file) or _still_there(file, path):
                return file
        except BlockingIOError:
            raise _in_use(path, file) from None
        file.close()


def _lock(file: TextIO) -> bool:
    """Lock a file; False where the system or the file system has no locks. `BlockingIOError` if it is locked."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fcntl is not None
    except BlockingIOError:
        raise
    except OSError:
        return False


def _still_there(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _in_use(path: Path, file: TextIO) -> UserError:
    with file:
        file.seek(0)
        holder = file.read() or "another process"
    return UserError(
        f"--out {path.parent} is in use by {holder}; expected a folder that no other run writes into; "
        "wait for that run or end it, or choose another folder with --out."
    )
