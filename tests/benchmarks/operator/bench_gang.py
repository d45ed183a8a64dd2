"""One job of a thousand pods: until all run, what the operator costs meanwhile, and until the next gang of all runs.

    python -m tests.benchmarks.operator.bench_gang [--pods 1024] [--sides ours bare]

The nodes are KWOK's, so that nothing but the control plane works. `bare` is the same Job and Service made by a client:
what Kubernetes itself takes to start so many pods."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.rig import Rig, build

from .api import Api, Raw, Waiter
from .burst import PATIENCE, SETTLED, end_pod, watches_of
from .rest import clear, plane
from .scale import wide_rig
from .sides import Bare, Ours, Side, finetunejob
from .table import print_table
from .usage import Meter

SIDES = ("ours", "bare")
NAME = "wide"


@dataclass
class Gang:
    """The pods of each Job of one resource, as the watches tell of them."""

    side: Side
    namespace: str
    running: dict[str, dict[str, float]] = field(default_factory=dict)
    """By the Job's name: each pod, and when it was first seen to run."""
    jobs: dict[str, float] = field(default_factory=dict)
    pod: Raw = field(default_factory=dict)
    """The last that was seen to run."""
    reported: float = 0.0

    def watches(self) -> dict[str, Any]:
        return watches_of(self.side, self.namespace, jobs=self._job, pods=self._pod, resources=self._resource)

    def _job(self, _: str, raw: Raw, when: float) -> None:
        self.jobs.setdefault(raw["metadata"]["name"], when)

    def _pod(self, kind: str, raw: Raw, when: float) -> None:
        if kind != "DELETED" and raw.get("status", {}).get("phase") == "Running":
            job = raw["metadata"]["labels"]["batch.kubernetes.io/job-name"]
            self.running.setdefault(job, {}).setdefault(raw["metadata"]["uid"], when)
            self.pod = raw

    def _resource(self, _: str, raw: Raw, when: float) -> None:
        if not self.reported and self.side.running(raw):
            self.reported = when

    def whole(self, pods: int, *, but: str = "") -> str:
        """The Job of which so many pods have run; empty if there is none but `but`."""
        return next((job for job, seen in self.running.items() if len(seen) >= pods and job != but), "")


def manifests(side: Side, pods: int) -> list[tuple[str, Raw]]:
    if isinstance(side, Ours):
        body = finetunejob(NAME)
        body["spec"]["nodes"] = pods
        return [(side.path, body)]
    made = side.manifests(NAME)
    made[-1][1]["spec"] |= {"completions": pods, "parallelism": pods}
    return made


async def measure(api: Api, rig: Rig, side: Side, *, pods: int) -> dict[str, Any]:
    namespace = rig.create_namespace(f"gang-{side.name}", labels={})
    side.start()
    try:
        gang = Gang(side, namespace)
        async with api.watching(**gang.watches()) as waiter:
            row = await _run(api, rig, gang, waiter, pods=pods)
    finally:
        side.stop()
    await clear(api, rig, namespace)
    return row


async def _run(api: Api, rig: Rig, gang: Gang, waiter: Waiter, *, pods: int) -> dict[str, Any]:
    side = gang.side
    meter, begin = Meter.of({**plane(rig), **side.pids()}), time.monotonic()
    for path, body in manifests(side, pods):
        await api.call("POST", path.format(namespace=gang.namespace), body)
    await waiter.until(lambda: gang.whole(pods) != "", what="all pods run", seconds=PATIENCE)
    first = gang.whole(pods)
    row = {"side": side.name, "pods": pods, "create → Job, s": gang.jobs[first] - begin}
    row["create → all run, s"] = max(gang.running[first].values()) - begin
    if isinstance(side, Ours):
        await waiter.until(lambda: gang.reported > 0, what="the status says so", seconds=PATIENCE)
        row["create → status Running, s"] = gang.reported - begin
    await asyncio.sleep(SETTLED)
    row["a pod, bytes"] = len(json.dumps(gang.pod["spec"])) + len(
        json.dumps(gang.pod["metadata"].get("annotations", {}))
    )
    if isinstance(side, Ours):
        row |= await _restart(api, gang, waiter, first, pods=pods)
    row |= {f"{name}, CPU s": spent for name, spent in meter.cpu().items() if name in {"apiserver", *side.pids()}}
    row |= {f"{name}, MiB": peak for name, peak in meter.peak().items() if name in side.pids()}
    return row


async def _restart(api: Api, gang: Gang, waiter: Waiter, first: str, *, pods: int) -> dict[str, float]:
    failed = time.monotonic()
    await end_pod(api, gang.pod, code=1)
    await waiter.until(lambda: gang.whole(pods, but=first) != "", what="the next gang runs", seconds=PATIENCE)
    second = gang.whole(pods, but=first)
    await asyncio.sleep(SETTLED)
    return {
        "failed pod → next Job, s": gang.jobs[second] - failed,
        "failed pod → all run, s": max(gang.running[second].values()) - failed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=1024)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    options = parser.parse_args()
    rows = []
    with wide_rig() as rig, tempfile.TemporaryDirectory() as folder:
        made: dict[str, Side] = {"ours": Ours(rig, Path(folder)), "bare": Bare()}
        print(f"{made['ours'].versions()}; Kubernetes {build.KUBERNETES}", flush=True)
        for name in options.sides:
            rows.append(asyncio.run(_alone(rig, made[name], options.pods)))
            print(rows[-1], file=sys.stderr, flush=True)
    columns = list(dict.fromkeys(title for row in rows for title in row))
    print_table(columns, [[_cell(row.get(title, "")) for title in columns] for row in rows])
    return 0


async def _alone(rig: Rig, side: Side, pods: int) -> dict[str, Any]:
    async with Api.of(rig) as api:
        return await measure(api, rig, side, pods=pods)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
