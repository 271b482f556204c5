"""Chromium through chromedriver's own protocol (W3C WebDriver: JSON over HTTP), for tests of the report: no package is
needed, and a machine without both programs skips with the reason.
"""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMES = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str | None:
    """Why no browser can be driven; None where one can."""
    if shutil.which("chromedriver") is None:
        return "chromedriver is not installed"
    return None if any(map(shutil.which, CHROMES)) else "Chromium is not installed"


class Browser:
    """A window without a screen."""

    def __init__(self, root: str) -> None:
        self._root = root

    def _call(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._root}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path) -> None:
        """Load a file; returns when it is loaded."""
        self._call("/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """What a function body in JavaScript returns."""
        return self._call("/execute/sync", {"script": script, "args": []})

    def until(self, expression: str, seconds: float = 60.0) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (found := self.run(f"return {expression}")):
            assert time.monotonic() < end, f"{expression} is {found!r} after {seconds:.0f} s"
            time.sleep(0.05)
        return found

    def click(self, x: float, y: float) -> None:
        """A click of the mouse at a place of the window."""
        move = {"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y), "origin": "viewport"}
        press = [{"type": "pointerDown", "button": 0}, {"type": "pause", "duration": 60}]
        steps = [move, {"type": "pause", "duration": 120}, *press, {"type": "pointerUp", "button": 0}]
        self._call("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def errors(self) -> list[str]:
        """What the console was told since the last call, warnings and errors alone."""
        told = self._call("/se/log", {"type": "browser"})
        return [entry["message"] for entry in told if entry["level"] in ("SEVERE", "WARNING")]

    def process_seconds(self) -> float:
        """Processor time that the page has taken."""
        self._call("/goog/cdp/execute", {"cmd": "Performance.enable", "params": {}})
        found = self._call("/goog/cdp/execute", {"cmd": "Performance.getMetrics", "params": {}})
        return float({m["name"]: m["value"] for m in found["metrics"]}["ProcessTime"])

    def picture(self, path: Path) -> None:
        """The window as PNG."""
        path.write_bytes(base64.b64decode(self._call("/screenshot")))


@contextmanager
def browser(width: int = 1280, height: int = 1000, *, dark: bool = False) -> Iterator[Browser]:
    """A window; of a phone below 600 pixels."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
    ]
    arguments += [f"--window-size={width},{height}"]
    options: dict[str, Any] = {"args": arguments, "binary": next(filter(None, map(shutil.which, CHROMES)))}
    if dark:
        arguments.append("--blink-settings=preferredColorScheme=0")
    options["mobileEmulation"] = {
        "deviceMetrics": {
            "width": width,
            "height": height,
            "pixelRatio": 1.0,
            "mobile": width < 600,
            "touch": False,
        }
    }
    asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        root = f"http://127.0.0.1:{port}"
        session = _session(root, {"capabilities": {"alwaysMatch": asked}})
        try:
            yield Browser(f"{root}/session/{session}")
        finally:
            request = urllib.request.Request(f"{root}/session/{session}", method="DELETE")
            urllib.request.urlopen(request, timeout=60).close()
    finally:
        driver.terminate()
        driver.wait()


def _session(root: str, body: object) -> str:
    """Begun as soon as the driver listens."""
    end = time.monotonic() + 60
    while True:
        try:
            return str(Browser(root)._call("/session", body)["sessionId"])
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < end, "chromedriver does not listen"
            time.sleep(0.1)
