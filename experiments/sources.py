"""Which data files a run has read: their checksums go into its checkpoints, so that it goes on with the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ash.checks import require

_noted: dict[str, str] = {}


def forget() -> None:
    """Begin anew: a run is opened."""
    _noted.clear()


def note(path: Path, content: bytes) -> None:
    """Note that `content`, unpacked, was read from `path`. Folder and .gz do not matter: only what is in the file."""
    _noted[path.name.removesuffix(".gz")] = hashlib.sha256(content).hexdigest()


def noted() -> dict[str, str]:
    """The SHA-256 of every file that has been read since `forget`, by its name."""
    return dict(_noted)


def check(then: Mapping[str, str]) -> None:
    """Raise `UserError` if a file that was read has another checksum than it had `then`."""
    other = [name for name, digest in _noted.items() if then.get(name, digest) != digest]
    told = ", ".join(f"{name} (SHA-256 {then[name][:12]} then, {_noted[name][:12]} now)" for name in other)
    require(
        not other,
        f"the checkpoint was made with other data: {told}; expected the same files; "
        "give their folder as --data-dir, or start anew without --resume.",
    )
