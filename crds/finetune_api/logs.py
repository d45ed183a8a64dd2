"""Log lines of operator and agent as JSON: one object a line, with the same keys in both.

    {"time": "2026-01-02T03:04:05.678Z", "level": "info", "namespace": "ml", "job": "cardiology", "attempt": 2,
     "message": "node 0 of 2, attempt 2, 8 process(es)"}

`namespace`, `job` and `attempt` are left out where a line is about no job, or no attempt.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

LogFormat = Literal["text", "json"]

FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)

ENV_FORMAT = "FINETUNE_LOG_FORMAT"
"""In a pod: the format of the agent's lines where its --log-format does not say it."""


def json_line(
    message: str,
    *,
    level: str,
    at: float,
    namespace: str = "",
    job: str = "",
    attempt: int | None = None,
    **more: Any,
) -> str:
    """One line without its newline. `at`: Unix seconds. `more`: keys that only one program has."""
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    known = {"time": moment, "level": level.lower(), "namespace": namespace, "job": job, "attempt": attempt}
    line = {key: value for key, value in known.items() if value not in ("", None)} | {"message": message}
    return json.dumps(line | {key: value for key, value in more.items() if value is not None}, ensure_ascii=False)


def chosen_format(environ: Mapping[str, str] = os.environ) -> LogFormat:
    """What the environment asks for; text where it asks for nothing that we know."""
    return "json" if environ.get(ENV_FORMAT) == "json" else "text"


@dataclass(frozen=True, kw_only=True)
class JobLog:
    """Lines about one attempt, to standard error."""

    namespace: str
    job: str
    attempt: int
    format: LogFormat
    clock: Callable[[], float] = time.time

    def write(self, message: str, *, prefix: str, level: str = "info") -> None:
        """As text, with `prefix: ` in front: the job's name, or the program's."""
        line = f"{prefix}: {message}"
        if self.format == "json":
            line = json_line(
                message, level=level, at=self.clock(), namespace=self.namespace, job=self.job, attempt=self.attempt
            )
        print(line, file=sys.stderr, flush=True)
