"""One burst: so many resources created at once on one side, until all run, until all have ended, and what it cost.

Times are of the harness's own clock, from sending a creation to the watch event that shows its effect.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.rig import Rig

from .api import MERGE, Api, Raw, Seen, Waiter
from .rest import clear, plane
from .sides import PODS, Side
from .usage import Meter

AT_ONCE = 20
"""Requests of the harness under way together."""
PATIENCE = 900.0
SETTLED = 3.0
"""Seconds of quiet after all run and after all have ended: what controllers still do counts too."""
WRITES = frozenset(("create", "update", "patch", "delete", "deletecollection"))


def watches_of(side: Side, namespace: str, *, jobs: Seen, pods: Seen, resources: Seen) -> dict[str, tuple[str, Seen]]:
    """For `Api.watching`. A side whose resources are Jobs has no other watch for them."""
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    own = side.path.format(namespace=namespace)
    both = {"jobs": (path, jobs), "pods": (f"/api/v1/namespaces/{namespace}/pods", pods)}
    return both if own == path else {**both, "resources": (own, resources)}


@dataclass
class Fleet:
    """The resources of one burst, as the watches tell of them."""

    side: Side
    namespace: str
    names: frozenset[str]
    sent: dict[str, float] = field(default_factory=dict)
    job_seen: dict[str, float] = field(default_factory=dict)
    """When each resource's first Job was seen."""
    running: dict[str, float] = field(default_factory=dict)
    terminal: dict[str, float] = field(default_factory=dict)
    job_of: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Each resource's newest Job: uid, and when it was seen."""
    jobs: set[str] = field(default_factory=set)
    pods: dict[str, Raw] = field(default_factory=dict)
    running_pods: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """Of each resource: uids of pods that were seen running, and when."""
    alive: set[str] = field(default_factory=set)

    def watches(self) -> dict[str, Any]:
        return watches_of(self.side, self.namespace, jobs=self._job, pods=self._pod, resources=self._resource)

    def _resource(self, kind: str, raw: Raw, when: float) -> None:
        name = raw["metadata"]["name"]
        if name not in self.names:
            return
        if kind == "DELETED":
            self.alive.discard(name)
            return
        self.alive.add(name)
        if name not in self.running and self.side.running(raw):
            self.running[name] = when
        if name not in self.terminal and self.side.terminal(raw):
            self.terminal[name] = when

    def _job(self, kind: str, raw: Raw, when: float) -> None:
        name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
        owner = self.side.owner(name)
        if kind == "ADDED":
            self.job_seen.setdefault(owner, when)
            self.job_of[owner] = (uid, when)
        (self.jobs.discard if kind == "DELETED" else self.jobs.add)(uid)
        if self.side.path.endswith("/jobs"):
            self._resource(kind, raw, when)

    def _pod(self, kind: str, raw: Raw, when: float) -> None:
        uid = raw["metadata"]["uid"]
        if kind == "DELETED":
            self.pods.pop(uid, None)
            return
        self.pods[uid] = raw
        if raw.get("status", {}).get("phase") == "Running":
            job = raw["metadata"]["labels"]["batch.kubernetes.io/job-name"]
            self.running_pods[self.side.owner(job)].setdefault(uid, when)

    @property
    def gangs(self) -> int:
        return sum(len(pods) >= PODS for pods in self.running_pods.values())


async def create_all(api: Api, fleet: Fleet) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with gate:
            manifests = fleet.side.manifests(name)
            for path, body in manifests[:-1]:
                await api.call("POST", path.format(namespace=fleet.namespace), body)
            path, body = manifests[-1]
            fleet.sent[name] = time.monotonic()
            await api.call("POST", path.format(namespace=fleet.namespace), body)

    await asyncio.gather(*map(one, sorted(fleet.names)))


async def end_pod(api: Api, pod: Raw, *, code: int) -> None:
    """What a kubelet writes when the container ends."""
    meta, now = pod["metadata"], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    word = "Error" if code else "Completed"
    ended = {"exitCode": code, "reason": word, "startedAt": now, "finishedAt": now}
    containers = [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": ended},
        }
        for container in pod["spec"]["containers"]
    ]
    status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": containers}
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
    await api.call("PATCH", path, {"status": status}, MERGE)


async def end_all(api: Api, pods: Iterable[Raw]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(pod: Raw) -> None:
        async with gate:
            await end_pod(api, pod, code=0)

    await asyncio.gather(*map(one, pods))


async def burst(api: Api, rig: Rig, side: Side, *, count: int, finish: bool = True) -> dict[str, Any]:
    """Figures of one burst. Its controllers run from its beginning to its end and no longer."""
    namespace = rig.create_namespace(f"burst-{side.name}", labels={})
    side.start()
    try:
        side.prepare(namespace)
        fleet = Fleet(side, namespace, frozenset(f"b{number:05d}" for number in range(count)))
        async with api.watching(**fleet.watches()) as waiter:
            row = await _measure(api, rig, fleet, waiter, finish=finish)
            await remove(api, fleet, waiter)
    finally:
        side.stop()
    await clear(api, rig, namespace)
    return row


async def _measure(api: Api, rig: Rig, fleet: Fleet, waiter: Waiter, *, finish: bool) -> dict[str, Any]:
    side, count = fleet.side, len(fleet.names)
    mark, meter = rig.audit.mark(), Meter.of({**plane(rig), **side.pids()})
    begin = time.monotonic()
    await create_all(api, fleet)
    created = time.monotonic() - begin
    await waiter.until(lambda: fleet.gangs == count, what="all pods run", seconds=PATIENCE)
    await waiter.until(lambda: len(fleet.running) == count, what="all report running", seconds=PATIENCE)
    wall = time.monotonic() - begin
    await asyncio.sleep(SETTLED)
    row: dict[str, Any] = {
        "side": side.name,
        "jobs": count,
        "all_created_s": round(created, 2),
        "create_to_job_s": spread(fleet.job_seen[name] - fleet.sent[name] for name in fleet.names),
        "all_jobs_s": round(max(fleet.job_seen.values()) - begin, 2),
        "all_pods_running_s": round(max(map(_gang_up, fleet.running_pods.values())) - begin, 2),
        "all_running_s": round(wall, 2),
        "cpu_s_until_running": meter.cpu(),
    }
    if finish:
        begin = time.monotonic()
        await end_all(api, list(fleet.pods.values()))
        await waiter.until(lambda: len(fleet.terminal) == count, what="all have ended", seconds=PATIENCE)
        row["all_terminal_s"] = round(time.monotonic() - begin, 2)
        await asyncio.sleep(SETTLED)
    row["cpu_s"], row["peak_mib"] = meter.cpu(), meter.peak()
    row["controllers_cpu_ms_a_job"] = round(1000 * sum(row["cpu_s"][name] for name in side.pids()) / count, 1)
    row["controllers_peak_mib"] = sum(row["peak_mib"][name] for name in side.pids())
    row["apiserver_cpu_ms_a_job"] = round(1000 * row["cpu_s"]["apiserver"] / count, 1)
    row["writes_a_job"] = _writes(rig, side, mark, count)
    return row


def _gang_up(pods: dict[str, float]) -> float:
    """When its last pod ran."""
    return max(pods.values())


def _writes(rig: Rig, side: Side, mark: int, count: int) -> dict[str, float]:
    """Requests of its controllers that ask for a change, for each resource; `all` is their sum."""
    found: Counter[str] = Counter()
    for request in rig.audit.requests(since=mark):
        if request.user in side.user_names and request.verb in WRITES and request.resource != "leases":
            code = f" {request.code}" if request.code >= 400 else ""
            found[f"{request.verb} {request.resource}{code}"] += 1
    told = {what: round(number / count, 2) for what, number in found.most_common() if number / count >= 0.01}
    return {"all": round(sum(found.values()) / count, 2), **told}


async def remove(api: Api, fleet: Fleet, waiter: Waiter) -> None:
    """Everything of the burst, so that the next one finds the cluster as this one did."""
    path = fleet.side.path.format(namespace=fleet.namespace)
    await api.call("DELETE", f"{path}?propagationPolicy=Background")
    await waiter.until(lambda: not (fleet.pods or fleet.jobs or fleet.alive), what="all is deleted", seconds=PATIENCE)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, 99th percentile and the worst, in seconds."""
    found = sorted(values)
    at = {"p50": statistics.median(found), "p99": found[min(len(found) - 1, int(len(found) * 0.99))], "max": found[-1]}
    return {name: round(value, 3) for name, value in at.items()}
