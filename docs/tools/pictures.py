"""`python -m docs.tools.pictures` makes the pictures of the pages, those of tutorials by their code, in a minute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from docs.tools import idea
from docs.tools.code_blocks import run_blocks

DOCS = Path(__file__).resolve().parent.parent
PAGES = ("learn_a_matrix", "wire_per_input")
WIDEST, COLOURS = 1400, 128


def main() -> int:
    """Save the `figure` that each tutorial leaves, and that of the idea."""
    (DOCS / "pictures").mkdir(exist_ok=True)
    for name in PAGES:
        save(name, run_blocks(DOCS / "tutorials" / f"{name}.md")["figure"])
    save("one_tuple", idea.figure())
    return 0


def save(name: str, figure: Any) -> None:
    """Write a picture, small, and say how small."""
    path = DOCS / "pictures" / f"{name}.png"
    small(figure).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def small(figure: Any) -> Image.Image:
    """A matplotlib figure as a picture of few colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
    return picture.quantize(COLOURS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    sys.exit(main())
