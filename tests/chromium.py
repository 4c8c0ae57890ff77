"""A headless Chromium, driven through chromedriver by the W3C's WebDriver protocol, of which this is as much as tests need."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["KEYS", "Browser", "missing"]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
]
PROGRAMS = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "chromedriver": ("chromedriver",)}
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Shift": "\ue008", "Left": "\ue012", "Up": "\ue013"}
KEYS |= {"Right": "\ue014", "Down": "\ue015"}
# Requests to the driver go to this machine, whatever proxy the environment names.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _program(name: str) -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS[name])), None)


def missing() -> str | None:
    """Why there is no browser to test with, if there is none."""
    lacking = [name for name in PROGRAMS if _program(name) is None]
    return f"not installed: {' and '.join(lacking)} (Debian: apt install chromium chromium-driver)" if lacking else None


class Browser:
    """One window of a browser that has an empty profile in ``folder``.

    Coordinates are those of the page, in CSS pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1200, 800)) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen(
            [str(_program("chromedriver")), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._base = f"http://127.0.0.1:{port}"
        self._wait_for_the_driver()
        options = {
            "binary": _program("chromium"),
            "args": [*FLAGS, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"],
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{session['sessionId']}"
        self.cdp("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)

    def _wait_for_the_driver(self) -> None:
        end = time.monotonic() + 20
        while True:
            try:
                self._call("GET", "/status")
                return
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > end or self._driver.poll() is not None:
                    raise
                time.sleep(0.05)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, content, {"Content-Type": "application/json"}, method=method)
        try:
            with OPENER.open(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(10)

    def open(self, path: Path) -> None:
        """Show a file, and wait until its script is done."""
        self._call("POST", "/url", {"url": path.resolve().as_uri()})
        end = time.monotonic() + 20
        while not self.run("return document.documentElement.dataset.ready"):
            assert time.monotonic() < end, f"the page is not ready: {self.log()}"
            time.sleep(0.02)

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns, the body of a function of ``arguments``."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def cdp(self, command: str, **parameters: object) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self) -> list[str]:
        """What stands in the console since the last call."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode(self._call("GET", "/screenshot"))

    def move(self, x: float, y: float) -> None:
        """Move the pointer."""
        self._pointer([self._to(x, y)])

    def click(self, x: float, y: float) -> None:
        """Press and release the left button at a point."""
        self.drag((x, y))

    def drag(self, *points: Sequence[float]) -> None:
        """Press the left button at the first point, move through the others, and release it."""
        first, *others = (self._to(*point) for point in points)
        self._pointer([first, {"type": "pointerDown", "button": 0}, *others, {"type": "pointerUp", "button": 0}])

    def wheel(self, x: float, y: float, dy: float) -> None:
        """Turn the wheel at a point."""
        self._actions("wheel", [{"type": "scroll", "x": round(x), "y": round(y), "deltaX": 0, "deltaY": dy}])

    def keys(self, *keys: str, holding: str | None = None) -> None:
        """Press keys one by one, each a character or a name in ``KEYS``."""
        values = [KEYS.get(key, key) for key in keys]
        presses = [{"type": kind, "value": value} for value in values for kind in ("keyDown", "keyUp")]
        if holding:
            held = {"value": KEYS[holding]}
            presses = [{"type": "keyDown", **held}, *presses, {"type": "keyUp", **held}]
        self._actions("key", presses)

    def _to(self, x: float, y: float) -> dict[str, Any]:
        return {"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}

    def _pointer(self, actions: list[dict[str, Any]]) -> None:
        self._actions("pointer", actions)

    def _actions(self, kind: str, actions: list[dict[str, Any]]) -> None:
        self._call("POST", "/actions", {"actions": [{"type": kind, "id": kind, "actions": actions}]})
