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
from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, Restarts
from finetune_api.text import one_line

from . import events
from .decision import Create, Decision, Event
from .diagnosis.api_rejections import NotYet, Occupied, Refused, Taken, in_the_way, judged, waits
from .diagnosis.unreachable_pods import awaited
from .inquiries.live_read import find, pods_of
from .kube.client import AlreadyExists, ApiError, Client, Conflict, Forbidden, Invalid, NotFound
from .kube.resources import FINETUNEJOBS, JOBS, NETWORK_POLICIES, POD_GROUP, Raw
from .state.cache import Cache
from .state.observe import Observed
from .state.parsing import view_child_job, view_job, view_pod
from .state.status import change
from .state.version_skew import merged
from .state.views import JobView

logger = logging.getLogger(__name__)

Written = Callable[[JobView, FineTuneJobStatus], None]
"""Called for each status that was written: the job as it was, and its new status."""


@dataclass(frozen=True)
class Applier:
    client: Client
    cache: Cache
    now: Callable[[], datetime]
    written: Written

    async def carry_out(self, seen: Observed, decision: Decision) -> None:
        """Raises what api_rejections names, and the client's errors; the rest is decided again."""
        job = seen.job
        await self.write_status(job, decision.status)
        for child in decision.delete:
            try:
                answer = await self.client.delete(JOBS, (child.namespace, child.name), uid=child.uid)
            except ApiError as error:
                raise waits(error, f"Job {child.name} cannot be deleted yet") from error
            if answer is not None:
                self.cache.children.put(answer)
        if decision.expired and (gone := await self.client.delete(FINETUNEJOBS, job.owner, uid=job.uid)):
            self.cache.jobs.put(gone)
        if decision.create and decision.alone:
            await self._be_alone(seen, decision.status.attempt or 1)
        first = (decision.status.restarts or Restarts()).total == 0
        for create in decision.create:
            await self._create(job, create, first=first)
        if decision.probe is not None:
            await self._probe(job, decision.probe)
        for event in decision.events:
            attempt = decision.status.attempt or 0
            await events.send(self.client, job, event, attempt=attempt, now=self.now())

    async def write_status(self, job: JobView, status: FineTuneJobStatus) -> None:
        """Only if it says something new, and only onto the version that it was decided on: a change of the job
        since, a user or another replica, is heard first. The uid keeps it from a job that took the name since.

        Raises Conflict, with the newer version in the cache then."""
        if status is job.status or status.to_json() == job.status.to_json():
            return
        if job.ended:  # the cache has only a part of its status
            whole = view_job(await self.client.get(FINETUNEJOBS, job.owner), whole=True)
            if whole.uid != job.uid:
                return
            job, status = whole, change(whole.status, observed_generation=status.observed_generation)
        meta = {"name": job.name, "namespace": job.namespace, "uid": job.uid, "resourceVersion": str(job.version)}
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta}
        try:
            self.cache.feed(FINETUNEJOBS, None, await self._written(body, status, job))
        except Conflict:
            before = self.cache.jobs.newest
            with contextlib.suppress(NotFound):  # the watch will tell
                self.cache.jobs.answered(await self.client.get(FINETUNEJOBS, job.owner), before=before)
            raise
        except (Invalid, Forbidden) as error:
            problem = Event(Reason.PodsRefused, f"The status cannot be written: {error.message}", "Warning")
            await events.send(self.client, job, problem, attempt=job.status.attempt or 0, now=self.now())
            raise ApiError(f"the status was not accepted: {error.message}") from error
        self.written(job, status)

    async def _written(self, body: Raw, status: FineTuneJobStatus, job: JobView) -> Raw:
        """With what a newer version left in the status, unless the CRD is this version's again and refuses that."""
        whole = merged(status, job.status, job.left_out)
        try:
            return await self.client.replace_status({**body, "status": whole})
        except Invalid as error:
            if not job.left_out or not error.fields:
                raise
        return await self.client.replace_status({**body, "status": status.to_json()})

    async def _be_alone(self, seen: Observed, attempt: int) -> None:
        """Two attempts never run at once: the API server itself is asked, because a watch may lag, and does not show
        what lost its label."""
        job, children = seen.job, list(seen.children)
        old = await find(self.client, job.namespace, names.attempt_name(job.name, attempt - 1))
        found = (await pods_of(self.client, job)).items
        if old is not None and (child := view_child_job(old)).job_uid == job.uid:
            self.cache.children.put(old)
            if not child.deleting and not child.finished:
                await self.client.delete(JOBS, (child.namespace, child.name), uid=child.uid)
            children = [child, *(each for each in children if each.uid != child.uid)]
            found = [*found, *(await pods_of(self.client, job, child.uid)).items]
        for raw in found:
            self.cache.pods.put(raw)
        pods = {pod.uid: pod for pod in map(view_pod, found) if not pod.stray}
        if alive := awaited(pods.values(), children, seen.spec, self.now()):
            raise Occupied(f"pods of an earlier attempt still run: {', '.join(pod.name for pod in alive)}")

    async def _probe(self, job: JobView, probe: Create) -> None:
        try:
            await self._create(job, probe, first=False)
        except (Refused, NotYet, Taken, Occupied) as error:
            logger.info("%s/%s: no capacity check for more nodes: %s", *job.owner, one_line(error))
            self.cache.note(job.owner, probe_refused=self.now())

    async def _create(self, job: JobView, create: Create, *, first: bool) -> None:
        resource, body = create.resource, create.body
        before = self.cache.children.newest
        try:
            raw = await self.client.create(resource, body)
        except AlreadyExists:
            raw = await self.client.get(resource, (job.namespace, body["metadata"]["name"]))
            if problem := in_the_way(job, create, raw, first=first, now=self.now()):
                raise problem from None
        except ApiError as error:
            asked = resource is not NETWORK_POLICIES  # what is wrong with it is the operator's arguments, not the job
            raise judged(error, create, first=first and asked) from error
        if resource is JOBS:
            self.cache.children.answered(raw, before=before)
        elif resource.kind == POD_GROUP:
            self.cache.note(job.owner, grouped=body["metadata"]["ownerReferences"][0]["uid"])
