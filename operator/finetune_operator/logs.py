"""The operator's log, as text or as JSON (see finetune_api.logs). A line belongs to the job that is being looked at."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from finetune_api.logs import LogFormat, json_line

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _About(NamedTuple):
    namespace: str = ""
    job: str = ""
    attempt: int | None = None


NOTHING = _About()
_about: ContextVar[_About] = ContextVar("about", default=NOTHING)


@contextmanager
def about(key: tuple[str, str], attempt: int | None = None) -> Iterator[None]:
    """Lines that are logged within are about this job, and this attempt if it is known."""
    token = _about.set(_About(*key, attempt or None))
    try:
        yield
    finally:
        _about.reset(token)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        namespace, job, attempt = _about.get()
        message = record.getMessage()
        return json_line(
            message.removeprefix(f"{namespace}/{job}: ") if job else message,
            level=record.levelname,
            at=record.created,
            namespace=namespace,
            job=job,
            attempt=attempt,
            logger=record.name,
            exception=self.formatException(record.exc_info) if record.exc_info else None,
        )


def configure(*, level: str, format: LogFormat) -> None:
    """Of this process, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("kopf").setLevel(max(logging.ERROR, logging.root.level))  # kopf_watch reports how it ends
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.root.level))
