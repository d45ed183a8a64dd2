"""How far are the running jobs? Node 0's agent is asked every 15 seconds; a missing answer is not a failure.

The numbers go to /metrics at once and to the status rarely (policies.running). What answers is a user's pod, or
another that has its address by now, so it gets little: the token of its own attempt and no other credentials, three
seconds, 64 KiB (see pod_reports), a thread that is not the event loop's, and a share of both with the rest of its
namespace. An answer that is not understood is logged once, reported in the job's status, and asked for again after a
long pause."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import aiohttp

from finetune_api import names
from finetune_api.plan import ProgressReport
from finetune_api.status import Phase
from finetune_operator.kube.resources import Key
from finetune_operator.logs import about
from finetune_operator.state.agent_contact import AgentContact
from finetune_operator.state.cache import Cache
from finetune_operator.state.notes import Report, UnreadableReport
from finetune_operator.state.observe import Observed
from finetune_operator.state.pod_reports import LIMIT, MalformedReport, progress_report
from finetune_operator.state.status import terminal

logger = logging.getLogger(__name__)

FIRST_LOOK = 2.0
INTERVAL = 15.0
LONGEST_INTERVAL = 120.0
"""For pods that do not answer."""
NONSENSE_INTERVAL = 600.0
"""For those whose answers are not understood."""
TIMEOUT = 3.0
AT_ONCE = 64
OF_NAMESPACE = 8
"""Of those, for the pods of one namespace."""

PIECES = 64
"""Of an answer: each wakes up the event loop."""

CPU, CREDIT = 0.05, 0.5
"""Seconds of a core that reading the answers of one namespace may take, each second; and saved up."""


class Asked(NamedTuple):
    """Who should answer, and by what both sides know each other; empty where an older operator made the plan."""

    uid: str
    attempt: int
    token: str = ""
    nonce: str = ""


@dataclass
class Budget:
    """What the answers of each namespace cost lately."""

    clock: Callable[[], float]
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Seconds, and when they were counted."""

    def spend(self, namespace: str, seconds: float) -> None:
        self._spent[namespace] = (self._left_over(namespace) + seconds, self.clock())

    def over(self, namespace: str) -> bool:
        return self._left_over(namespace) > CREDIT

    def keep(self, namespaces: set[str]) -> None:
        self._spent = {name: spent for name, spent in self._spent.items() if name in namespaces}

    def _left_over(self, namespace: str) -> float:
        spent, at = self._spent.get(namespace, (0.0, 0.0))
        return max(0.0, spent - CPU * (self.clock() - at))


@dataclass
class _Target:
    asked: Asked
    url: str
    due: float
    interval: float = INTERVAL
    busy: bool = False


@dataclass
class Poller:
    cache: Cache
    news: Callable[[Key], None]
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    _targets: dict[Key, _Target] = field(default_factory=dict)
    _asking: set[asyncio.Task[None]] = field(default_factory=set)
    _gates: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    _answers: int = 0
    """Of all jobs, since the process began."""

    def __post_init__(self) -> None:
        self._budget = Budget(self.clock)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reports")

    def follow(self, key: Key, seen: Observed | None) -> None:
        """Ask this job's node 0 from now on, or stop asking when it does not run."""
        url = _address(seen) if seen else ""
        known = self._targets.get(key)
        if not seen or not url:
            self._targets.pop(key, None)
            self.cache.note(key, contact=None, unreadable=None)
            if seen is None or terminal(seen.status):
                self.cache.note(key, report=None)
            return
        child = seen.child
        asked = Asked(seen.job.uid, seen.attempt, child.token if child else "", child.nonce if child else "")
        if known is None or (known.url, known.asked) != (url, asked):
            self.cache.note(key, contact=None)
            due = self.clock() + FIRST_LOOK * random.uniform(0.5, 1.5)
            self._targets[key] = _Target(asked, url, due)

    def follow_nobody(self) -> None:
        """Contacts are forgotten too: an agent is not silent if the operator does not ask."""
        self._targets.clear()
        self.cache.note_all(report=None, contact=None, unreadable=None)

    async def run(self) -> None:
        """Forever."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        gate = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=AT_ONCE, force_close=True),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # else 64 KiB could be 64 MiB
        ) as session:
            try:
                while True:
                    for key, target in self.due():
                        target.busy = True
                        task = asyncio.create_task(self._in_turn(session, gate, key, target))
                        self._asking.add(task)
                        task.add_done_callback(self._asking.discard)
                    await asyncio.sleep(1.0)
            finally:
                for task in self._asking:
                    task.cancel()

    def due(self) -> list[tuple[Key, _Target]]:
        """Whom to ask now. Those of a namespace whose answers took too long to read lately wait."""
        now, namespaces = self.clock(), {namespace for namespace, _ in self._targets}
        self._budget.keep(namespaces)
        self._gates = {name: gate for name, gate in self._gates.items() if name in namespaces}
        waiting = [(key, target) for key, target in self._targets.items() if target.due <= now and not target.busy]
        return [(key, target) for key, target in waiting if not self._budget.over(key[0])]

    async def _in_turn(
        self, session: aiohttp.ClientSession, gate: asyncio.Semaphore, key: Key, target: _Target
    ) -> None:
        """No namespace keeps the others from being asked, however many of its pods let us wait."""
        with about(key, target.asked.attempt):
            await self._ask_safely(session, gate, key, target)

    async def _ask_safely(
        self, session: aiohttp.ClientSession, gate: asyncio.Semaphore, key: Key, target: _Target
    ) -> None:
        try:
            async with self._gates.setdefault(key[0], asyncio.Semaphore(OF_NAMESPACE)):
                await self._ask(session, gate, key, target)
        except Exception as error:
            target.due = self.clock() + NONSENSE_INTERVAL
            logger.warning("%s/%s: asking for progress failed: %s", *key, type(error).__name__)
        finally:
            target.busy = False

    async def _ask(self, session: aiohttp.ClientSession, gate: asyncio.Semaphore, key: Key, target: _Target) -> None:
        report, problem = None, ""
        async with gate:
            try:
                report = await fetch(session, target.url, target.asked, partial(self._read, key[0]))
            except MalformedReport as nonsense:
                problem = str(nonsense)
        pause = target.interval
        longest = NONSENSE_INTERVAL if problem else LONGEST_INTERVAL
        target.interval = INTERVAL if report else min(longest, target.interval * (4 if problem else 2))
        target.due = self.clock() + target.interval * random.uniform(0.95, 1.05)
        if self._targets.get(key) is not target:
            return
        asked = target.asked
        if report is None:
            if problem and self._not_understood(key, asked, problem):
                self.news(key)
            if self._missed(key, pause):
                self.news(key)
            return
        self._answers += 1
        contact = AgentContact(asked.uid, asked.attempt, self.now(), answers=self._answers)
        before, new = self.cache.of(key), Report(asked.uid, report)
        self.cache.note(key, report=new, contact=contact, unreadable=None)
        if before.report != new or before.unreadable is not None:
            self.news(key)

    def _missed(self, key: Key, pause: float) -> bool:
        """True if its silence has grown. An agent that has never answered is not silent."""
        if (known := self.cache.of(key).contact) is None:
            return False
        contact = known.missed(pause=pause, answers=self._answers)
        self.cache.note(key, contact=contact)
        return contact.silence > known.silence

    async def _read(self, namespace: str, data: bytes, asked: Asked) -> ProgressReport:
        def read() -> tuple[ProgressReport | MalformedReport, float]:
            start = time.thread_time()
            try:
                found: ProgressReport | MalformedReport = progress_report(
                    data, attempt=asked.attempt, uid=asked.uid, nonce=asked.nonce
                )
            except MalformedReport as nonsense:
                found = nonsense
            return found, time.thread_time() - start

        found, seconds = await asyncio.get_running_loop().run_in_executor(self._reader, read)
        self._budget.spend(namespace, seconds)
        if isinstance(found, MalformedReport):
            raise found
        return found

    def _not_understood(self, key: Key, asked: Asked, problem: str) -> bool:
        """True if that is news. One line in the log for each attempt of a job, whatever its pod says."""
        known = self.cache.of(key).unreadable
        if known is not None and (known.job_uid, known.attempt) == (asked.uid, asked.attempt):
            return False
        self.cache.note(key, unreadable=UnreadableReport(asked.uid, asked.attempt, problem))
        logger.warning("%s/%s: the answer of node 0 to /progress is not a progress report: %s", *key, problem)
        return True


Read = Callable[[bytes, Asked], Awaitable[ProgressReport]]


async def fetch(session: aiohttp.ClientSession, url: str, asked: Asked, read: Read) -> ProgressReport | None:
    """None without an answer; MalformedReport for an answer that is not a report of that attempt."""
    headers = {"Authorization": f"Bearer {asked.token}"} if asked.token else {}
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                return None
            if response.content_length is None or response.content_length > LIMIT:
                raise MalformedReport(f"longer than {LIMIT // 1024} KiB, or without a Content-Length")
            pieces: list[bytes] = []
            async for piece in response.content.iter_any():
                pieces.append(piece)
                if len(pieces) > PIECES:
                    raise MalformedReport("in too many pieces")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        logger.debug("%s: %s", url, type(error).__name__)
        return None
    return await read(b"".join(pieces), asked)


def _address(seen: Observed) -> str:
    """Of node 0's agent; empty if there is none to ask."""
    first = next((pod for pod in seen.gang if pod.index == 0), None)
    if first is None or first.phase != "Running" or not first.ip or seen.status.phase is not Phase.Running:
        return ""
    try:
        address = ipaddress.ip_address(first.ip)
    except ValueError:
        return ""
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{host}:{names.AGENT_PORT}/progress"
