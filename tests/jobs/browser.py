"""Chromium without a window, driven through a pipe by its own protocol (https://chromedevtools.github.io/devtools-protocol)."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
SECONDS = 60.0


def chromium() -> str:
    """The program. Skips a test where it is missing, or fails it where DEEPLENSE_REQUIRE_PROGRAMS=1 says that none may
    be."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found:
        return found
    reason = "chromium is not installed; on Debian, as root: apt-get install chromium"
    if os.environ.get("DEEPLENSE_REQUIRE_PROGRAMS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class Browser:
    """A browser with one page. What pages keep lies in its profile, so that another browser can go on from there."""

    def __init__(self, profile: Path, *, width: int = 1400, height: int = 900) -> None:
        self.number, self.rest, self.events = 0, b"", list[dict[str, Any]]()
        here, self.to = os.pipe()
        self.source, there = os.pipe()
        words = [chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # The protocol wants the descriptors 3 and 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{here} 4>&{there}', "bash", *words]
        silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(shell, pass_fds=(here, there), start_new_session=True, **silent)
        os.close(here)
        os.close(there)
        self.session = ""
        (target,) = (
            each["targetId"] for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"
        )
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Call the browser and return its answer."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": values}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            found = self.receive()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def receive(self) -> dict[str, Any]:
        """The next message of the browser."""
        while b"\0" not in self.rest:
            part = os.read(self.source, 1 << 16)
            assert part, "the browser has ended"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, path: Path) -> None:
        """Open a file as a page, and wait until it is loaded."""
        self.load("Page.navigate", url=path.resolve().as_uri())

    def reload(self) -> None:
        """Load the page again."""
        self.load("Page.reload")

    def load(self, method: str, **values: Any) -> None:
        """Load a page by this call."""
        before = len(self.messages("Page.loadEventFired"))
        self.call(method, **values)
        while len(self.messages("Page.loadEventFired")) == before:
            self.events.append(self.receive())

    def forget(self) -> None:
        """Remove all that pages of files keep, and load the page again."""
        self.call("Storage.clearDataForOrigin", origin="file://", storageTypes="all")
        self.reload()

    def do(self, script: str) -> Any:
        """Evaluate an expression in the page and return its value."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true in the page."""
        end = time.monotonic() + SECONDS
        while not self.do(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys, one after another."""
        for key in keys:
            text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, element: str) -> None:
        """Click on an element with the mouse."""
        x, y = self.do(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def messages(self, method: str) -> list[dict[str, Any]]:
        """The values of all events of a kind so far."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def close(self) -> None:
        """End the browser as a user does, so that it writes all that it keeps."""
        self.session = ""
        self.call("Browser.close")
        self.wait()

    def kill(self) -> None:
        """End it and its processes at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        """Wait for its end."""
        self.process.wait(SECONDS)
        for descriptor in (self.to, self.source):
            if descriptor >= 0:
                os.close(descriptor)
        self.to = self.source = -1
