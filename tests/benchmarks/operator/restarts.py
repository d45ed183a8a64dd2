"""How soon is a gang there again? One pod after the other fails, each of another job, while all the others run."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.cluster.rig import Rig

from .api import Api
from .burst import PATIENCE, Fleet, create_all, end_pod, remove, spread
from .rest import clear
from .sides import PODS, Side

BETWEEN = 0.5
"""Seconds from one failure to the next."""


async def restarts(api: Api, rig: Rig, side: Side, *, running: int, failures: int) -> dict[str, Any]:
    """Seconds from the failed pod to the resource's next Job, and to all pods of the next gang running."""
    namespace = rig.create_namespace(f"restart-{side.name}", labels={})
    side.start()
    try:
        side.prepare(namespace)
        fleet = Fleet(side, namespace, frozenset(f"b{number:05d}" for number in range(running)))
        async with api.watching(**fleet.watches()) as waiter:
            await create_all(api, fleet)
            await waiter.until(lambda: len(fleet.running) == running, what="all run", seconds=PATIENCE)
            await asyncio.sleep(5)
            victims = sorted(fleet.names)[:failures]
            old_jobs = {name: fleet.job_of[name][0] for name in victims}
            old_pods = {name: set(fleet.running_pods[name]) for name in victims}
            failed = {}
            for name in victims:
                pod = next(pod for pod in fleet.pods.values() if pod["metadata"]["uid"] in old_pods[name])
                failed[name] = time.monotonic()
                await end_pod(api, pod, code=1)
                await asyncio.sleep(BETWEEN)

            def again(name: str) -> list[float]:
                return sorted(when for uid, when in fleet.running_pods[name].items() if uid not in old_pods[name])

            await waiter.until(
                lambda: all(len(again(name)) >= PODS and fleet.job_of[name][0] != old_jobs[name] for name in victims),
                what="all gangs are there again",
                seconds=PATIENCE,
            )
            row = {
                "side": side.name,
                "running": running,
                "failures": failures,
                "failed_pod_to_job_s": spread(fleet.job_of[name][1] - failed[name] for name in victims),
                "failed_pod_to_gang_s": spread(again(name)[PODS - 1] - failed[name] for name in victims),
            }
            await remove(api, fleet, waiter)
    finally:
        side.stop()
    await clear(api, rig, namespace)
    return row
