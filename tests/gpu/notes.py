"""What a part finds out, kept in a file that is whole after every line: a kill loses nothing that was written."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["passed", "missed", "failed", "skipped"]
"""missed: slower or larger than what was aimed at, and right all the same."""


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Verdict
    value: float | None = None
    limit: float | None = None
    words: str = ""

    @property
    def line(self) -> str:
        held = f" {self.value:.3g}" if self.value is not None else ""
        held += f" (limit {self.limit:g})" if self.limit is not None else ""
        return f"{self.verdict:7} {self.name}:{held} {self.words}".rstrip()


def at_most(name: str, value: float, limit: float, *, miss: Verdict = "failed", words: str = "") -> Check:
    return Check(name, "passed" if value <= limit else miss, value, limit, words)


def at_least(name: str, value: float, limit: float, *, miss: Verdict = "missed", words: str = "") -> Check:
    return Check(name, "passed" if value >= limit else miss, value, limit, words)


def holds(name: str, fact: bool, words: str = "") -> Check:
    return Check(name, "passed" if fact else "failed", words=words)


@dataclass
class Notes:
    """Of one part."""

    file: Path
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def check(self, check: Check) -> None:
        self.checks.append(check)
        print(check.line, flush=True)
        self._write()

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value
        self._write()

    def _write(self) -> None:
        write_whole(self.file, {"checks": [asdict(check) for check in self.checks], "facts": self.facts})


def write_whole(file: Path, value: Any) -> None:
    """Readers see the file as it was before, or as it is now."""
    new = file.with_name(file.name + ".new")
    new.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(new, file)
