"""The watch of FineTuneJobs, by kopf: what it sees it hands over to the operator's own loop.

kopf runs in a thread with an event loop of its own, because it ends every task of its loop when it ends, and it ends
for some faults that pass (a watch that answers 500, an expired token). Here it is started again, for ever, with a
jittered pause; the cache lives on meanwhile. Each list that kopf makes is reported, because a deletion that happened
while a watch was down is seen only by comparing lists (see Service.resync).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import kopf

from .client import INACTIVITY, PAGE, WATCH_SECONDS
from .connection import Connection, Handler
from .json_depth import Lines
from .resources import FINETUNEJOBS, Raw, Resource

logger = logging.getLogger(__name__)

BY_KOPF = (FINETUNEJOBS,)
"""Jobs and pods, ten times as many events, are followed by reflector."""

IDENTITY = "finetune-operator"
"""Without one kopf looks up the name of its user, which ends it: user 65532 has no name in the image, and so have those
that OpenShift assigns."""

LONGEST_PAUSE = 30.0

SETTLED = 60.0
"""Watches that lasted so many seconds were good: the next pause is a short one again."""

GRACE = 3.0
"""Seconds that kopf gets to end by itself after an answer that it does not survive."""

OUT_OF_TOUCH = WATCH_SECONDS + 60.0
"""Seconds without any request of kopf's: a living watch is renewed before, a failing one tried again."""

Fed = Callable[[Resource, str | None, Raw], None]
Listed = Callable[[Resource, str | None], None]
Seen = Callable[[str, str, bool, int], None]
FATAL = frozenset((400, 404, 405, 410, 422))
"""Answers after which kopf ends. It repeats after 403, 429 and 5xx, and logs in again after 401."""

TOO_NEW = 504
"""Answer to a watch from a version that is yet to come: the history went back. kopf would ask the same for ever."""

Place = tuple[str, str | None]
"""Plural and namespace of one watch."""


class Backoff:
    """1, 2, 4, ... 30 seconds and so on without end, each with jitter. kopf iterates over it again for each request."""

    def __iter__(self) -> Iterator[float]:
        pause = 0.5
        while True:
            pause = min(LONGEST_PAUSE, pause * 2)
            yield pause * random.uniform(0.5, 1.0)


@dataclass(eq=False)
class Watcher:
    """`fed` and `listed` are called in the event loop that called `start`; `seen` in any thread."""

    connection: Connection
    namespaces: tuple[str, ...]
    """Empty: all."""
    fed: Fed
    listed: Listed
    seen: Seen
    heard: dict[Place, float] = field(default_factory=dict)
    """When each watch was last answered or brought an event (monotonic seconds)."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _inbox: deque[tuple[Resource, str | None, Raw]] = field(default_factory=deque)
    _listing: set[Place] = field(default_factory=set)
    _thread: threading.Thread | None = None
    _contact: float = 0.0
    """When kopf last had an answer, or none, to a request."""
    _fatal: float | None = None
    """When it had one that ends it."""

    def start(self) -> None:
        self._home = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 15.0)

    def age_seconds(self) -> dict[Place, float]:
        now = time.monotonic()
        return {place: now - when for place, when in dict(self.heard).items()}

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._for_ever())

    async def _for_ever(self) -> None:
        pauses = iter(Backoff())
        while True:
            started = time.monotonic()
            problem = await self._until_it_ends()
            if self._stop.is_set():
                return
            if time.monotonic() - started > SETTLED:
                pauses = iter(Backoff())
            pause = next(pauses)
            logger.warning("the watches ended (%s); retrying in %.0f s", problem, pause)
            await asyncio.to_thread(self._stop.wait, pause)

    async def _until_it_ends(self) -> str:
        """One life of kopf, and why it ended.

        kopf does not always come to its end: on its way out it can wait for ever for a login that is not served any
        more, having swallowed the cancellation. So it is cancelled again and again when it should have ended."""
        self._contact, self._fatal = time.monotonic(), None
        life = asyncio.ensure_future(
            kopf.operator(
                registry=self._registry(),
                settings=_settings(),
                clusterwide=not self.namespaces,
                namespaces=self.namespaces,
                stop_flag=self._stop,
                identity=IDENTITY,
            )
        )
        while not life.done():
            await asyncio.wait({life}, timeout=1.0)
            if self._stuck(time.monotonic()):
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
        if life.cancelled():
            return "it had stopped responding"
        return repr(life.exception() or "no error")

    def _stuck(self, now: float) -> bool:
        overdue = self._fatal is not None and now - self._fatal > GRACE
        return overdue or now - self._contact > OUT_OF_TOUCH

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        for resource in BY_KOPF:

            async def on_event(event: dict[str, Any], resource: Resource = resource, **_: Any) -> None:
                self._hand_over(resource, event["type"], event["object"])

            where = (resource.group, resource.version, resource.plural)
            kopf.on.event(*where, id=resource.plural, registry=registry)(on_event)

        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(
                server=self.connection.server, aiohttp_session=self.connection.session(self._observe, _list_nothing)
            )

        kopf.on.login(registry=registry)(login)
        return registry

    def _hand_over(self, resource: Resource, kind: str | None, raw: Raw) -> None:
        namespace = raw["metadata"].get("namespace") if self.namespaces else None
        self.heard[resource.plural, namespace] = time.monotonic()
        self._inbox.append((resource, kind, raw))
        if len(self._inbox) == 1:
            self._call_home(self._deliver)

    def _deliver(self) -> None:
        """In the operator's loop."""
        while self._inbox:
            try:
                self.fed(*self._inbox[0])
            except Exception:
                logger.exception("an event could not be processed")
            self._inbox.popleft()  # only now, so that `_hand_over` knows that somebody is at it

    def _observe(self, method: str, path: str, watch: bool, status: int) -> None:
        """Each answer to kopf's requests: a list, then a watch from there on."""
        self.seen(method, path, watch, status)
        self._contact = time.monotonic()
        if (status in FATAL or (watch and status == TOO_NEW)) and self._fatal is None:
            self._fatal = self._contact
        place = self._place(path)
        if place is None or status >= 300 or not status:
            return
        resource = next(r for r in BY_KOPF if r.plural == place[0])
        if not watch:
            self._listing.add(place)
            return
        self.heard[place] = time.monotonic()
        if place in self._listing:
            self._listing.discard(place)
            self._call_home(self.listed, resource, place[1])

    def _place(self, path: str) -> Place | None:
        for resource in BY_KOPF:
            for namespace in self.namespaces or (None,):
                if path == resource.path(namespace):
                    return resource.plural, namespace
        return None

    def _call_home(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the operator's loop has closed: it is ending
            self._home.call_soon_threadsafe(call, *args)


async def _list_nothing(request: aiohttp.ClientRequest, handler: Handler) -> aiohttp.ClientResponse:
    """kopf lists objects to learn from which version to watch. We list them ourselves then, in pages that fit into
    memory (see Service.resync), so its own lists need not hold any: no object has this name.

    What it watches it cannot read where it is nested too deeply, and would end all its watches by that."""
    watches = request.url.query.get("watch") == "true"
    if request.method != "GET" or not _is_list(request.url.path):
        return await handler(request)
    if not watches:
        request.url = request.url.update_query(fieldSelector="metadata.name=-")
    response = await handler(request)
    if watches:
        response.content = Lines(response.content)  # type: ignore[assignment]
    return response


def _is_list(path: str) -> bool:
    return any(path.endswith(f"/{resource.plural}") for resource in BY_KOPF)


class _NothingToCompare(kopf.DiffBaseStorage):  # type: ignore[misc]
    """Handlers of changes would need the object as it last was; this one gets every event. Without this kopf copies
    every object that it sees, for half of the CPU that an event costs."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None: ...


class _NoProgress(kopf.ProgressStorage):  # type: ignore[misc]
    """The same for the progress of such handlers."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None: ...

    def purge(self, **_: Any) -> None: ...

    def touch(self, **_: Any) -> None: ...

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.process.ultimate_exiting_timeout = None
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = Backoff()
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.inactivity_timeout = INACTIVITY
    settings.watching.chunk_size = PAGE
    settings.persistence.diffbase_storage = _NothingToCompare()
    settings.persistence.progress_storage = _NoProgress()
    settings.queueing.worker_limit = None
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 0.2
    for resource in BY_KOPF:
        if resource.selector:
            where = (resource.group, resource.version, resource.plural)
            settings.watching.label_selectors[where] = resource.selector
    return settings


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
