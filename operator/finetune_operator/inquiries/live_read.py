"""What is there of an attempt? The API server itself is asked, where the watches do not show enough to decide.

A watch may lag, compared with another one, may have missed a deletion, and reports an object without our label as gone.
So the Job is asked for by its name, and its pods by what the Job controller puts on them; what comes is whose its owner
references say. The Job is read first: its pods are at least as new as it then.
"""

from __future__ import annotations

from finetune_api import names
from finetune_operator.kube.client import Client, Conflict, Listing, NotFound
from finetune_operator.kube.resources import JOBS, PODS, Raw
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Observed
from finetune_operator.state.views import JobView

CONTROLLER_UID = "batch.kubernetes.io/controller-uid"
"""Label that the Job controller puts on a Job's pods."""

TRIES = 5


async def confirm(client: Client, cache: Cache, seen: Observed) -> None:
    """Brings the cache up to date on the Job and the pods of the present attempt, and of attempts without our label.
    Raises the client's errors."""
    jobs = {child.attempt for child in seen.children if child.unwatched}
    pods = {pod.attempt for pod in seen.pods if pod.unwatched}
    for attempt in sorted({seen.attempt} | jobs | pods):
        await _confirm(client, cache, seen, attempt)


async def _confirm(client: Client, cache: Cache, seen: Observed, attempt: int) -> None:
    for _ in range(TRIES):
        if await _confirmed(client, cache, seen, attempt):
            return
    raise Conflict(f"the Job {names.attempt_name(seen.job.name, attempt)} changes faster than it can be read")


async def _confirmed(client: Client, cache: Cache, seen: Observed, attempt: int) -> bool:
    """False if a watch meanwhile showed that the Job that was found is gone: it was deleted, or lost our label."""
    before = cache.children.newest
    child = await find(client, seen.job.namespace, names.attempt_name(seen.job.name, attempt))
    known = [pod for pod in seen.pods if pod.attempt == attempt]
    owners = {child["metadata"]["uid"]} if child else {pod.controller for pod in known if pod.controller}
    found: list[tuple[int, Listing]] = []
    for owner in sorted(owners) or [""]:
        newest = cache.pods.newest
        found.append((newest, await pods_of(client, seen.job, owner)))
    # From here on nothing waits, so that no event comes between the answers and the decision.
    for newest, listing in found:
        for raw in listing.items:
            cache.pods.answered(raw, before=newest)
    listed = {raw["metadata"]["uid"] for _, listing in found for raw in listing.items}
    version = max(int(listing.version) for _, listing in found)
    for each in seen.children:
        if each.attempt == attempt and (child is None or child["metadata"]["uid"] != each.uid):
            cache.children.lost(each, version)
    for pod in known:
        if pod.uid not in listed and (pod.controller in owners or not owners):
            cache.pods.lost(pod, version)
    if child is None:
        return True
    cache.children.answered(child, before=before)
    return cache.children.settled(child)


async def find(client: Client, namespace: str, name: str) -> Raw | None:
    """The Job of that name, whosoever it is."""
    try:
        return await client.get(JOBS, (namespace, name))
    except NotFound:
        return None


async def pods_of(client: Client, job: JobView, owner: str = "") -> Listing:
    """The pods of the Job of that uid, or by our label those of all attempts."""
    label, uid = (CONTROLLER_UID, owner) if owner else (names.LABEL_UID, job.uid)
    return await client.list(PODS, job.namespace, selector=f"{label}={uid}")
