"""Programs by name: started once, found again by pid and start time, stopped by pid only.

A program's command line, environment and pid are a file `proc/NAME.json` in the rig's state, so that any process
(another test session, the command line) can stop it, or start it again just as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .state import RigError, write_private


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program: how to start it, and what answers once it is ready (`http(s)://...`, `unix:PATH`, or nothing)."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    probe: str = ""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The programs of one rig."""

    state: Path
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @staticmethod
    def of(program: Program, *, state: Path, wait: float) -> Processes:
        """A program by itself, ready. If it does not answer in `wait` seconds, it is stopped."""
        alone = Processes(state=state)
        try:
            alone.start(program, wait=wait)
        except BaseException:
            alone.stop(program.name)
            raise
        return alone

    def start(self, program: Program, *, wait: float = 0.0) -> None:
        """Starts the program unless it runs; with `wait`, returns when its probe answers, in at most so many
        seconds."""
        if self.pid(program.name) is None:
            (self.state / "log").mkdir(parents=True, exist_ok=True)
            with (self.state / "log" / f"{program.name}.log").open("ab") as log:
                child = subprocess.Popen(
                    program.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.state,
                    env={**bare_environment(), **program.env},
                    start_new_session=True,
                )
            self.children[program.name] = child
            record = {**dataclasses.asdict(program), "pid": child.pid, "start": start_time(child.pid)}
            write_private(self._file(program.name), json.dumps(record))
        if wait:
            self.wait_for(program.name, lambda: answers(program.probe, ca=self.state / "pki" / "ca.crt"), seconds=wait)

    def start_again(self, name: str, *, wait: float = 180.0) -> None:
        """Starts a program that ran before, with the same command line."""
        self.start(self.program(name), wait=wait)

    def stop(self, name: str, *, seconds: float = 5.0, kill: bool = False) -> None:
        """SIGTERM and, after `seconds`, SIGKILL; with `kill` at once. Returns when the process is gone."""
        pid = self.pid(name)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while self.pid(name) is not None:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                deadline += seconds
            time.sleep(0.02)

    def pid(self, name: str) -> int | None:
        """The running program's pid. The start time guards against a reused pid; a zombie counts as gone."""
        if child := self.children.get(name):
            child.poll()  # reaps it, if it ended
        record = self._record(name)
        if record is None or start_time(int(record["pid"])) != record["start"]:
            return None
        return int(record["pid"])

    def program(self, name: str) -> Program:
        record = self._record(name)
        if record is None:
            raise RigError(f"{name} never ran in this rig; it knows {', '.join(self.known()) or 'no program'}")
        argv, env, probe = tuple(record["argv"]), dict(record["env"]), str(record["probe"])
        return Program(name=name, argv=argv, env=env, probe=probe)

    def known(self) -> list[str]:
        return sorted(file.stem for file in (self.state / "proc").glob("*.json"))

    def wait_for(self, name: str, ready: Callable[[], bool], *, seconds: float) -> None:
        """Waits until `ready()`; fails at once, with the end of its log, when the program has died meanwhile."""
        deadline = time.monotonic() + seconds
        while not ready():
            dead = self._file(name).exists() and self.pid(name) is None
            if dead or time.monotonic() > deadline:
                what = "died" if dead else f"did not come up in {seconds:.0f} s"
                raise RigError(f"{name} {what}; the end of its log:\n{self.log_tail(name)}")
            time.sleep(0.05)

    def log_tail(self, name: str, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            text = (self.state / "log" / f"{name}.log").read_text(errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return "(no log)"

    def _file(self, name: str) -> Path:
        return self.state / "proc" / f"{name}.json"

    def _record(self, name: str) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self._file(name).read_text())
        except (OSError, ValueError):
            return None
        return record


def start_time(pid: int) -> str | None:
    """Clock ticks from boot to the process's start; None when there is no such process.

    A zombie that its parent has yet to reap counts as gone, but only once its last thread is: until then the dying
    threads of a killed program still hold its ports.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return None
    return None if fields[0] in "ZX" and threads <= 1 else fields[19]


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Every process of the machine with its command line."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(folder.name), (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")


def answers(probe: str, *, ca: Path) -> bool:
    """Whether the probe's address answers: HTTP with a 2xx status, a unix socket with an accepted connection."""
    if not probe:
        return True
    try:
        if probe.startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(probe.removeprefix("unix:"))
            return True
        context = ssl.create_default_context(cafile=str(ca)) if probe.startswith("https:") else None
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if context:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        with urllib.request.build_opener(*handlers).open(probe, timeout=2) as reply:
            return bool(200 <= reply.status < 300)
    except (OSError, ValueError):  # URLError is an OSError
        return False


def bare_environment() -> dict[str, str]:
    """What programs of the rig get to see: no proxies, no credentials of the person who runs the tests."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"))
    return {"PATH": path, "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}


def run(*argv: str | Path, stdin: str | None = None, check: bool = True, timeout: float = 120.0) -> str:
    """Runs a command to its end and returns what it printed; raises with its error output when it fails."""
    done = subprocess.run(
        [str(word) for word in argv],
        input=stdin,
        text=True,
        capture_output=True,
        timeout=timeout,
        env=bare_environment(),
    )
    if check and done.returncode:
        raise RigError(f"{' '.join(str(word) for word in argv)[:200]}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
