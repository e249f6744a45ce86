"""A page of one file that shows a training: a slider through it, curves beside, tables and pictures.

The page holds everything that it shows and asks nothing of any network: its content security policy forbids it to,
and lets the browser run this module's script alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from ash.checks import UserError, require
from ash.plot.curves import DIVERGING, INK, LINES, PALE, write_whole
from ash.plot.page_charts import POINTS, Chart
from ash.plot.page_tracks import GateTrack, Track

WEB = Path(__file__).with_name("web")
SCRIPTS = ("base.js", "chart.js", "tuples.js", "edges.js", "gates.js", "page.js")
ROOM = {"all": 1_700_000, "tracks": 900_000, "text": 60_000}
"""Characters that a page has for all that it shows, for its tracks, and for its texts, about; pictures get the rest."""
CHART_POINTS = 20_000
"""Points of all curves of a page together."""
LIGHT = {"paper": "#ffffff", "ink": INK, "pale": PALE, "lines": LINES, "map": DIVERGING}
DARK = {
    "paper": "#191817",
    "ink": "#dedbd5",
    "pale": "#5a5651",
    "lines": ("#f08a5d", "#6fa8e0", "#6fc08c", "#b794d6", "#e0b84a", "#b0aba4"),
    "map": ("#9cc9f5", "#5a96d6", "#4a6f95", "#77736e", "#a5714f", "#e5803f", "#ffb27a"),
}
IMAGES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
TEXTS = (".md", ".txt", ".csv")


class Link(NamedTuple):
    """A cell of a table that leads to another file, named relative to the page."""

    text: str
    path: str


def page(
    path: str | os.PathLike[str],
    title: str,
    *,
    about: str = "",
    tracks: Mapping[str, Track] | None = None,
    charts: Mapping[str, Chart] | None = None,
    tables: Mapping[str, Sequence[Sequence[Any]]] | None = None,
    folded: Sequence[str] = (),
    files: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write a page that opens from disk in any browser; returns the path.

    Args:
        path: ends in .html. title: the heading. about: a line below it.
        tracks: title: what the slider moves. Gates are drawn as curves, too.
        charts: title: curves, whose steps are the slider's.
        tables: title: rows of cells, the first of them the head. A cell is text, a number or a `Link`.
        folded: the titles of tables that are closed until they are asked for.
        files: pictures and texts (Markdown, CSV) that the page shows; those for which it has no room, the largest,
            become links to the files.

    Long tracks and curves are thinned, so that the page stays below about two megabytes; what is left out is said
    below the picture. Raises `UserError` for another suffix, a file that cannot be read, and what the tracks and the
    charts refuse.
    """
    require(Path(path).suffix.lower() == ".html", f"{os.fspath(path)!r}; expected a name that ends in .html.")
    taken, lines = dict(tracks or {}), dict(charts or {})
    for name, track in taken.items():
        if isinstance(track, GateTrack):
            steps, gates = track.lines()
            lines[f"{name} over training"] = _gate_chart(steps, gates)
    room = ROOM["tracks"] // max(1, len(taken))
    most = min(POINTS, CHART_POINTS // max(1, sum(len(chart.series) for chart in lines.values())))
    # Inside a script element only "<" could end the data early.
    data = json.dumps({"tracks": [track.encode(room) for track in taken.values()],
                       "charts": [chart.encode(most) for chart in lines.values()]},
                      allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    shown = [*_figures([*taken, *lines]), *_tables(tables or {}, set(folded))]
    shown += _files(Path(path), files, ROOM["all"] - len(data))
    text = _document(title, about, data, "\n".join(shown)).encode()  # bytes: another line end is another digest
    return write_whole(path, lambda aside: aside.write_bytes(text))


def _gate_chart(steps: Any, gates: Mapping[str, Mapping[str, Any]]) -> Chart:
    series = {f"{source} → {target}": (steps, values) for target, each in gates.items()
              for source, values in each.items()}
    return Chart(series, logy=False, ylabel="gate")


# --- parts of the document -----------------------------------------------------------------------------


def _figures(titles: Sequence[str]) -> list[str]:
    """A frame for every picture that the script draws."""
    one = ('<figure class="drawn"><figcaption>{0}</figcaption><div class="stage"><canvas role="img" aria-label="{0}">'
           '</canvas><div class="tip" role="status" hidden></div></div><div class="legend"></div>'
           '<p class="state"></p></figure>')
    figures = [one.format(escape(title)) for title in titles]
    return ['<section class="pictures" id="drawn">', *figures, "</section>"] if figures else []


def _tables(tables: Mapping[str, Sequence[Sequence[Any]]], folded: set[str]) -> list[str]:
    found = []
    for title, rows in tables.items():
        require(len(rows) > 0, f"the table {title!r} has no rows; expected a head at least.")
        body = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows[1:])
        head = "".join(f'<th scope="col">{_inner(cell)}</th>' for cell in rows[0])
        kind = ' class="pairs"' if len(rows[0]) == 2 else ""
        table = f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        start = f"<summary>{escape(title)}</summary>" if title in folded else f"<h2>{escape(title)}</h2>"
        tag = "details" if title in folded else "section"
        found.append(f"<{tag}>{start}{table}</{tag}>")
    return found


def _cell(cell: Any) -> str:
    number = isinstance(cell, (int, float)) and not isinstance(cell, bool)
    return f'<td class="number">{_inner(cell)}</td>' if number else f"<td>{_inner(cell)}</td>"


def _inner(cell: Any) -> str:
    if isinstance(cell, Link):
        return f'<a href="{urllib.parse.quote(cell.path)}">{escape(cell.text)}</a>'
    return escape(f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else
                  f"{cell:.6g}" if isinstance(cell, float) else str(cell))


def _files(path: Path, files: Sequence[str | os.PathLike[str]], left: int) -> list[str]:
    """Pictures and texts, the smallest ones inside the page, in so many characters, and the others as links."""
    taken = {file: _read(file) for file in map(Path, files)}
    room = {"pictures": left * 3 // 4, "text": ROOM["text"]}  # base64 has four characters for three bytes
    inside = set()
    for file in sorted(taken, key=lambda file: len(taken[file])):
        kind = "pictures" if file.suffix.lower() in IMAGES else "text"
        room[kind] -= len(taken[file])
        if room[kind] >= 0 and file.suffix.lower() in (*IMAGES, *TEXTS):
            inside.add(file)
    pictures = [_image(file, taken[file], path) for file in taken if file in inside and file.suffix.lower() in IMAGES]
    texts = [f"<details><summary>{escape(file.name)}</summary><pre>{escape(taken[file].decode('utf-8', 'replace'))}"
             "</pre></details>" for file in taken if file in inside and file.suffix.lower() in TEXTS]
    links = [f'<li><a href="{_address(file, path)}">{escape(file.name)}</a> ({len(taken[file]) / 1e6:.1f} MB)</li>'
             for file in taken if file not in inside]
    found = ['<section class="pictures">', *pictures, "</section>"] if pictures else []
    found += texts
    return [*found, "<section><h2>Files beside this page</h2><ul>", *links, "</ul></section>"] if links else found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as problem:
        raise UserError(f"{file} cannot be read ({problem}); expected a picture or a text; leave it out.") from None


def _image(file: Path, content: bytes, path: Path) -> str:
    source = f"data:{IMAGES[file.suffix.lower()]};base64,{base64.b64encode(content).decode('ascii')}"
    name = escape(Path(os.path.relpath(file, path.parent)).as_posix())
    return f'<figure><img src="{source}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def _address(file: Path, path: Path) -> str:
    return urllib.parse.quote(Path(os.path.relpath(file, path.parent)).as_posix())


# --- the document --------------------------------------------------------------------------------------


@cache
def _script() -> str:
    parts = [(WEB / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


@cache
def _style() -> str:
    def colours(scheme: Mapping[str, Any]) -> str:
        return "".join(f"--{name}:{value if isinstance(value, str) else ' '.join(value)};"
                       for name, value in scheme.items())

    schemes = f":root{{{colours(LIGHT)}}}\n@media (prefers-color-scheme:dark){{:root{{{colours(DARK)}}}}}\n"
    return schemes + (WEB / "page.css").read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What the policy must hold for a browser to take a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _document(title: str, about: str, data: str, shown: str) -> str:
    script, style = _script(), _style()
    policy = (f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
              "base-uri 'none'; form-action 'none'")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>
<noscript><p>The slider and the curves need JavaScript; tables and pictures do not.</p></noscript>
<div class="control" id="control" hidden>
<button type="button" id="play" aria-label="play">▶</button>
<input type="range" id="slider" min="0" max="0" value="0" step="1" aria-label="step of the training">
<output id="step" for="slider"></output>
</div>
<main>
{shown}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
