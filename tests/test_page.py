"""`ash.plot.page`: what the file holds and refuses, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ash import plot
from ash.checks import UserError
from ash.plot.page_tracks import EDGES, TUPLES
from experiments.__main__ import main
from tests.browser import CHROMIUM, DRIVER, Browser, browser
from tests.page_data import held, numbers


def frames(count: int = 5, k: int = 6, n: int = 8) -> list[plot.Frame]:
    """Tuples that wander from frame to frame; step 10 lies between two of them."""
    generator = np.random.default_rng(0)
    starts, ends = generator.uniform(0, n - 1, (2, k, 2))
    return [
        plot.Frame(10 * i, starts + (ends - starts) * i / max(1, count - 1), np.full((k, 2), 0.5),
                   generator.normal(size=k), None, (n, n))
        for i in range(count)
    ]


def edge_frames() -> list[tuple[int, Any, Any]]:
    """Three edges, of which one goes and another comes."""
    return [
        (0, [[0, 1], [2, 3], [4, 5]], [1.0, -0.5, 0.25]),
        (20, [[0, 1], [2, 3], [1, 1]], [1.0, -0.5, 2.0]),
    ]


# --- the file --------------------------------------------------------------------------------------------


def test_the_policy_forbids_everything_but_the_pages_own_script_and_style(tmp_path: Path) -> None:
    text = plot.page(tmp_path / "a.html", "A").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1] and "http" not in policy[1]
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_text_cannot_leave_its_place(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    text = plot.page(tmp_path / "a.html", evil, about=evil, charts={evil: plot.Chart({evil: ([1], [2])})},
                     tables={evil: [[evil], [plot.Link(evil, evil)]]}).read_text(encoding="utf-8")  # fmt: skip
    assert text.count("<script") == 2 and "<script>alert" not in text
    assert held(tmp_path / "a.html")["charts"][0]["series"][0]["name"] == evil


def test_a_track_of_tuples_holds_every_mean_scale_and_value(tmp_path: Path) -> None:
    given = frames()
    plot.page(tmp_path / "a.html", "A", tracks={"tuples": plot.TupleTrack(given, target=[[1, 2]])})
    (track,) = held(tmp_path / "a.html")["tracks"]
    columns = [numbers(track["blobs"][place], "<f4") for place in track["columns"]]
    assert track["steps"] == [0, 10, 20, 30, 40] and numbers(track["target"], "<i4").tolist() == [1, 2]
    means = np.stack(columns[:2], -1).reshape(5, 6, 2)
    assert np.allclose(means, [one.means for one in given])
    assert np.allclose(columns[4].reshape(5, 6), [one.values for one in given])
    # Scales are the same in both columns and in all frames: one copy for one frame.
    assert track["columns"][2] == track["columns"][3] and columns[2].tolist() == [0.5] * 6


def test_a_frame_with_fewer_tuples_leaves_gaps(tmp_path: Path) -> None:
    few, many = frames(1, k=2)[0], plot.Frame(5, np.ones((3, 2)), np.ones((3, 2)), np.ones(3), None, (8, 8))
    plot.page(tmp_path / "a.html", "A", tracks={"tuples": plot.TupleTrack([few, many])})
    (track,) = held(tmp_path / "a.html")["tracks"]
    rows = numbers(track["blobs"][track["columns"][0]], "<f4").reshape(2, 3)
    assert np.isnan(rows[0]).tolist() == [False, False, True] and not np.isnan(rows[1]).any()


def test_edges_that_come_and_go(tmp_path: Path) -> None:
    plot.page(tmp_path / "a.html", "A", tracks={"edges": plot.EdgeTrack(edge_frames(), (6, 6))})
    (track,) = held(tmp_path / "a.html")["tracks"]
    pairs = list(zip(numbers(track["rows"], "<i4"), numbers(track["columns"], "<i4"), strict=True))
    assert pairs == [(0, 1), (1, 1), (2, 3), (4, 5)]
    states = numbers(track["states"], "u1").reshape(2, 4).tolist()
    assert states == [[192, 0, 96, 144], [192, 255, 96, 0]]  # 128 and 127 times the value over the largest, 2
    assert track["counts"] == [[3, 0, 0], [3, 1, 1]]


def test_gates_are_cells_and_curves(tmp_path: Path) -> None:
    panels = {"into b": {"a": [0.5, 0.75]}, "into c": {"a": [0.5, 0.25], "b": [0.5, -2.0]}}
    plot.page(tmp_path / "a.html", "A", tracks={"gates": plot.GateTrack([0, 7], panels)})
    data = held(tmp_path / "a.html")
    (track,), (chart,) = data["tracks"], data["charts"]
    assert track["cells"] == [[0, 0], [1, 0], [1, 1]] and track["limit"] == 2
    assert numbers(track["gates"], "<f4").reshape(2, 3).tolist() == [[0.5, 0.5, 0.5], [0.75, 0.25, -2.0]]
    assert [one["name"] for one in chart["series"]] == ["a → into b", "a → into c", "b → into c"]
    assert chart["series"][2]["y"] == [0.5, -2.0]


def test_a_long_curve_keeps_its_ends_and_its_spikes(tmp_path: Path) -> None:
    values = np.zeros(100_000)
    values[54_321], values[77_777] = 9.0, np.nan
    plot.page(tmp_path / "a.html", "A", charts={"loss": plot.Chart({"loss": (np.arange(100_000), values)})})
    (curve,) = held(tmp_path / "a.html")["charts"][0]["series"]
    assert len(curve["x"]) == len(curve["y"]) <= 402
    assert curve["x"][0] == 0 and curve["x"][-1] == 99_999
    assert curve["y"][curve["x"].index(54_321)] == 9


@pytest.mark.parametrize(("values", "logy"), [
    ([1.0, 0.001], True), ([1.0, 0.5], False), ([1.0, 0.0], False), ([float("nan"), 1.0], False),
])
def test_values_that_differ_much_stand_on_a_logarithmic_axis(tmp_path: Path, values: list[float], logy: bool) -> None:
    plot.page(tmp_path / "a.html", "A", charts={"loss": plot.Chart({"loss": ([0, 1], values)})})
    (chart,) = held(tmp_path / "a.html")["charts"]
    assert chart["logy"] is logy
    assert chart["series"][0]["y"] == [None if np.isnan(value) else value for value in values]


def test_a_page_stays_below_two_megabytes_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    many = [plot.Frame(i, generator.uniform(0, 99, (3000, 2)), generator.uniform(1, 2, (3000, 2)),
                       generator.normal(size=3000), None, (100, 100)) for i in range(50)]  # fmt: skip
    edges = [(i, generator.integers(0, 1000, (30_000, 2))) for i in range(50)]
    noise = generator.integers(0, 255, (700, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(noise[:20, :20]).save(tmp_path / "small.png")
    curves = {f"net {i}": (np.arange(5000), generator.normal(size=5000)) for i in range(100)}
    path = plot.page(
        tmp_path / "a.html", "A", charts={"loss": plot.Chart(curves)},
        tracks={"tuples": plot.TupleTrack(many), "edges": plot.EdgeTrack(edges, (1000, 1000))},
        files=[tmp_path / "noise.png", tmp_path / "small.png"],
    )  # fmt: skip
    assert path.stat().st_size < 2_000_000
    tuples, shown = held(path)["tracks"]
    assert len(tuples["steps"]) < 50 and tuples["steps"][0] == 0 and tuples["steps"][-1] == 49
    assert tuples["k"] == TUPLES and "2,000 of 3,000 tuples" in " ".join(tuples["notes"])
    assert len(numbers(shown["rows"], "<i4")) == EDGES and "edges are here" in " ".join(shown["notes"])
    assert shown["counts"][0][0] == len(np.unique(edges[0][1], axis=0))
    text = path.read_text(encoding="utf-8")
    assert 'alt="small.png"' in text and 'href="noise.png"' in text and 'alt="noise.png"' not in text


def test_what_is_refused(tmp_path: Path) -> None:
    def write(**given: Any) -> None:
        plot.page(tmp_path / "a.html", "A", **given)

    with pytest.raises(UserError, match=r"ends in \.html"):
        plot.page(tmp_path / "a.png", "A")
    with pytest.raises(UserError, match="rising steps"):
        write(tracks={"t": plot.TupleTrack([*frames(2), *frames(1)])})
    with pytest.raises(UserError, match="without frames"):
        write(tracks={"t": plot.EdgeTrack([], (2, 2))})
    with pytest.raises(UserError, match="outside"):
        write(tracks={"t": plot.EdgeTrack([(0, [[0, 2]])], (2, 2))})
    with pytest.raises(UserError, match="values for 1 of 2 entries"):
        write(tracks={"t": plot.EdgeTrack([(0, [[0, 1], [1, 1]], [1.0])], (2, 2))})
    with pytest.raises(UserError, match="not known at all of the 1 steps"):
        write(tracks={"t": plot.GateTrack([0], {"into b": {"a": [0.5, 1]}})})
    with pytest.raises(UserError, match="2 steps and 1 values"):
        write(charts={"c": plot.Chart({"loss": ([0, 1], [1.0])})})
    with pytest.raises(UserError, match="which are no series"):
        write(charts={"c": plot.Chart({"loss": ([0], [1.0])}, {"error": ([0], [1])})})
    with pytest.raises(UserError, match=r"no\.png cannot be read"):
        write(files=[tmp_path / "no.png"])
    assert not (tmp_path / "a.html").exists()


# --- in a browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests that need one."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium and its driver are not installed: apt-get install chromium chromium-driver")
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a track of each kind."""
    panels = {"into b": {"a": [0.5, 0.75]}, "into c": {"a": [0.5, 0.25], "b": [0.5, 0.9]}}
    tracks = {"tuples": plot.TupleTrack(frames(), target=[[1, 1]]), "edges": plot.EdgeTrack(edge_frames(), (6, 6)),
              "gates": plot.GateTrack([0, 20], panels)}  # fmt: skip
    charts = {"loss": plot.Chart({"train": (range(41), np.geomspace(1, 1e-3, 41)), "test": ([0, 40], [0.9, 0.2])},
                                 {"test": ([0.8, 0.1], [1.0, 0.3])})}  # fmt: skip
    wide = [["", *(f"a figure with a long name {i}" for i in range(9))], ["run", *range(9)]]
    file = tmp_path_factory.mktemp("page") / "index.html"
    return plot.page(file, "A page", tracks=tracks, charts=charts, tables={"wide": wide})


def pictures(tab: Browser) -> list[str]:
    return tab.run("return [...document.querySelectorAll('canvas')].map(canvas => canvas.toDataURL());")


def told(tab: Browser, number: int) -> str | None:
    """The text beside the pointer in a picture, None where there is none."""
    return tab.run("const tip = document.querySelectorAll('.tip')[arguments[0]];"
                   "return tip.hidden ? null : tip.textContent;", number)  # fmt: skip


def states(tab: Browser) -> list[str]:
    return tab.run("return [...document.querySelectorAll('.state')].map(line => line.textContent);")


def place(tab: Browser, number: int, x: float, y: float) -> tuple[float, float]:
    """Where in the window a share of a picture's width and a height in pixels from its top is."""
    box = tab.run("const canvas = document.querySelectorAll('canvas')[arguments[0]]; canvas.scrollIntoView();"
                  "const box = canvas.getBoundingClientRect(); scrollBy(0, -80);"
                  "return [box.left, canvas.getBoundingClientRect().top, box.width];", number)  # fmt: skip
    return box[0] + x * box[2], box[1] + y


def sound(tab: Browser, page: Path) -> None:
    """No error in the console, and nothing asked for but the page."""
    assert tab.log("browser") == []
    assert tab.requests() == [page.resolve().as_uri()]
    assert tab.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []


def test_the_slider_moves_every_picture(tab: Browser, shown: Path) -> None:
    tab.resize(1280, 900)
    tab.open(shown)
    last = pictures(tab)
    assert states(tab)[0] == "step 40: 6 tuples" and states(tab)[1] == "step 20: 3 edges, 1 new, 1 gone"
    tab.keys("#slider", "\ue011")  # Home
    first = pictures(tab)
    assert tab.run("return document.getElementById('step').textContent") == "step 0"
    assert states(tab)[0] == "step 0: 6 tuples" and states(tab)[1] == "step 0: 3 edges, 0 new, 0 gone"
    assert all(a != b for a, b in zip(first, last, strict=True))
    tab.keys("#slider", "\ue014")  # right
    assert tab.run("return document.getElementById('step').textContent") == "step 10"
    assert pictures(tab)[0] not in (first[0], last[0])
    tab.keys("body", "\ue010")  # End, wherever the focus is
    assert pictures(tab) == last
    sound(tab, shown)


def test_play_goes_from_the_first_frame_to_the_last(tab: Browser, shown: Path) -> None:
    tab.open(shown)
    tab.run("window.seen = []; const step = document.getElementById('step');"
            "new MutationObserver(() => seen.push(step.textContent)).observe(step, {childList: true});"
            "document.getElementById('play').click();")  # fmt: skip
    assert tab.run("return document.getElementById('play').getAttribute('aria-label')") == "pause"
    tab.run("return new Promise(done => { const look = () => document.getElementById('play').ariaLabel === 'play' ?"
            "done(1) : setTimeout(look, 20); look(); });")  # fmt: skip
    seen = tab.run("return seen")
    assert [text for i, text in enumerate(seen) if text not in seen[:i]] == [f"step {i}" for i in (0, 10, 20, 30, 40)]


def test_the_pointer_is_told_the_tuple_the_edge_the_gate_and_the_point(tab: Browser, shown: Path) -> None:
    tab.resize(1280, 900)
    tab.open(shown)
    last = frames()[-1]
    row, column = last.means[3]
    box = tab.run("return document.querySelector('canvas').clientWidth") - 62
    side = min(box, 620)
    x, y = place(tab, 0, 0, 0)
    tab.move(x + 52 + (column + 0.5) / 8 * side, y + 8 + (row + 0.5) / 8 * side)
    text = told(tab, 0)
    assert text is not None and text.splitlines()[0].startswith("tuple 3: output ")
    assert [float(word) for word in re.findall(r"-?\d+\.?\d*", text)[1:]] == pytest.approx(
        [row, column, 0.5, last.values[3]], rel=1e-3)  # fmt: skip
    x, y = place(tab, 1, 0, 0)
    tab.move(x + 52 + 1.5 / 6 * side, y + 8 + 1.5 / 6 * side)
    assert told(tab, 1) == "edge: target 1, source 1\nthere since step 20\nvalue about 2"
    tab.move(x + 52 + 5.5 / 6 * side, y + 8 + 4.5 / 6 * side)
    assert told(tab, 1) == "edge: target 4, source 5\ngone since step 20"
    x, y = place(tab, 2, 0, 0)
    tab.move(x + 113, y + 75)
    assert told(tab, 2) == "b → into c\ngate 0.9 (first 0.5)"
    tab.move(*place(tab, 3, 0.999, 20))
    assert told(tab, 2) is None
    x, y = place(tab, 3, 0, 0)
    tab.move(x + 64, y + 10)
    assert told(tab, 3) in ("train\nstep 0: 1", "test\nstep 0: 0.9 (0.8 to 1)")


def test_a_tap_on_a_curve_takes_the_slider_there(tab: Browser, shown: Path) -> None:
    tab.resize(360, 740)
    tab.open(shown)
    tab.move(*place(tab, 3, 0.55, 60), kind="touch", press=True)
    assert tab.run("return document.getElementById('step').textContent") == "step 20"
    assert told(tab, 3) is not None
    sound(tab, shown)


@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_fits_its_window(tab: Browser, shown: Path, width: int) -> None:
    tab.resize(width, 740)
    tab.open(shown)
    assert tab.run("return document.documentElement.scrollWidth") <= width
    narrow = tab.run("return [...document.querySelectorAll('figure.drawn')].map(f => f.getBoundingClientRect().right)")
    assert max(narrow) <= width
    small = tab.run("return Math.min(...[...document.querySelectorAll('p, td, .legend, figcaption, output')]"
                    ".filter(e => e.textContent).map(e => parseFloat(getComputedStyle(e).fontSize)))")  # fmt: skip
    assert small >= 12
    assert tab.run("return document.querySelector('table').getBoundingClientRect().right") > 360  # scrolls in itself


def test_the_page_of_a_run(tab: Browser, tmp_path: Path) -> None:
    """The smallest real run: its tuples move beside its curves, and its pictures are inside."""
    assert main(["identity", "--size", "6", "--steps", "20", "--run-on", "--out", str(tmp_path)]) == 0
    (track,) = held(tmp_path / "index.html")["tracks"]
    assert track["steps"] == [0, 10, 20] and track["k"] == 6 and len(numbers(track["target"], "<i4")) == 2 * 6
    tab.resize(360, 740)
    tab.open(tmp_path / "index.html")
    last = pictures(tab)
    tab.keys("#slider", "\ue012")  # left
    assert states(tab)[0] == "step 10: 6 tuples"
    assert all(a != b for a, b in zip(pictures(tab), last, strict=True))
    images = tab.run("return [...document.images].map(image => [image.alt, image.complete && image.naturalWidth > 99])")
    assert images == [["row.png", True], ["means.png", True], ["means.gif", True], ["errors.png", True]]
    assert tab.run("return document.documentElement.scrollWidth") <= 360
    sound(tab, tmp_path / "index.html")


def test_the_dark_scheme_redraws_in_its_own_colours(tab: Browser, shown: Path) -> None:
    tab.resize(800, 740)
    tab.open(shown)
    light = pictures(tab)
    tab.resize(800, 740, dark=True)
    assert all(a != b for a, b in zip(pictures(tab), light, strict=True))
    assert tab.run("return getComputedStyle(document.body).backgroundColor") == "rgb(25, 24, 23)"
