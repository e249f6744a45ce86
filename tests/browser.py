"""A real browser for tests: Chromium without a window, driven through chromedriver's HTTP protocol."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--window-size=1280,900"]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the protocol gives to an element's number
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine


class Browser:
    """One tab. `address` is that of the driver's session."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **given: Any) -> Any:
        """The answer to a command of the protocol. Raises `urllib.error.HTTPError` where it fails."""
        request = urllib.request.Request(self.address + path, json.dumps(given).encode(),
                                         {"Content-Type": "application/json"})
        with LOCAL.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        """Load a file and forget what was logged before."""
        self.log("browser"), self.log("performance")
        self.ask("/url", url=page.resolve().as_uri())

    def run(self, script: str, *given: Any) -> Any:
        """What a function with this body returns; a promise is waited for."""
        return self.ask("/execute/sync", script=script, args=list(given))

    def settle(self) -> None:
        """Wait until what was asked for has been drawn."""
        self.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))));")

    def keys(self, selector: str, text: str) -> None:
        """Type into the element that a style sheet would choose by `selector`."""
        found = self.ask("/element", using="css selector", value=selector)
        self.ask(f"/element/{found[ELEMENT]}/value", text=text)
        self.settle()

    def move(self, x: float, y: float, kind: str = "mouse", press: bool = False) -> None:
        """Move the pointer, a mouse or a finger (`touch`), to a place in the window, and press it there."""
        actions: list[dict[str, Any]] = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}]
        if press:
            actions += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        source = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions}
        self.ask("/actions", actions=[source])
        self.settle()

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Give the page a window of this size, a phone's for instance, in the light or the dark scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.settle()

    def command(self, name: str, **given: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.ask("/goog/cdp/execute", cmd=name, params=given)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last look: `browser`, the console; `performance`, the network."""
        return self.ask("/se/log", type=kind)

    def requests(self) -> list[str]:
        """Addresses that pages have asked for since the last look, but what they hold themselves (data:)."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [address for address in asked if not address.startswith("data:")]

    def shoot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        taken = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in a folder of its own; it is closed at the end."""
    assert CHROMIUM is not None and DRIVER is not None
    environment = {**os.environ, "NO_PROXY": "*"}
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              env=environment)
    assert driver.stdout is not None
    try:
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options,
                  "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        start = Browser(f"http://127.0.0.1:{port}")
        session = start.ask("/session", capabilities={"alwaysMatch": wanted})
        tab = Browser(f"{start.address}/session/{session['sessionId']}")
        try:
            tab.ask("/url", url="about:blank")  # the browser's own first page asks for things
            yield tab
        finally:
            LOCAL.open(urllib.request.Request(tab.address, method="DELETE"), timeout=30).close()
    finally:
        driver.terminate()
        driver.wait(30)
        driver.stdout.close()
