"""The outside of all parts: starts them in order, ends them in time, and keeps what they find in one file."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.gpu import judge, table
from tests.gpu.kit import ENV_LIMIT, environment, interpreter, read_json
from tests.gpu.notes import Check, write_whole
from tests.gpu.nursery import Begin, Fork, Nursery
from tests.gpu.parts import DEEPSPEED, FIRST, Part, parts_of, together
from tests.gpu.sizes import CARD, REHEARSAL

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "results.json"
_RESERVE = 4.0
"""Seconds of the budget that are left for writing."""
_POLL = 0.25
_PATIENCE = 8
"""How much longer a part may take in the rehearsal, whose machine may have other work."""
_LANES_ON_A_CARD, _LANES_IN_REHEARSAL = 4, 2
_TAIL = 3000
"""Characters of a part's log that its result keeps where something is wrong."""


def conduct(out: Path, *, budget: float, only: Sequence[str], doubles: bool, begin: Begin | None) -> int:
    """`begin`: what a fork does in the rehearsal; None: it is none."""
    out.mkdir(parents=True, exist_ok=True)
    rehearsal = begin is not None
    sizes = REHEARSAL if rehearsal else CARD
    parts = tuple(part for part in parts_of(sizes) if not only or part.name.startswith(tuple(only)))
    if not parts:
        print(f"no part is called {' or '.join(only)}; there are {', '.join(part.name for part in parts_of(sizes))}")
        return 64
    if rehearsal and DEEPSPEED not in os.environ:
        made = subprocess.run([ROOT / "tools" / "deepspeed.sh"], capture_output=True, text=True, check=False)
        os.environ[DEEPSPEED] = made.stdout.strip()
    with tempfile.TemporaryDirectory(prefix="gpu-kit-", ignore_cleanup_errors=True) as scratch:
        nursery = Nursery(begin, _environment(Path(scratch), parts[0], rehearsal=True)) if begin else None
        session = Session(out, Path(scratch), budget=budget, rehearsal=rehearsal, doubles=doubles, nursery=nursery)
        before = [signal.signal(number, session.interrupted) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            for group in together(parts, timed=not rehearsal):
                session.run(group)
        finally:
            session.finish()
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)
    return session.tell()


class Interrupted(Exception):
    pass


@dataclass
class Session:
    out: Path
    scratch: Path
    budget: float
    rehearsal: bool
    doubles: bool
    nursery: Nursery | None = None
    results: dict[str, Any] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.started = time.monotonic()
        self.results |= {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "command": shlex.join(["python", "tests/gpu/run.py", *sys.argv[1:]]),
            "budget": self.budget,
            "rehearsal": self.rehearsal,
            "doubles": self.doubles,
            "host": {"python": platform.python_version(), "cores": os.cpu_count()},
            "parts": {},
            "verdicts": [],
        }
        self.write()

    @property
    def left(self) -> float:
        return self.budget - _RESERVE - (time.monotonic() - self.started)

    def interrupted(self, *_: Any) -> None:
        """The command is asked to end: so are all parts, and what is known stays."""
        self.stopped = True

    def run(self, group: tuple[Part, ...]) -> None:
        lanes = _LANES_IN_REHEARSAL if self.rehearsal else _LANES_ON_A_CARD
        with ThreadPoolExecutor(max_workers=lanes) as pool:
            for done in [pool.submit(self._part, part) for part in group]:
                done.result()
        self.write()

    def _part(self, part: Part) -> None:
        began = time.monotonic()
        limit = min(part.limit * (_PATIENCE if self.rehearsal else 1), self.left)
        if self.stopped or limit < part.expected / 3:
            why = "the run was stopped" if self.stopped else f"{max(0.0, self.left):.0f} s of the budget are left"
            return self._keep(part, began, "skipped", checks=[Check(part.name, "skipped", words=why)])
        print(f"== {part.name} (about {part.expected} s on a card, at most {limit:.0f})", flush=True)
        folder = self.scratch / "parts" / part.name.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        notes, log = folder / "notes.json", folder / "log"
        state = self._watch(part, notes, log, began=began, limit=limit)
        found = read_json(notes) or {"checks": [], "facts": {}}
        checks = [Check(**check) for check in found["checks"]]
        if state != "done" and not any(check.verdict == "failed" for check in checks):
            checks.append(Check(part.name, "failed", words=f"{state}; its log ends below"))
        self._keep(part, began, state, checks=checks, facts=found["facts"], log=log)
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return None

    def _watch(self, part: Part, notes: Path, log: Path, *, began: float, limit: float) -> str:
        process = self._start(part, notes, log, limit=limit)
        seen = 0.0
        while process.poll() is None:
            if self.stopped or time.monotonic() - began > limit:
                _end(process)
                return "the run was stopped" if self.stopped else f"it took more than {limit:.0f} s"
            with suppress(OSError):
                if (changed := notes.stat().st_mtime) != seen:
                    seen = changed
                    self._keep(part, began, "running", **_as_checks(read_json(notes)))
            time.sleep(_POLL)
        _end(process)  # whatever it has started
        code = process.returncode
        return "done" if code in (0, 1) else f"it ended with status {code}"

    def _start(self, part: Part, notes: Path, log: Path, *, limit: float) -> subprocess.Popen[bytes] | Fork:
        arguments = ["--out", str(self.out), "--part", part.name, "--notes", str(notes)]
        arguments += ["--rehearsal"] if self.rehearsal else []
        arguments += ["--rivals", "doubles" if self.doubles else "real"]
        environ = _environment(self.scratch, part, rehearsal=self.rehearsal) | {ENV_LIMIT: str(limit)}
        if self.nursery is not None and not (part.beside or part.lane == FIRST):
            return self.nursery.start(arguments, environ=environ, folder=notes.parent, log=log)
        with log.open("wb") as file:
            return subprocess.Popen(
                [*interpreter(), *arguments], env=environ, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                cwd=notes.parent, start_new_session=True,
            )  # fmt: skip

    def _keep(
        self,
        part: Part,
        began: float,
        state: str,
        *,
        checks: Sequence[Check] = (),
        facts: dict[str, Any] | None = None,
        log: Path | None = None,
    ) -> None:
        entry: dict[str, Any] = {
            "state": state,
            "seconds": round(time.monotonic() - began, 1),
            "expected": part.expected,
            "checks": [asdict(check) for check in checks],
            "facts": facts or {},
        }
        bad = any(check.verdict == "failed" for check in checks)
        if log is not None and log.exists():
            text = log.read_text(errors="replace")
            with self.lock, (self.out / "kit.log").open("a") as whole:
                whole.write(f"\n===== {part.name} ({entry['seconds']} s)\n{text}")
            if bad:
                entry["log"] = text[-_TAIL:]
        with self.lock:
            self.results["parts"][part.name] = entry
            if state != "running":
                for check in checks:
                    print(f"   {check.line}", flush=True)
                if bad and "log" in entry:
                    print("   | " + entry["log"][-1200:].replace("\n", "\n   | "), flush=True)
            self.write()

    def write(self) -> None:
        with self.lock:
            self.results["seconds"] = round(time.monotonic() - self.started, 1)
            self.results["verdicts"] = [asdict(check) for check in judge.judge(self.results["parts"])]
            write_whole(self.out / RESULTS, self.results)

    def finish(self) -> None:
        self.write()
        with suppress(KeyError, ValueError, TypeError):  # what is there of it is in the results all the same
            (self.out / "on-a-gpu.md").write_text(table.section(self.results) + "\n")

    def tell(self) -> int:
        """A short account, last: what a caller sees who is shown the end alone."""
        verdicts = [Check(**check) for check in self.results["verdicts"]]
        own = [Check(**check) for part in self.results["parts"].values() for check in part["checks"]]
        print(f"\n== verdicts, after {self.results['seconds']:.0f} of {self.budget:.0f} s")
        for check in verdicts:
            print(f"   {check.line}")
        for check in own:
            if check.verdict in ("failed", "skipped"):
                print(f"   {check.line}")
        everything = own + verdicts
        counts = {
            verdict: sum(c.verdict == verdict for c in everything)
            for verdict in ("passed", "missed", "failed", "skipped")
        }
        print("kit: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
        return 1 if counts["failed"] else 0


def _as_checks(found: dict[str, Any] | None) -> dict[str, Any]:
    found = found or {"checks": [], "facts": {}}
    return {"checks": [Check(**check) for check in found["checks"]], "facts": found["facts"]}


def _environment(scratch: Path, part: Part, *, rehearsal: bool) -> dict[str, str]:
    return environment(scratch, os.environ, part=part, root=ROOT, rehearsal=rehearsal)


def _end(process: subprocess.Popen[bytes] | Fork) -> None:
    """With all that it has started. One that hangs in a driver may outlive even SIGKILL; nobody waits for it long."""
    for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError, PermissionError):
            process.send_signal(number)  # a fork may not have its group yet
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            if number is signal.SIGTERM and not _group_lives(process.pid):
                return


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
