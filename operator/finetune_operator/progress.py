"""How far are the running jobs? Node 0's agent is asked every 15 seconds; no answer is no news and no failure.

The numbers go to /metrics at once and to the status rarely (policies.running). The session sends no credentials,
follows no redirects and reads no more than a report can hold: what answers is a user's pod.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
from pydantic import ValidationError

from finetune_api import names
from finetune_api.plan import ProgressReport
from finetune_api.status import Phase

from .cache import Cache, Heard, Report
from .observe import Observed
from .resources import Key

logger = logging.getLogger(__name__)

FIRST_LOOK = 2.0
INTERVAL = 15.0
LONGEST_INTERVAL = 120.0
"""For pods that do not answer."""
TIMEOUT = 3.0
AT_ONCE = 64
LIMIT = 256 * 1024


@dataclass
class _Target:
    job_uid: str
    attempt: int
    url: str
    due: float
    interval: float = INTERVAL


@dataclass
class Poller:
    cache: Cache
    news: Callable[[Key], None]
    clock: Callable[[], float] = time.monotonic
    _targets: dict[Key, _Target] = field(default_factory=dict)

    def follow(self, key: Key, seen: Observed | None) -> None:
        """Ask this job's node 0 from now on, or nobody when it does not run."""
        url = _address(seen) if seen else ""
        known = self._targets.get(key)
        if not seen or not url:
            self._targets.pop(key, None)
            self.cache.heard.pop(key, None)
            if seen is None:
                self.cache.reports.pop(key, None)
        elif known is None or (known.url, known.attempt) != (url, seen.attempt):
            due = self.clock() + FIRST_LOOK * random.uniform(0.5, 1.5)
            self._targets[key] = _Target(seen.job.uid, seen.attempt, url, due)

    def follow_nobody(self) -> None:
        self._targets.clear()
        self.cache.reports.clear()

    async def run(self) -> None:
        """Forever."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        gate = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            while True:
                now = self.clock()
                due = [(key, target) for key, target in self._targets.items() if target.due <= now]
                await asyncio.gather(*(self._ask(session, gate, *each) for each in due), return_exceptions=True)
                await asyncio.sleep(1.0)

    async def _ask(self, session: aiohttp.ClientSession, gate: asyncio.Semaphore, key: Key, target: _Target) -> None:
        async with gate:
            report = await fetch(session, target.url)
        answered = report is not None and report.attempt == target.attempt
        target.interval = INTERVAL if answered else min(LONGEST_INTERVAL, target.interval * 2)
        target.due = self.clock() + target.interval * random.uniform(0.95, 1.05)
        if report is None or not answered or self._targets.get(key) is not target:
            return
        heard = datetime.now(UTC)
        self.cache.heard[key] = Heard(target.job_uid, target.attempt, heard)
        self.cache.heard_anybody = heard
        known = self.cache.reports.get(key)
        new = Report(target.job_uid, report)
        if known != new:
            self.cache.reports[key] = new
            self.news(key)


async def fetch(session: aiohttp.ClientSession, url: str) -> ProgressReport | None:
    """None if nobody answers, or not with a report."""
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            text = b""
            async for chunk in response.content.iter_any():
                text += chunk
                if len(text) > LIMIT:
                    return None
            return ProgressReport.model_validate_json(text)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        logger.debug("%s: %s", url, error)
    except ValidationError as error:
        logger.info("%s: not a progress report: %s", url, error)
    return None


def _address(seen: Observed) -> str:
    """Of node 0's agent; empty if there is none to ask."""
    first = next((pod for pod in seen.gang if pod.index == 0), None)
    if first is None or first.phase != "Running" or not first.ip or seen.status.phase is not Phase.Running:
        return ""
    host = f"[{first.ip}]" if ":" in first.ip else first.ip
    return f"http://{host}:{names.AGENT_PORT}/progress"
