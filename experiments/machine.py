"""What a run records about the program and the machine: version, git commit, peak memory."""

from __future__ import annotations

import importlib.metadata
import resource
import subprocess
import sys
from pathlib import Path

import ash


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, in bytes.

    On Linux this is VmHWM: `ru_maxrss` there starts from the size of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def version() -> str:
    """Version of the installed distribution, or `ash.__version__` of a bare checkout."""
    try:
        return importlib.metadata.version("ash-wiring")
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(ash, "__version__", "unknown"))


def commit() -> str | None:
    """Git commit of the checkout that this file lies in, with `-dirty` if files differ from it.

    None outside a checkout of this project, before its first commit, and where git is missing.
    """
    root = Path(__file__).resolve().parent.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None
    return _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
