"""A page in headless Chromium, by its debugging pipe: what it logs, what it asks the network for, and how wide it is.

Chromium reads requests from its file descriptor 3 and answers on 4, JSON with a NUL after each, so there is no port.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")


def browser() -> str | None:
    """The program that the variable CHROMIUM names, else the first of these that the machine has."""
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Seen:
    """One page at one width."""

    width: int
    scroll_width: int = 0
    """CSS pixels; more than width where something has to be scrolled sideways."""
    logged: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)
    """URLs besides the page's own."""
    cut: list[str] = field(default_factory=list)
    """Elements that reach beyond the right edge and are in no box that scrolls."""


_BEYOND = """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest('.scroll, pre')).map(e => e.tagName + ' ' + e.className).slice(0, 5)"""


@dataclass
class Chromium:
    process: subprocess.Popen[bytes]
    to: Any
    back: Any
    number: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer; what the browser says meanwhile goes into `events`."""
        self.number += 1
        asked = {"id": self.number, "method": method, "params": parameters}
        self.to.write(json.dumps(asked | ({"sessionId": session} if session else {})).encode() + b"\0")
        self.to.flush()
        while (told := self._told()).get("id") != self.number:
            self.events.append(told)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        return dict(told["result"])

    def wait(self, method: str) -> None:
        while not any(each.get("method") == method for each in self.events):
            self.events.append(self._told())

    def _told(self) -> dict[str, Any]:
        read = bytearray()
        while (byte := self.back.read(1)) != b"\0":
            if not byte:
                raise RuntimeError(f"the browser ended with exit code {self.process.wait()}")
            read += byte
        return dict(json.loads(bytes(read)))

    def visit(self, page: Path, *, width: int) -> Seen:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = str(self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        self.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable", session)
        self.ask(
            "Emulation.setDeviceMetricsOverride", session, width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        self.ask("Page.navigate", session, url=page.as_uri())
        self.wait("Page.loadEventFired")
        seen = Seen(width)
        seen.scroll_width = int(self._value(session, "document.documentElement.scrollWidth"))
        seen.cut = list(self._value(session, _BEYOND))
        for event in self.events:
            parameters = event.get("params", {})
            match event.get("method"):
                case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                    seen.logged.append(json.dumps(parameters)[:500])
                case "Network.requestWillBeSent" if parameters["request"]["url"] != page.as_uri():
                    seen.requested.append(parameters["request"]["url"])
        self.ask("Target.closeTarget", targetId=target)
        return seen

    def _value(self, session: str, expression: str) -> Any:
        return self.ask("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"]["value"]


@contextmanager
def chromium(program: str, folder: Path) -> Iterator[Chromium]:
    """folder: for the browser's profile."""
    (read, theirs_out), (theirs_in, write) = os.pipe(), os.pipe()

    def arrange() -> None:
        for at, descriptor in ((10, theirs_in), (11, theirs_out)):  # out of the way of each other first
            os.dup2(descriptor, at)
        os.dup2(10, 3)
        os.dup2(11, 4)

    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
                "--no-first-run", "--disable-background-networking", f"--user-data-dir={folder}")  # fmt: skip
    process = subprocess.Popen(
        [program, *switches], close_fds=False, preexec_fn=arrange, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in)
    os.close(theirs_out)
    with open(write, "wb") as to, open(read, "rb", buffering=0) as back:
        found = Chromium(process, to, back)
        try:
            yield found
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
