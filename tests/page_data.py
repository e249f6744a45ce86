"""What a page holds, read back from its file."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np


def held(path: Path) -> dict[str, Any]:
    """What the page gives to its script."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def numbers(text: str, dtype: str) -> np.ndarray:
    """The array that was packed as base64."""
    return np.frombuffer(base64.b64decode(text), dtype)
