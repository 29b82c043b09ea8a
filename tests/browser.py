"""A real browser for the tests: headless Chromium, driven over its DevTools protocol through a pipe.

The binary is that which `services/fetch_chromium.sh` brought, else one that is installed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FETCHED = Path(__file__).parents[1] / ".services/chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "needs Chromium: run tests/services/fetch_chromium.sh, or install it"
SECONDS = 90.0
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--remote-debugging-pipe",
)  # fmt: skip
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>/usr/share/fonts</dir><dir>{root}/usr/share/fonts</dir><cachedir>{folder}</cachedir>
<match><test name="family"><string>system-ui</string></test>
<edit name="family" mode="prepend" binding="strong"><string>Liberation Sans</string></edit></match>
<match><test name="family"><string>sans-serif</string></test>
<edit name="family" mode="prepend" binding="strong"><string>Liberation Sans</string></edit></match>
<match><edit name="family" mode="append"><string>Liberation Sans</string></edit></match></fontconfig>
"""


class MissingBrowserError(Exception):
    """There is no browser on this machine."""


class Browser:
    """One page at a time, and everything that it complained of.

    Attributes:
        complaints: What the page wrote to its console or threw, and what was refused or failed to load.
        requests: Addresses that the page asked for besides its own.
    """

    def __init__(self, folder: Path) -> None:
        command, environment = _command(folder)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The protocol's pipes are the descriptors 3 and 4; these may be among ours.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        start = 'exec "$@" 3<&{} 4>&{}'.format(*ends)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "bash",
                    "-c",
                    start,
                    "start",
                    command,
                    *OPTIONS,
                    f"--user-data-dir={folder / 'profile'}",
                    "about:blank",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=ends,
                env=environment,
            )
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self._count = 0
        self._received = b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def open(self, page: Path, *, fragment: str = "", width: int = 1000, height: int = 800, dark: bool = False) -> None:
        """Loads a file, and waits until it has."""
        self.complaints.clear()
        self.requests.clear()
        self.emulate(width=width, height=height, dark=dark)
        self._go("about:blank")  # or another fragment of the same page would load nothing
        self.address = page.absolute().as_uri()
        self._go(self.address + fragment)
        self.evaluate("new Promise(done => requestAnimationFrame(() => done(true)))")

    def _go(self, address: str) -> None:
        self._loaded = False
        self._send("Page.navigate", url=address)
        deadline = time.monotonic() + SECONDS
        while not self._loaded:
            self._receive(deadline)

    def emulate(self, *, width: int = 1000, height: int = 800, dark: bool = False, media: str = "screen") -> None:
        """Size of the window in CSS pixels, and what the style asks for."""
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self._send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Moves the mouse to a point of the window."""
        self._send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, text: str) -> None:
        """Writes where the focus is."""
        self._send("Input.insertText", text=text)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Writes a PNG of the page."""
        image = self._send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(image))

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._session = ""
            self._send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if getattr(self, "_session", ""):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message; an event is noted."""
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._read, 1 << 20) if ready else b""
            if not part:
                raise EOFError(
                    f"Chromium ended, or said nothing within {SECONDS} seconds; see the file log in its folder."
                )
            self._received += part
        line, _, self._received = self._received.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(about))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("warning", "error"):
            self.complaints.append(about["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            url = about["request"]["url"].partition("#")[0]
            if url not in (getattr(self, "address", ""), "about:blank") and not url.startswith("data:"):
                self.requests.append(url)


def browsers(folder: Path) -> Iterator[Browser]:
    """For a fixture: a browser with its files in `folder`; the tests are skipped where there is none."""
    try:
        browser = Browser(folder)
    except MissingBrowserError as exc:
        pytest.skip(str(exc))
    yield browser
    browser.close()


def _command(folder: Path) -> tuple[Path | str, dict[str, str]]:
    """The browser and its environment.

    Raises:
        MissingBrowserError: There is none.
    """
    root = Path(os.environ.get("LLMREC_TEST_CHROMIUM", FETCHED))
    environment = {**os.environ, "HOME": str(folder)}
    binary = root / "usr/lib/chromium/chromium"
    if not binary.is_file():
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            raise MissingBrowserError(MISSING)
        return found, environment
    folders = [*root.glob("usr/lib/*-linux-gnu*"), *root.glob("usr/lib/*-linux-gnu*/pulseaudio")]
    libraries = sorted(str(path) for path in folders if path.is_dir())
    (folder / "fonts.conf").write_text(FONTS.format(root=root, folder=folder / "fonts"))
    environment |= {"LD_LIBRARY_PATH": ":".join(libraries), "FONTCONFIG_FILE": str(folder / "fonts.conf")}
    return binary, environment
