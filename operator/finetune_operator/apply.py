"""Carries out a decision: status, deletions, creations, events, in this order.

The order is what makes a crash harmless: the attempt's number is in the status before its Job exists, and an event is
sent only for what was written. Answers go into the cache at once, so the next decision sees them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from finetune_api import names
from finetune_api.status import FineTuneJobStatus

from . import events
from .cache import Cache
from .client import AlreadyExists, ApiError, Client, Conflict, Forbidden, Invalid, NotFound
from .decision import Create, Decision
from .observe import Observed
from .resources import FINETUNEJOBS, JOBS, POD_GROUP, PODS, Raw
from .silence import awaited
from .views import JobView, view_pod

logger = logging.getLogger(__name__)

Written = Callable[[JobView, FineTuneJobStatus], None]
"""Told of each status written: the job as it was, and its new status."""


class Refused(Exception):
    """The API server says that the objects made of this spec can never be."""


class Occupied(ApiError):
    """The place is taken by something that is about to go. Try again."""


@dataclass(frozen=True)
class Applier:
    client: Client
    cache: Cache
    now: Callable[[], datetime]
    written: Written

    async def carry_out(self, seen: Observed, decision: Decision) -> None:
        """Raises Refused, Occupied and the client's errors; whatever is not done is decided anew."""
        job = seen.job
        await self.write_status(job, decision.status)
        for child in decision.delete:
            answer = await self.client.delete(JOBS, (child.namespace, child.name), uid=child.uid)
            if answer is not None:
                self.cache.children.put(answer)
        if decision.expired and (gone := await self.client.delete(FINETUNEJOBS, job.owner, uid=job.uid)):
            self.cache.jobs.put(gone)
        if decision.create and decision.alone:
            await self._be_alone(seen)
        for create in decision.create:
            await self._create(job, create)
        if decision.probe is not None:
            await self._probe(job, decision.probe)
        for event in decision.events:
            attempt = decision.status.attempt or 0
            await events.send(self.client, job, event, attempt=attempt, now=self.now())

    async def write_status(self, job: JobView, status: FineTuneJobStatus) -> None:
        """Only if it says something new, and only onto the version that it was decided on: whoever changed the job
        since, a user or another replica, is heard first. The uid keeps it from a job that took the name since.

        Raises Conflict, with the newer version in the cache then."""
        if status is job.status or (new := status.to_json()) == job.status.to_json():
            return
        meta = {"name": job.name, "namespace": job.namespace, "uid": job.uid, "resourceVersion": str(job.version)}
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "status": new}
        try:
            self.cache.jobs.put(await self.client.replace_status(body))
        except Conflict:
            with contextlib.suppress(NotFound):  # the watch will tell
                self.cache.jobs.put(await self.client.get(FINETUNEJOBS, job.owner))
            raise
        except Invalid as error:
            raise ApiError(f"the status was not accepted: {error.message}") from error
        self.written(job, status)

    async def _be_alone(self, seen: Observed) -> None:
        """Two attempts never run at once: the API server itself is asked, because a watch may lag."""
        selector = f"{names.LABEL_UID}={seen.job.uid}"
        listing = await self.client.list(PODS, seen.job.namespace, selector=selector)
        alive = awaited(map(view_pod, listing.items), seen.children, seen.spec, self.now())
        for raw in listing.items:
            self.cache.pods.put(raw)
        if alive:
            raise Occupied(f"pods of an earlier attempt still run: {', '.join(pod.name for pod in alive)}")

    async def _probe(self, job: JobView, probe: Create) -> None:
        try:
            await self._create(job, probe)
        except (Refused, Forbidden, Occupied) as error:
            logger.info("%s/%s: no probe for more nodes: %s", *job.owner, error)
            self.cache.probe_refused[job.owner] = self.now()

    async def _create(self, job: JobView, create: Create) -> None:
        resource, body = create.resource, create.body
        try:
            raw = await self.client.create(resource, body)
        except Invalid as error:
            raise Refused(error.message) from error
        except AlreadyExists:
            raw = await self.client.get(resource, (job.namespace, body["metadata"]["name"]))
            _check_ours(job, create, raw)
        if resource is JOBS:
            self.cache.children.put(raw)
        elif resource.kind == POD_GROUP:
            self.cache.grouped[job.owner] = body["metadata"]["ownerReferences"][0]["uid"]


def _check_ours(job: JobView, create: Create, found: Raw) -> None:
    meta = found["metadata"]
    labels, what = meta.get("labels", {}), f"{create.resource.kind} {meta['name']}"
    if labels.get(names.LABEL_JOB) != job.name or labels.get(names.LABEL_MANAGED_BY) != names.FIELD_MANAGER:
        raise Refused(f"a {what} that is not this job's exists already: choose another metadata.name")
    if not create.body["metadata"]["labels"].items() <= labels.items() or "deletionTimestamp" in meta:
        raise Occupied(f"the {what} of an earlier job or attempt is still being deleted")
